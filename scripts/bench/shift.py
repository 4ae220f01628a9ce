"""Times the five spatial shifts of `ops.spatial_shift`, forward and with backward, and measures their memory.

    python scripts/bench/shift.py                                     # fp32 on the CPU, all threads
    python scripts/bench/shift.py --device cuda --shape 8x64x56x56 --repeats 50

There are two cases: 4 groups, which move by one pixel to the left, right, up and down (as in S2-MLP), and as many
groups as channels, which use the nine places of a 3x3 kernel in turn (as in ShiftNet).

The results are compared first, outputs bit by bit and gradients up to rounding; if they differ, the exit code is 1.
Methods then take turns in a new order every round, so a busy machine slows all alike. The figures are medians over
rounds of bursts of calls. Slow methods skip some rounds, but have at least three turns. Ratios are to `slice`. On a
machine that others use, --threads 1 gives steadier figures, because threads wait for one another. Peak memory is that
of tensors, with inputs and results; it does not include the workspace of convolutions.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from ops import shift
from scripts.bench import timing
from scripts.bench.timing import DisagreementError, figure
from util.console import exit_quietly
from util.devices import pick_device
from util.errors import UserError
from util.measuring import MIB, measure_peak

PROG = "bench/shift.py"
SHAPES = [(8, 64, 56, 56), (2, 256, 100, 152)]
DIRECTIONS = [(-1, 0), (1, 0), (0, -1), (0, 1)]
NEIGHBOURS = [(dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
HEADER = (
    *("map", "groups", "method", "forward ms", "of slice", "with backward ms", "of slice"),
    *("peak MiB forward", "with backward"),
)


class Contender:
    """A method on one map.

    Args:
        method: a method of `spatial_shift`.
        x: the map, `[B, C, H, W]`.
        shifts: the shifts of the groups.
        grad: gradient of the output, `[B, C, H, W]`.
    """

    def __init__(self, method: str, x: Tensor, shifts: shift.Shifts, grad: Tensor):
        self.method, self.x, self.shifts, self.grad = method, x.clone().requires_grad_(), shifts, grad

    @torch.no_grad()
    def forward(self) -> Tensor:
        """The shifted map, computed without a graph."""
        return shift.spatial_shift(self.x, self.shifts, self.method)

    def both(self) -> Tensor:
        """The gradient of the map."""
        return torch.autograd.grad(shift.spatial_shift(self.x, self.shifts, self.method), self.x, self.grad)[0]


def check(contenders: list[Contender]) -> None:
    """Compare all contenders with the first.

    Raises:
        DisagreementError: an output differs in any bit, or a gradient by more than rounding.
    """
    out, grad = contenders[0].forward(), contenders[0].both()
    for other in contenders[1:]:
        if not other.forward().equal(out):
            raise DisagreementError(f"the output of {other.method} is not that of {contenders[0].method}")
        if not torch.allclose(other.both(), grad, rtol=1e-4, atol=1e-5):
            raise DisagreementError(f"the gradient of {other.method} is not that of {contenders[0].method}")


def measure(shape: tuple[int, ...], shifts: shift.Shifts, repeats: int, device: torch.device) -> list[list[str]]:
    """The table's rows for one map."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    contenders = [Contender(method, x, shifts, grad) for method in shift.METHODS]
    check(contenders)
    calls = {(c.method, d): getattr(c, d) for c in contenders for d in ("forward", "both")}
    seconds = timing.median_seconds(calls, repeats, device)
    rows = []
    for c in contenders:
        row = ["x".join(map(str, shape)), str(len(shifts)), f"`{c.method}`"]
        for direction in ("forward", "both"):
            time = seconds[c.method, direction]
            row += [figure(1e3 * time), figure(time / seconds["slice", direction])]
        row += [figure(measure_peak(c.forward, device, [c.x]) / MIB)]
        row += [figure(measure_peak(c.both, device, [c.x, c.grad]) / MIB)]
        rows.append(row)
    return rows


def map_shape(text: str) -> tuple[int, ...]:
    """Read `BxCxHxW`; C must be a multiple of 4."""
    words = text.lower().split("x")
    if len(words) != 4 or not all(word.isdecimal() and int(word) for word in words) or int(words[1]) % 4:
        raise argparse.ArgumentTypeError(f"'{text}' is not BxCxHxW with C a multiple of 4, like 8x64x56x56")
    return tuple(int(word) for word in words)


def arguments(argv: list[str] | None) -> tuple[argparse.Namespace, torch.device]:
    """Read the options and the device from the command line."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = " ".join("x".join(map(str, s)) for s in SHAPES)
    parser.add_argument(
        "--shape", nargs="+", type=map_shape, default=SHAPES, metavar="BxCxHxW", help=f"(default: {default})"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default: 15)")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU (default: torch's own choice)")
    args = parser.parse_args(argv)
    if args.repeats < 1 or (args.threads is not None and args.threads < 1):
        parser.error("--repeats and --threads must be at least 1")
    try:
        return args, pick_device(args.device)
    except UserError as error:
        parser.error(str(error))


def main(argv: list[str] | None = None) -> int:
    """Measure and print a table in Markdown; the exit code is 1 where methods disagree."""
    args, device = arguments(argv)
    rows = []
    try:
        with timing.cpu_threads(args.threads):
            about = timing.machine(device)
            for shape in args.shape:
                for shifts in (DIRECTIONS, [NEIGHBOURS[c % 9] for c in range(shape[1])]):
                    timing.progress(f"{'x'.join(map(str, shape))}, {len(shifts)} groups ...")
                    rows += measure(shape, shifts, args.repeats, device)
    except DisagreementError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    print(timing.machine_line(about | {"load_after": timing.load()}) + f", fp32, medians of {args.repeats} rounds\n")
    print(timing.markdown_table(HEADER, rows, words=3))
    return 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
