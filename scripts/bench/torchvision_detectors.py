"""Trains a detector of torchvision on a preset's backbone and data, to compare with: what one would take instead.

    python scripts/bench/torchvision_detectors.py --config configs/finetune_small.yaml --json rcnn_1.json \\
        --steps 2000 -- --data.train_images my/train --data.train_annotations my/train.json \\
        --data.val_images my/val --data.val_annotations my/val.json --train.seed 1
    python scripts/bench/torchvision_detectors.py --detector fcos --time-only 20 -- --data.train_images ...
    python scripts/bench/learning.py table ours_1.json rcnn_1.json

From the preset and the options after a lone -- it takes the whole `data` section, the backbone with its weights, frozen
norms and stages, and of `train` batch_size, seed, weight_decay, warmup_steps, ema_decay, precision (fp32 or bf16) and
device. Data sets, loader, augmentation and evaluation are the project's own; neither does torchvision resize or
normalise again. Of its own it has the feature pyramid, anchors (its usual ones, scaled to data.eval_size), heads,
losses and learning rates; the schedule is a cosine with warm-up. Detections are kept from a score of 0.001 on. The
detectors are Faster R-CNN, RetinaNet and FCOS.

On a CPU most of a step of Faster R-CNN goes into torchvision's 512 regions of each image; --rois 128 --proposals 300
makes it about twice as fast on small images (300 is the paper's number, arXiv 1506.01497, section 4.1).

The file has the form of `learning.py`'s, so that its `plot` and `table` take both.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from statistics import median

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from datasets.batch import Batch
from datasets.device import ToDevice
from datasets.loader import TrainLoader
from datasets.matching import match_categories
from engine.evaluate import run_evaluation
from engine.optim import lr_factor, set_lr
from engine.training_data import make_loaders, read_data
from main import COMMANDS
from models.from_config import build_backbone
from scripts.bench import timing
from scripts.bench.learning_looks import errors_of, figures_of
from scripts.bench.learning_run import StepTimes
from scripts.bench.torchvision_models import MAPS, TorchvisionDetector, pick
from util.config import Config
from util.console import exit_quietly
from util.devices import autocast, pick_device
from util.distributed import ALONE
from util.errors import UserError

PROG = "bench/torchvision_detectors.py"
LOOKS, LOG_EVERY, WARM = 6, 20, 3
FINE = 10**6  # parts of a run that the schedule tells apart


class Trainer:
    """Trains and evaluates, and keeps a record.

    Args:
        args: of the command line.
        config: the preset with its overrides.
        record: filled as `learning.py` fills its own.
    """

    def __init__(self, args: argparse.Namespace, config: Config, record: dict):
        self.args, self.cfg, self.record = args, config.train, record
        self.device = pick_device(config.train.device)
        torch.manual_seed(self.cfg.seed)
        dataset, val_dataset, _ = read_data(config, None, ALONE)
        self.category_of = match_categories(dataset.categories, val_dataset.categories).category_of
        self.loader, self.val_loader = make_loaders(config, dataset, val_dataset, self.device, ALONE)
        backbone = build_backbone(config.model.backbone, MAPS[args.detector])
        num_classes, size = 1 + max(c.label for c in dataset.categories), config.data.eval_size
        own = args.detector, size, args.rois, args.proposals
        self.model = TorchvisionDetector(backbone, num_classes, *own).to(self.device)
        self.prepare = ToDevice(self.device, backbone.mean, backbone.std)
        self.optimizer = adamw(self.model, args.lr, args.lr * args.backbone_factor, self.cfg.weight_decay)
        self.ema = ModelEmaV3(self.model, self.cfg.ema_decay, use_warmup=True) if self.cfg.ema_decay else None
        self.times, self.steps = StepTimes(self.device), 0
        record |= {"machine": timing.machine(self.device), "logs": [], "looks": []}

    @property
    def progress(self) -> float:
        """How much of the run is done, in [0, 1]: steps of all steps, or seconds of training of all seconds."""
        if self.args.cpu_minutes:
            return min(1.0, self.times.cpu_total / (60 * self.args.cpu_minutes))
        if self.args.minutes:
            return min(1.0, self.times.total / (60 * self.args.minutes))
        return self.steps / self.args.steps

    def run(self) -> None:
        """Train, look about six times, and look once more at the weights that would be used."""
        sums: list[Tensor] = []
        results: list[dict] = []
        self.times.begin()
        for batch in passes(self.loader):
            losses = self.step(batch)
            self.times.step()
            sums.append(torch.stack([loss.detach() for loss in losses.values()]))
            if self.steps % LOG_EVERY == 0 or self.progress == 1:
                self.log(list(losses), sums)
                sums = []
            if int(LOOKS * self.progress) > len(self.record["looks"]) and not self.args.time_only:
                self.times.end()
                results = self.look()
                self.times.begin()
            if self.progress == 1:
                break
        self.times.end()
        self.loader.close()
        self.record |= {"steps": self.steps, "images": self.steps * self.loader.batches.batch_size}
        self.record |= self.times.to_dict()
        if self.args.time_only:
            return
        final = {"weights": "trained", **self.record["looks"][-1]}
        if self.ema is not None:
            figures, results = self.score(self.ema.module)
            final = {"weights": "EMA", **figures}
        self.record["final"] = {**final, "errors": errors_of(self.val_loader.dataset.annotations, results)}

    def step(self, loaded: Batch) -> dict[str, Tensor]:
        """One optimiser step; returns its losses."""
        self.model.train()
        warmup = min(1.0, (self.steps + 1) / self.cfg.warmup_steps) if self.cfg.warmup_steps else 1.0
        set_lr(self.optimizer, warmup * lr_factor(round(FINE * self.progress), FINE, 1, "cosine", ()))
        images = self.prepare(loaded).images
        with autocast(self.device, self.cfg.precision):
            losses = self.model.losses(images, loaded)
        sum(losses.values(), images.new_zeros(())).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.steps)
        return losses

    def log(self, names: list[str], sums: list[Tensor]) -> None:
        """Write down mean losses since the last log.

        Raises:
            UserError: they are not finite.
        """
        means = dict(zip(names, torch.stack(sums).mean(0).tolist()))
        losses = {"loss": math.fsum(means.values()), **means}
        if not math.isfinite(losses["loss"]):
            raise UserError(f"the loss is not finite after {self.steps} steps; lower --lr")
        timing.progress(f"{self.record['name']}: step {self.steps}, {self.progress:.0%}, loss {losses['loss']:.3f}")
        self.record["logs"].append({"step": self.steps, "losses": losses})

    def look(self) -> list[dict]:
        """Evaluate and write it down; returns the detections in COCO result format."""
        figures, results = self.score(self.model)
        passes_done = self.steps / len(self.loader)
        self.record["looks"].append({"step": self.steps, "epoch": passes_done, **figures})
        timing.write_json(self.args.json, self.record)
        return results

    def score(self, model: torch.nn.Module) -> tuple[dict, list[dict]]:
        """AP by the project's evaluation, and the detections."""
        where = self.val_loader, self.category_of, self.prepare, self.device
        scores, results = run_evaluation(model, *where, precision=self.cfg.precision, pick=pick)
        return figures_of(scores), results


