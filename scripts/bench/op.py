"""Times the operator, forward and backward, against its reference and the PyPI package torch_ms_deform_attn.

    python scripts/bench/op.py                                        # fp32 on the CPU, every backend there is
    python scripts/bench/op.py --device cuda --dtype float32 bfloat16 --batch 2 --json op.json --plot op.png
    python scripts/bench/op.py --quick                                # small maps: does it run, in seconds

Cases (8 heads of 32 channels, 4 levels with 4 points each, the maps of an image of 800x1333 pixels):
  encoder-local    every pixel of every level is a query, with points about 2.5 pixels away, as in a trained encoder
  encoder-uniform  the same with points anywhere, which is the worst case for caches
  decoder          300 queries, with points spread over the box of each
  overhead         four pixels and two queries: the cost of a call without work

Method: outputs and gradients are first compared with the reference in fp64; if one is off by more than rounding, the
run ends with exit code 1. Then contenders take turns in a new order every round, so a busy machine slows all alike.
The figures are medians over rounds. A contender that would need more than --seconds for all rounds skips some. The
backward is the difference between forward + backward and forward (without autograd) of the same turn. Short calls are
timed in bursts. On CUDA the clock is CUDA's events.

The floor is the time in which the machine copies the bytes that the operator must move: every input is read once (only
those rows of the value that are sampled), and every output is written once. Caches are not flushed between calls, so
small cases can be faster than the floor.

The package takes part where it can be imported: `pip install torch_ms_deform_attn==0.1.1`.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.bench import timing
from scripts.bench.op_contenders import CONTENDERS, available, versions
from scripts.bench.op_inputs import CASES
from scripts.bench.op_measure import Settings, measure
from scripts.bench.op_tables import markdown, notes
from util.console import exit_quietly
from util.errors import UserError

PROG = "bench/op.py"
DTYPES = ("float32", "bfloat16", "float16", "float64")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help explains)\n")


def _positive(kind: type) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = 0
        if not 0 < number < math.inf:
            words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {words} above 0, got '{text}'")
        return number

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    add(
        "--dtype", nargs="+", choices=DTYPES, default=["float32"], metavar="DTYPE",
        help=f"the value's dtype: {', '.join(DTYPES)}; several are measured one after another (default: float32). With "
        "bfloat16 and float16 our locations and weights stay fp32, as under autocast; the package's are rounded",
    )  # fmt: skip
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=f"{', '.join(CASES)} (all)")
    add("--backends", nargs="+", choices=CONTENDERS, metavar="NAME",
        help=f"{', '.join(CONTENDERS)} (default: all that can run on the device); without 'reference' or 'package' "
        "the ratios to it are dashes")  # fmt: skip
    add("--batch", type=_positive(int), default=1, metavar="B", help="images in a call (default: 1)")
    add("--repeats", type=_positive(int), metavar="N", help="rounds (default: 20, with --quick 5)")
    add("--seconds", type=_positive(float), metavar="T",
        help="time for one contender and direction in a case; slower contenders have fewer turns, at least three "
        "(default: 5, with --quick 0.2)")  # fmt: skip
    add("--threads", type=_positive(int), metavar="N", help="torch's threads on the CPU (default: torch's own choice)")
    add("--quick", action="store_true", help="small maps and few rounds, to try the script; do not quote the figures")
    add("--json", type=Path, metavar="FILE", help="write all numbers, with quartiles, in seconds and bytes")
    add("--plot", type=Path, metavar="FILE.png", help="draw the times as bars")
    return parser


def _resolve(options: argparse.Namespace) -> None:
    """Fill in defaults, and refuse impossible options before anything is measured."""
    try:
        options.device = torch.device(options.device)
    except RuntimeError as error:
        raise UserError(f"--device {options.device} is no device; take cpu, cuda or cuda:N") from error
    if options.device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {options.device} cannot be timed here; take cpu, cuda or cuda:N")
    if options.device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (options.device.index or 0) >= count:
            raise UserError(f"--device {options.device}: torch {torch.__version__} sees {count} CUDA devices here")
        torch.cuda.set_device(options.device.index or 0)
    for name, path in (("--json", options.json), ("--plot", options.plot)):
        if path is not None and path.is_dir():
            raise UserError(f"{name} {path} is a folder; name a file in it")
        if path is not None and not path.resolve().parent.is_dir():
            raise UserError(f"{name} {path}: there is no folder '{path.resolve().parent}'; make it first")
        if path is not None and not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
            raise UserError(f"{name} {path} cannot be written to; name another file")
    if options.plot is not None and options.plot.suffix != ".png":
        raise UserError(f"--plot {options.plot} must end in .png")
    options.repeats = options.repeats or (5 if options.quick else 20)
    options.seconds = options.seconds or (0.2 if options.quick else 5.0)


def main(argv: list[str] | None = None) -> int:
    """Measure, print tables in Markdown, and write the files that the options name.

    Returns:
        The exit code: 0, 1 if a contender disagrees with the reference, 2 for impossible options.
    """
    options = _parser().parse_args(argv)
    try:
        _resolve(options)
        with timing.cpu_threads(options.threads):
            report = _report(options)
    except UserError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except timing.DisagreementError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    print(markdown(report))
    if options.json is not None:
        timing.write_json(options.json, report)
    if options.plot is not None:
        from scripts.bench.op_chart import plot

        plot(report, options.plot)
    return 0


def _report(options: argparse.Namespace) -> dict:
    """Measure everything, and return the content of the JSON file."""
    names, missing = available(options.device, options.backends)
    about = timing.machine(options.device) | {"backends": versions(names)}
    kept = ("batch", "repeats", "seconds", "quick", "cases", "dtype", "backends")
    report: dict[str, Any] = {"machine": about, "settings": {name: getattr(options, name) for name in kept}}
    burst = 0.001 if options.quick else timing.BURST
    settings = Settings(options.device, options.batch, options.repeats, options.seconds, burst, options.quick)
    order = [(case, dtype) for dtype in dict.fromkeys(options.dtype) for case in dict.fromkeys(options.cases)]
    report["cases"] = [measure(case, dtype, names, settings) for case, dtype in order]
    report["notes"] = notes(report, names, missing)
    return report


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
