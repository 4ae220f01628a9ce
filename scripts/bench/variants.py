"""Times the training step and the inference of every variant of a sweep, or of presets, each beside the first.

    python scripts/bench/variants.py                                  # configs/ablations/recipe.yaml on base.yaml, CPU
    python scripts/bench/variants.py --only baseline atss denoising --batch 1 --repeats 2
    python scripts/bench/variants.py --presets configs/two_stage.yaml configs/denoising.yaml configs/relation.yaml
    python scripts/bench/variants.py --device cuda --batch 8 --json variants.json

The first variant or preset is the one that others are compared with. It stays in memory, and takes turns with one
other at a time, so that a machine that grows slower or faster meanwhile changes no ratio. Steps, pictures and memory
are those of `train.py` beside this file. Inference is the forward pass of the same batch without objects. Variants
that change the data alone have the same step, and are left out.
"""

import argparse
import copy
import gc
import sys
from functools import partial
from pathlib import Path
from statistics import median

import torch
import yaml
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from ablation.grid import Variant, cells_of, variants_of
from datasets.batch import Batch
from datasets.device import ToDevice
from models.from_config import build_model
from ops import selected_backend
from scripts.bench import timing
from scripts.bench.train import first_steps
from scripts.bench.train_contenders import Contender, make_contender
from scripts.bench.train_data import CLASSES, OBJECTS, make_data
from util import cli
from util.config import Config
from util.console import exit_quietly
from util.devices import pick_device
from util.errors import UserError
from util.measuring import MIB

PROG = "bench/variants.py"
PRESETS = Path(__file__).parents[2] / "configs"


class Measured:
    """One variant: its step, its inference, and what they took.

    Args:
        name: of the variant.
        config: of the variant.
        device: to run on.
        batch: pictures on the host.

    Attributes:
        contender: the training step and its figures.
        inference_s: seconds of a forward pass, one entry for each round.
        parameters: number of weights that are trained.
    """

    def __init__(self, name: str, config: Config, device: torch.device, batch: Batch):
        torch.manual_seed(0)
        model = build_model(config.model, CLASSES, config.loss, "none")
        backend = selected_backend(device.type)
        self.contender: Contender = make_contender("ours", "fp32", backend, config, model, device)
        self.contender.name, self.device, self.batch = name, device, batch
        self.inference_s: list[float] = []
        detector = self.contender.state.model
        self.parameters = sum(p.numel() for p in detector.parameters() if p.requires_grad)
        ready = ToDevice(device, detector.backbone.mean, detector.backbone.std)(batch)  # type: ignore[union-attr]
        self.images, self.padding_mask = ready.images, ready.padding_mask

    def start(self) -> None:
        """The first steps: loss, memory and host syncs."""
        timing.progress(f"  {self.contender.name}: first steps")
        first_steps(self.contender, self.batch)

    def turn(self) -> None:
        """One more step and one more inference."""
        c = self.contender
        c.step_s.append(timing.seconds(partial(c.run, self.batch), self.device))
        c.clock.take()
        c.state.model.eval()
        self.inference_s.append(timing.seconds(self._detect, self.device))
        c.clock.spans.clear()

    @torch.inference_mode()
    def _detect(self) -> Tensor:
        return self.contender.state.model(self.images, self.padding_mask).groups[0].boxes


def measure(first: Measured, other: Measured, repeats: int) -> tuple[float, float]:
    """Let two take turns; returns how many times the first one's step and inference the other's took."""
    before = len(first.inference_s)
    for measured in timing.in_turns([first, other], repeats):
        measured.turn()
    return (
        median(other.contender.step_s) / median(first.contender.step_s[before:]),
        median(other.inference_s) / median(first.inference_s[before:]),
    )


def report(rows: list[list[str]]) -> str:
    """A table in Markdown."""
    header = ["variant", "M weights", "step", "peak MiB", "host syncs", "inference"]
    return timing.markdown_table(header, rows)


def row(measured: Measured, step: str, inference: str) -> list[str]:
    """A line of the table."""
    c = measured.contender
    memory = f"{c.peak_bytes / MIB:.0f}" if c.peak_bytes else "-"
    syncs = str(c.syncs.total) if c.syncs else "-"
    return [c.name, f"{1e-6 * measured.parameters:.2f}", step, memory, syncs, inference]


def arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[tuple[str, Config]], torch.device]:
    """Read the options; returns them, the variants with their configurations, and the device."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(PRESETS / "base.yaml"), metavar="PRESET")
    parser.add_argument("--sweep", type=Path, default=PRESETS / "ablations" / "recipe.yaml", metavar="SWEEP")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these variants of the sweep (default: all)")
    parser.add_argument("--presets", nargs="+", metavar="PRESET", help="these, in place of --config and --sweep")
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1, help="images in a step (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each pair (default: 3)")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("overrides", nargs="*", help="options of the preset after a lone --")
    args = parser.parse_args(argv)
    if min(*args.size, args.batch, args.repeats) < 1:
        parser.error("--size, --batch and --repeats must be at least 1")
    try:
        device = pick_device(args.device)
        found = of_presets(args) if args.presets else of_sweep(args)
    except OSError as error:
        parser.error(f"--sweep: {error}")
    except UserError as error:
        parser.error(str(error))
    return args, with_steps_of_their_own(found), device


def of_presets(args: argparse.Namespace) -> dict[str, Config]:
    """The configuration of each preset."""
    return {Path(p).stem: cli.parse(Config, ["--config", p, *args.overrides], PROG) for p in args.presets}


def of_sweep(args: argparse.Namespace) -> dict[str, Config]:
    """The configuration of each variant of a sweep on a preset."""
    base = cli.parse(Config, ["--config", args.config, *args.overrides], PROG)
    sweep = yaml.safe_load(args.sweep.read_text(encoding="utf-8"))
    variants = variants_of(sweep.get("grid", {}), sweep.get("variants", {}))
    return {cell.variant.name: cell.config for cell in cells_of(base, chosen(variants, args.only), seeds=1)}


def chosen(variants: list[Variant], names: list[str] | None) -> list[Variant]:
    """The variants of these names, in their order; all without names.

    Raises:
        UserError: no variant has the name.
    """
    by_name = {variant.name: variant for variant in variants}
    unknown = [name for name in names or [] if name not in by_name]
    if unknown:
        raise UserError(f"--only: the sweep has no variant '{unknown[0]}'; there are {', '.join(by_name)}")
    return [by_name[name] for name in names or by_name]


def with_steps_of_their_own(configs: dict[str, Config]) -> list[tuple[str, Config]]:
    """The first configuration, and those whose model or losses are not the first one's."""
    (_, first), *_ = configs.items()
    named = list(configs.items())
    return named[:1] + [(n, c) for n, c in named[1:] if (c.model, c.loss) != (first.model, first.loss)]


def main(argv: list[str] | None = None) -> int:
    """Measure and print a table in Markdown."""
    args, variants, device = arguments(argv)
    about = timing.machine(device)
    batch, _ = make_data(copy.deepcopy(variants[0][1]), tuple(args.size), args.batch, 1)
    if device.type == "cuda":
        batch = batch.pin_memory()
    name, config = variants[0]
    first, rows, ratios = Measured(name, config, device, batch), [], {}
    first.start()
    for name, config in variants[1:]:
        other = Measured(name, config, device, batch)
        other.start()
        step, inference = ratios[name] = measure(first, other, args.repeats)
        rows.append(row(other, f"{step:.2f}", f"{inference:.2f}"))
        timing.progress(f"  {' | '.join(rows[-1])}")
        del other
        gc.collect()
    if len(variants) == 1:
        for _ in range(args.repeats):
            first.turn()
    ms = [1e3 * median(times) for times in (first.contender.step_s, first.inference_s)]
    rows.insert(0, row(first, f"{ms[0]:.0f} ms", f"{ms[1]:.0f} ms"))
    about["load_after"] = timing.load()
    what = f"{variants[0][0]}, {args.batch} x {args.size[0]}x{args.size[1]}, {OBJECTS} objects each"
    print(f"{what}; {timing.machine_line(about)}; ratios of medians of {args.repeats} turns\n")
    print(report(rows))
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        found = {"settings": settings, "machine": about, "ms": ms, "ratios": ratios, "rows": rows}
        timing.write_json(args.json, found)
    return 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