def passes(loader: TrainLoader) -> Iterator[Batch]:
    """Batches of one pass after the other, without end."""
    for epoch in count():
        loader.batches.set_epoch(epoch)
        for (batch,) in loader:
            yield batch


def adamw(model: TorchvisionDetector, lr: float, lr_backbone: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over two groups, backbone and all else, which keep their undiminished rate as `base_lr`."""
    groups: dict[float, list] = {lr_backbone: [], lr: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[lr_backbone if ".body." in name else lr].append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "lr": rate, "base_lr": rate} for rate, params in groups.items() if params],
        weight_decay=weight_decay,
        fused=True,
    )


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    """Read the options, and the preset with its overrides."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parents[2] / "configs" / "finetune_small.yaml"
    parser.add_argument("--config", default=str(default), metavar="PRESET", help=f"default: {default.name}")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="optimiser steps")
    length.add_argument("--minutes", type=float, help="minutes of training, evaluation not counted")
    length.add_argument(
        "--cpu-minutes", type=float, help="the same, counted in this process' processor time (give --data.workers 0)"
    )
    length.add_argument("--time-only", type=int, metavar="K", help="print the median time of K steps, and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the file to write")
    parser.add_argument("--detector", choices=MAPS, default="faster_rcnn", help="default: faster_rcnn")
    parser.add_argument("--name", help="in plots and tables (default: the detector's)")
    parser.add_argument("--lr", type=float, default=2e-4, help="of all but the backbone (default: 2e-4)")
    parser.add_argument("--backbone-factor", type=float, default=0.25, help="on it, of the backbone (default: 0.25)")
    parser.add_argument(
        "--rois", type=int, default=512, help="Faster R-CNN's regions of an image in a step (default: 512)"
    )
    parser.add_argument("--proposals", type=int, default=1000, help="and in evaluation (default: 1000)")
    parser.add_argument("--device", help="train.device: cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("overrides", nargs="*", help="options of main.py train after a lone --")
    args = parser.parse_args(argv)
    lengths = args.steps, args.minutes, args.cpu_minutes, args.time_only
    if min(n for n in (*lengths, args.rois, args.proposals) if n is not None) <= 0:
        parser.error("--steps, --minutes, --cpu-minutes, --time-only, --rois and --proposals must be above 0")
    if not args.time_only and not args.json:
        parser.error("--json is missing")
    try:
        config = COMMANDS["train"].parse("train", ["--config", args.config, *args.overrides])
        if config.train.precision not in ("fp32", "bf16"):
            raise UserError(f"--train.precision {config.train.precision}: take fp32 or bf16")
    except UserError as error:
        parser.error(str(error))
    if args.time_only:
        args.steps = args.time_only + WARM
    args.name = args.name or args.detector
    config.train.device = args.device or config.train.device
    config.train.max_images_per_device = None
    return args, config


def main(argv: Sequence[str]) -> int:
    """Train and record, or time."""
    args, config = arguments(argv)
    record = {"name": args.name, "seed": config.train.seed, "config": asdict(config), "settings": vars(args).copy()}
    record["settings"]["json"] = str(args.json)
    try:
        trainer = Trainer(args, config, record)
        trainer.run()
    except UserError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    record["machine"]["load_after"] = timing.load()
    if args.time_only:
        ms = 1e3 * median(trainer.times.steps[WARM:])
        record |= {"ms_per_step": ms, "steps": args.time_only}
        print(f"{ms:.1f} ms a step, median of {args.time_only}; {timing.machine_line(record['machine'])}")
    else:
        final = record["final"]
        print(
            f"AP {final['AP']:.3f}, AP50 {final['AP50']:.3f} after {record['steps']} steps, {record['seconds']:.0f} s"
        )
    if args.json:
        timing.write_json(args.json, record)
    return 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
