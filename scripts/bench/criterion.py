"""Times matching and losses beside the same formulas in dense tensors, on made-up crowds.

    python scripts/bench/criterion.py                                      # 16 images with 500 objects each
    python scripts/bench/criterion.py --images 2 --queries 300 --objects 7 --tokens 4000     # a small batch
    python scripts/bench/criterion.py --images 2 --objects 20 --classes 1203                 # like LVIS

`dense` has every step of the formulas as a tensor: costs of all layers, images, queries and objects with the four
coordinates last, and a one-hot target for every query and class. Both have the same predictions and objects, and take
turns. Seconds are those of the processor, which a busy machine changes less than those of the clock; matching, then the
losses with their gradients. Peaks are those of tensors in MiB, without predictions and objects. If a loss differs by
more than 1e-5 of it, the exit code is 1.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.from_config import build_criterion
from models.overlaps import generalized_iou
from models.pair_costs import focal_cost
from models.predictions import PredictionGroup, Predictions
from scripts.bench.crowds import make_batch, spent
from scripts.bench.timing import machine, machine_line, markdown_table
from util.config import LossConfig
from util.console import exit_quietly
from util.measuring import measure_peak
from util.objects import Objects

PROG = "bench/criterion.py"
CPU = torch.device("cpu")
CFG = LossConfig()
Indices = tuple[Tensor, ...]  # layer, image, query and object of each pair


@torch.no_grad()
def match_densely(group: PredictionGroup, truth: Sequence[Objects]) -> Indices:
    """The cheapest pairs, from a tensor of all costs; each image has as many objects."""
    labels, wanted = torch.stack([o.labels for o in truth]), torch.stack([o.boxes for o in truth])[None, :, None]
    shape = (*group.logits.shape[:3], labels.shape[1])
    probability = group.logits.gather(-1, labels[None, :, None].expand(shape)).sigmoid()
    predicted = group.boxes[..., None, :]
    cost = CFG.class_cost * focal_cost(probability, CFG.focal_alpha, CFG.focal_gamma)
    cost = cost + CFG.l1_cost * (predicted - wanted).abs().sum(-1)
    cost = cost - CFG.giou_cost * generalized_iou(predicted, wanted)
    found = []
    for layer, of_layer in enumerate(cost.numpy()):
        for image, block in enumerate(of_layer):
            queries, of = linear_sum_assignment(block)
            found += [(layer, image, int(q), image * shape[-1] + int(t)) for q, t in zip(queries, of)]
    return torch.tensor(found).unbind(1)


def losses_densely(group: PredictionGroup, truth: Sequence[Objects], pairs: Indices) -> Tensor:
    """The sum of the weighted losses of all layers, with a target for every query and class."""
    layer, image, query, of = pairs
    labels, wanted = torch.cat([o.labels for o in truth])[of], torch.cat([o.boxes for o in truth])[of]
    one_hot = torch.zeros_like(group.logits).index_put((layer, image, query, labels), torch.ones(len(of)))
    focal = sigmoid_focal_loss(group.logits, one_hot, CFG.focal_alpha, CFG.focal_gamma)
    predicted = group.boxes[layer, image, query]
    total = 2 * focal.sum() + CFG.l1_weight * (predicted - wanted).abs().sum()
    total = total + CFG.giou_weight * (1 - generalized_iou(predicted, wanted)).sum()
    return total / sum(len(o.labels) for o in truth)


class Matched:
    """Stands for a matcher that has matched."""

    def __init__(self, matches):
        self.matches = matches

    def __call__(self, *_):
        """What it was given."""
        return self.matches


def contenders(predictions: Predictions, truth: list[Objects]) -> dict[str, tuple[Callable, Callable]]:
    """For each contender a call that matches, and one that makes the loss and its gradients of what was matched."""
    groups, criterion = predictions.groups, build_criterion(CFG)
    truths = [truth if group.objects is None else group.objects for group in groups]
    matcher = criterion.matcher

    def ours(matches) -> Tensor:
        criterion.matcher = Matched(matches)
        return backward(sum(criterion(predictions, truth).values(), torch.zeros(())))

    def dense(matches) -> Tensor:
        return backward(sum(map(losses_densely, groups, truths, matches), torch.zeros(())))

    def backward(loss: Tensor) -> Tensor:
        for group in groups:
            group.logits.grad = group.boxes.grad = None
        loss.backward()
        return loss.detach()

    return {
        "ours": (lambda: matcher(groups, truths), ours),
        "dense": (lambda: list(map(match_densely, groups, truths)), dense),
    }


def main(argv: Sequence[str]) -> int:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 16), ("queries", 900), ("objects", 500), ("layers", 6), ("classes", 91)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens", type=int, default=6380, help="proposals of a two-stage detector; 0 for none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    sizes = (options.images, options.queries, options.objects, options.layers, options.tokens, options.classes)
    calls = contenders(*make_batch(*sizes))
    matches = {name: match() for name, (match, _) in calls.items()}
    losses = {name: float(lose(matches[name])) for name, (_, lose) in calls.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, (match, lose) in calls.items():
            seconds[name].append((spent(match), spent(lambda f=lose, m=matches[name]: f(m))))
    rows = []
    for name, (match, lose) in calls.items():
        peaks = [measure_peak(call, CPU, []) for call in (match, lambda f=lose, m=matches[name]: f(m))]
        times = [f"{1000 * median(column):,.1f}" for column in zip(*seconds[name])]
        rows.append([name, *times, *(f"{peak / 2**20:,.0f}" for peak in peaks)])
    print(
        f"{machine_line(machine(CPU))}\n{sizes[0]} images of {sizes[2]} objects, {sizes[3]} layers of {sizes[1]} ",
        end="",
    )
    print(f"queries, {sizes[4]} proposals, {sizes[5]} classes; loss {losses['ours']:.6f}\n")
    print(markdown_table(("", "matching ms", "losses ms", "matching MiB", "losses MiB"), rows))
    return int(abs(losses["ours"] - losses["dense"]) > 1e-5 * losses["dense"])


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
