"""Times an R50 detector's inference with norms apart, folded in each pass and folded once, beside transformers.

    python scripts/bench/inference.py                        # one image of 800x1066, fp32, on the CPU
    python scripts/bench/inference.py --variant two_stage --repeats 5
    python scripts/bench/inference.py --without-transformers

All have the same random weights. Contenders take turns in a new order every round; the figures are medians over rounds,
of the clock and of the processor's time, which a busy machine changes less. Logits are compared first. This needs the
test dependencies (`scripts/setup.sh --test`).
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import models.backbone
from models.folded_norms import fold_for_inference
from scripts.bench import timing
from scripts.bench.model import VARIANTS, our_detector, their_detector
from util.console import exit_quietly
from util.measuring import MIB, measure_peak

APART, EACH, ONCE, THEIRS = "norms apart", "folded in each pass", "folded once", "transformers"
HEADER = ["", "seconds", "of norms apart", "processor's", "of norms apart", "peak MiB", "largest deviation of logits"]


def detectors(variant: str, compare: bool) -> dict[str, torch.nn.Module]:
    """The contenders by name, with the same weights."""
    theirs = their_detector(variant)
    with patch.object(models.backbone, "fold_norms", lambda network: 0):
        apart = our_detector(theirs)
    each = our_detector(theirs)
    once = deepcopy(each)
    fold_for_inference(once)
    found = {APART: apart, EACH: each, ONCE: once}
    return {**found, THEIRS: theirs} if compare else found


def call_of(name: str, model: torch.nn.Module, images: torch.Tensor, mask: torch.Tensor) -> Callable[[], torch.Tensor]:
    """What is timed: a forward pass, which returns the last layer's logits."""
    if name == THEIRS:
        return lambda: model(pixel_values=images, pixel_mask=(~mask).long()).logits
    return lambda: model(images, mask).logits[-1]


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        prog="bench/inference.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=VARIANTS, default="base")
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1066], metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-transformers", action="store_true", help="leave transformers out of the turns")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("transformers") is None:
        parser.error("transformers is missing: run scripts/setup.sh --test, or pip install transformers")

    torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    with torch.inference_mode(False), torch.no_grad():
        contenders = detectors(args.variant, not args.without_transformers)
    images, mask = torch.randn(1, 3, *args.size), torch.zeros(1, *args.size, dtype=torch.bool)
    calls = {name: call_of(name, model, images, mask) for name, model in contenders.items()}
    what = f"R50 {args.variant}, one image of {args.size[0]}x{args.size[1]}, fp32"
    print(f"{what}; {timing.machine_line(timing.machine(device))}; medians of {args.repeats} rounds\n", flush=True)

    logits, peaks = {}, {}
    for name, call in calls.items():
        timing.progress(f"{name}: warming up, measuring memory")
        logits[name] = call()
        model = contenders[name]
        peaks[name] = measure_peak(call, device, [*model.parameters(), *model.buffers(), images, mask]) / MIB
    clock: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    for name in timing.in_turns(list(calls), args.repeats):
        for times, took in zip((clock, processor), timing.both_clocks(calls[name])):
            times[name].append(took)
        timing.progress(f"{name}: {clock[name][-1]:.2f} s, {processor[name][-1]:.2f} s of the processor")
    rows = []
    for name in calls:
        row = [name]
        for times in (clock, processor):
            row += [f"{median(times[name]):.2f}", f"{median(times[name]) / median(times[APART]):.2f}"]
        deviation = float((logits[name] - logits[APART]).abs().max())
        rows.append([*row, timing.figure(peaks[name]), f"{deviation:.1e}"])
    print(timing.markdown_table(HEADER, rows))
    return 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
