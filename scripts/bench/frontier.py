"""Draws accuracy against latency on this machine: detectors whose training was recorded, ours and torchvision's.

    python scripts/bench/frontier.py small_1.json hybrid_1.json rcnn_1.json --size 256 320 --png frontier.png
    python scripts/bench/frontier.py small_1.json rcnn_1.json --timed configs/two_stage.yaml --png frontier.png

The files are those that --json of `learning.py` and `torchvision_detectors.py` has written; runs of one name are seeds.
Each detector is built anew with random weights, for only its time is asked, and one picture goes through each in turn.
--timed adds presets whose accuracy is not known: they are drawn as lines. Threads are those of OMP_NUM_THREADS.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.from_config import build_backbone, build_model
from scripts.bench import timing
from scripts.bench.learning_report import read_records, spread
from scripts.bench.torchvision_models import MAPS, TorchvisionDetector
from util import cli
from util.config import Config
from util.console import exit_quietly
from util.errors import UserError
from util.fonts import save_figure
from util.options import from_dict

PROG = "bench/frontier.py"
CLASSES = 3


def build(record: dict) -> nn.Module:
    """The detector of a record, with random weights."""
    config = from_dict(Config, record["config"])
    settings = record.get("settings", {})
    if kind := settings.get("detector"):
        backbone = build_backbone(config.model.backbone, MAPS[kind], "none")
        regions = settings["rois"], settings["proposals"]
        return TorchvisionDetector(backbone, CLASSES, kind, config.data.eval_size, *regions)
    return build_model(config.model, CLASSES, config.loss, "none")


def measure(models: dict[str, nn.Module], size: Sequence[int], repeats: int) -> dict[str, float]:
    """Milliseconds of a picture by name: the median over repeats, in which the detectors take turns."""
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, *size, dtype=torch.bool)
    taken: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for name, model in models.items():
                seconds = timing.seconds(lambda m=model: m(images, mask), torch.device("cpu"))
                if repeat:  # the first is slower
                    taken[name].append(seconds)
    return {name: 1e3 * median(seconds) for name, seconds in taken.items()}


def draw(points: dict[str, tuple[float, float]], lines: dict[str, float], file: Path) -> None:
    """AP over milliseconds: a point for each name, a line where the AP is not known."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, (ms, ap)) in enumerate(points.items()):
        axes.scatter(ms, 100 * ap, s=60, color=f"C{number}", zorder=3)
        # Above and below in turn: detectors of one family lie close together.
        place = (8, -12 if number % 2 else 4)
        axes.annotate(name, (ms, 100 * ap), xytext=place, textcoords="offset points", fontsize=9)
    for name, ms in lines.items():
        axes.axvline(ms, color="0.6", linestyle=":", linewidth=1)
        axes.text(ms, 0.02, f" {name} ", rotation=90, fontsize=8, color="0.4", transform=axes.get_xaxis_transform())
    axes.set(xscale="log", xlabel="milliseconds of a picture", ylabel="AP", ylim=(-4, None))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.margins(x=0.2)
    axes.grid(alpha=0.3, which="both")
    save_figure(figure, file, dpi=130)


def main(argv: Sequence[str]) -> int:
    """Measure, print the table and draw."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", nargs="+", type=Path, help="files of recorded runs")
    parser.add_argument("--timed", nargs="*", default=[], metavar="PRESET", help="presets to time alone")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 320], metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=7, help="timed passes of each (default: 7)")
    parser.add_argument("--png", type=Path, required=True, metavar="FILE", help="the picture to write")
    args = parser.parse_args(argv)
    if min(*args.size, args.repeats) < 1:
        parser.error("--size and --repeats must be at least 1")
    try:
        by_name = read_records(args.records)
        if unfinished := [r["file"] for runs in by_name.values() for r in runs if "final" not in r]:
            raise UserError(f"the run of '{unfinished[0]}' has not ended, so it has no final figures; leave it out")
        models = {name: build(runs[0]).eval() for name, runs in by_name.items()}
        for preset in args.timed:
            config = cli.parse(Config, ["--config", preset], PROG)
            models[Path(preset).stem] = build_model(config.model, CLASSES, config.loss, "none").eval()
    except UserError as error:
        parser.error(str(error))
    ms = measure(models, args.size, args.repeats)
    rows = []
    for name, model in models.items():
        runs = by_name.get(name, [])
        finals = [r["final"] for r in runs]
        steps = f"{mean(r['steps'] for r in runs):.0f}" if runs else "-"
        minutes = f"{mean(r['cpu_seconds'] for r in runs) / 60:.1f}" if runs else "-"
        weights = f"{1e-6 * sum(p.numel() for p in model.parameters()):.1f}"
        figures = [spread([f[k] for f in finals]) for k in ("AP", "AP50")]
        rows.append([name, str(len(runs)), steps, minutes, *figures, weights, f"{ms[name]:.0f}"])
    head = ["", "runs", "steps", "CPU minutes", "AP", "AP50", "M weights", "ms a picture"]
    print(timing.markdown_table(head, rows))
    print(timing.machine_line(timing.machine(torch.device("cpu"))))
    points = {name: (ms[name], mean(r["final"]["AP"] for r in runs)) for name, runs in by_name.items()}
    draw(points, {name: ms[name] for name in models if name not in by_name}, args.png)
    return 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
