"""Times deformable convolution and RoI pooling beside torchvision's operators, forward and with backward.

    python scripts/bench/deform.py                                    # fp32 on the CPU, all threads
    python scripts/bench/deform.py --device cuda --repeats 50

Convolutions are 3x3 and modulated (v2), with the sizes of a ResNet-50's stages at 800x1066 pixels and of one stage of a
ResNeXt. `conv2d` is the ordinary convolution of the same size. RoIs are pooled into 7x7 bins of four samples. Outputs
and gradients are compared first; if they differ, the exit code is 1. Contenders then take turns in a new order every
round. Figures are medians over rounds, and ratios are to torchvision's operator. Slow contenders skip some rounds, but
have at least three turns. Peak memory is that of tensors, with inputs and results.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from ops import deform_conv2d, deform_roi_pool, ps_roi_pool
from scripts.bench import timing
from scripts.bench.timing import DisagreementError, figure
from util.console import exit_quietly
from util.devices import pick_device
from util.errors import UserError
from util.measuring import MIB, measure_peak

PROG = "bench/deform.py"
# B, C, H, W, groups: stages 3 to 5 of a ResNet-50 at 800x1066, and stage 4 of a ResNeXt-101 64x4d.
CONVOLUTIONS = [(1, 128, 100, 134, 1), (1, 256, 50, 67, 1), (1, 512, 25, 34, 1), (1, 1024, 50, 67, 64)]
POOLED = (2, 256, 50, 67)  # the map of the RoIs, 64 of each image
HEADER = (
    *("operator", "map", "implementation", "forward ms", "of torchvision", "with backward ms", "of torchvision"),
    *("peak MiB forward", "with backward"),
)


@dataclass
class Contender:
    """An implementation on some inputs.

    Attributes:
        name: the name in the table.
        run: maps the inputs to an output.
        inputs: the inputs, which get gradients.
        agrees: whether it should give the same result as the first contender.
    """

    name: str
    run: Callable[..., Tensor]
    inputs: Sequence[Tensor]
    agrees: bool = True

    @torch.no_grad()
    def forward(self) -> Tensor:
        """The output, computed without a graph."""
        return self.run(*self.inputs)

    def both(self) -> tuple[Tensor, ...]:
        """The gradients of the inputs, for a gradient of one everywhere."""
        return torch.autograd.grad(self.run(*self.inputs).sum(), self.inputs)


def convolutions(shape: tuple[int, ...], device: torch.device) -> tuple[str, str, list[Contender]]:
    """Name, map and contenders for a deformable convolution."""
    batch, channels, height, width, groups = shape
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    x, weight = draw(batch, channels, height, width), draw(channels, channels // groups, 3, 3) / 50
    # Keep away from whole pixels, where the offsets' gradient is one-sided.
    offsets = 2 * draw(batch, 18, height, width)
    offsets = offsets.floor() + 0.1 + 0.8 * (offsets - offsets.floor())
    modulation = draw(batch, 9, height, width).sigmoid()
    x, weight, offsets, modulation = inputs = [t.to(device).requires_grad_() for t in (x, weight, offsets, modulation)]

    def deformed(x, weight, offsets, modulation, backend):
        return deform_conv2d(x, offsets, weight, None, 1, 1, 1, modulation, backend)

    contenders = [Contender(name, partial(deformed, backend=name), inputs) for name in ("torchvision", "sampling")]
    plain = partial(F.conv2d, padding=1, groups=groups)
    contenders.append(Contender("conv2d", plain, (x, weight), agrees=False))
    name = "deformable convolution" + (f", {groups} groups" if groups > 1 else "")
    return name, "x".join(map(str, shape[:4])), contenders


def pooling(device: torch.device) -> list[tuple[str, str, list[Contender]]]:
    """Names, maps and contenders for plain and position-sensitive RoI pooling."""
    generator, stride, bins = torch.Generator().manual_seed(0), 16, 7
    batch, channels, height, width = POOLED
    corners = torch.rand(64 * batch, 2, 2, generator=generator).sort(1).values * torch.tensor([width, height]) * stride
    images = torch.arange(batch).repeat_interleave(64)[:, None].float()
    rois = torch.cat([images, corners.flatten(1)], 1).to(device)
    found = []
    for name, maps, theirs, ours, moved in (
        ("RoI pooling", channels, torchvision.ops.roi_align, deform_roi_pool, (len(rois), bins, bins, 2)),
        ("position-sensitive", 20 * bins**2, torchvision.ops.ps_roi_align, ps_roi_pool, (len(rois), 1, bins, bins, 2)),
    ):
        x = torch.randn(batch, maps, height, width, generator=generator).to(device).requires_grad_()
        offsets = torch.randn(moved, generator=generator).to(device).requires_grad_()
        common: dict[str, Any] = {"output_size": bins, "spatial_scale": 1 / stride, "sampling_ratio": 2}
        more = {"aligned": True} if theirs is torchvision.ops.roi_align else {}
        pool = partial(ours, rois=rois, **common)
        contenders = [
            Contender("torchvision", partial(theirs, boxes=rois, **common, **more), (x,)),
            Contender("ours, no offsets", pool, (x,)),
            Contender("ours, with offsets", lambda x, offsets, p=pool: p(x, offsets=offsets), (x, offsets), False),
        ]
        found.append((f"{name}, {len(rois)} RoIs", "x".join(map(str, x.shape)), contenders))
    return found


def check(contenders: Sequence[Contender]) -> None:
    """Run all contenders, and compare those that should agree with the first.

    Raises:
        DisagreementError: an output or a gradient differs by more than rounding.
    """
    out, gradients = contenders[0].forward(), contenders[0].both()
    for other in contenders[1:]:
        pairs = [(other.forward(), out), *zip(other.both(), gradients)]
        if other.agrees and not all((a - b).abs().max() <= 1e-3 * b.abs().max() for a, b in pairs):
            raise DisagreementError(f"{other.name} does not compute what {contenders[0].name} does")


def measure(name: str, where: str, contenders: list[Contender], repeats: int, device: torch.device) -> list[list[str]]:
    """The table's rows for one operator on one map."""
    check(contenders)
    calls = {(c.name, d): getattr(c, d) for c in contenders for d in ("forward", "both")}
    seconds, rows = timing.median_seconds(calls, repeats, device), []
    for c in contenders:
        row = [name, where, f"`{c.name}`"]
        for direction in ("forward", "both"):
            time = seconds[c.name, direction]
            row += [figure(1e3 * time), figure(time / seconds[contenders[0].name, direction])]
        row += [figure(measure_peak(call, device, c.inputs) / MIB) for call in (c.forward, c.both)]
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure and print a table in Markdown; the exit code is 1 where contenders disagree."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: 9)")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    try:
        device = pick_device(args.device)
    except UserError as error:
        parser.error(str(error))
    about, rows = timing.machine(device), []
    try:
        for case in [*(convolutions(shape, device) for shape in CONVOLUTIONS), *pooling(device)]:
            timing.progress(f"{case[0]} of {case[1]} ...")
            rows += measure(*case, args.repeats, device)
    except DisagreementError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    print(timing.machine_line(about | {"load_after": timing.load()}) + f", fp32, medians of {args.repeats} rounds\n")
    print(timing.markdown_table(HEADER, rows, words=3))
    return 0


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
