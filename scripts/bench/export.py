"""Times a detector as it is, compiled, as a program of torch.export and in ONNX Runtime, from bytes to boxes in pixels.

    python scripts/bench/export.py --config configs/finetune_small.yaml --size 256 256
    python scripts/bench/export.py --config configs/base.yaml --size 480 640 --threads 2 --repeats 5

Weights are random. Files are written for the one size, and compared with the detector as `main.py export` does.
Contenders take turns in a new order every round. The figures are medians over rounds, of the clock and of the
processor's time, which a busy machine changes less.
"""

import argparse
import copy
import itertools
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from datasets.categories import Category
from engine.export.command import FORMATS
from engine.export.graph import ImagesToDetections
from engine.export.source import Source
from engine.exported import onnx_runner, torch_runner
from models.from_config import build_model
from scripts.bench import timing
from util import cli
from util.command_config import ExportConfig
from util.config import Config, EvalDataConfig
from util.console import exit_quietly

CLASSES = 3
HEADER = ["", "ms", "speed, of eager", "processor's ms", "speed, of eager"]


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        prog="bench/export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/base.yaml", help="preset (default: configs/base.yaml)")
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--threads", type=int, help="threads on the CPU (default: torch's choice)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    args = parser.parse_args(argv)
    with timing.cpu_threads(args.threads), tempfile.TemporaryDirectory() as folder:
        contenders = make_contenders(args.config, tuple(args.size), Path(folder))
        if args.without_compile:
            del contenders["torch.compile"]
        images = torch.randint(0, 256, (1, 3, *args.size), dtype=torch.uint8)
        for name, run in contenders.items():
            timing.progress(f"{name}: warming up")
            run(images)  # what is compiled is compiled now
        clock: dict[str, list[float]] = {name: [] for name in contenders}
        processor: dict[str, list[float]] = {name: [] for name in contenders}
        for name in timing.in_turns(list(contenders), args.repeats):
            for times, took in zip((clock, processor), timing.both_clocks(partial(contenders[name], images))):
                times[name].append(took)
        about = timing.machine(torch.device("cpu"))
    rows = [[name] for name in contenders]
    for row, times in itertools.product(rows, (clock, processor)):
        middle = median(times[row[0]])
        row += [timing.figure(1000 * middle), f"{median(times['eager']) / middle:.2f}x"]
    print(f"{Path(args.config).stem}, one image of {args.size[0]}x{args.size[1]}, {timing.machine_line(about)}")
    print(timing.markdown_table(HEADER, rows))
    return 0


def make_contenders(preset: str, size: tuple[int, int], folder: Path) -> dict[str, Callable]:
    """By name what takes images `[1, 3, H, W]` in uint8 and gives boxes, scores and labels."""
    config = cli.parse(Config, ["--config", preset], "bench/export.py")
    torch.manual_seed(0)
    model = build_model(config.model, CLASSES, backbone_weights="none").eval()
    categories = [Category(i, i, str(i)) for i in range(CLASSES)]
    data = EvalDataConfig(eval_size=min(size), max_size=max(size))
    source = Source(preset, model, config.model, categories, data)
    options = ExportConfig(fixed=["x".join(map(str, size))])
    for form in ("onnx", "torch"):
        timing.progress(FORMATS[form](source, options, folder))
    (onnx,), (program,) = (list(folder.glob(f"*.{suffix}")) for suffix in ("onnx", "pt2"))
    eager = ImagesToDetections(model, options.top_k).eval()
    compiled = copy.deepcopy(eager)
    compiled.model.compile_parts()
    return {
        "eager": eager,
        "torch.compile": compiled,
        "torch.export": torch_runner(program),
        "ONNX Runtime": onnx_runner(onnx),
    }


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
