"""Spatial shift: groups of channels move by fixed numbers of pixels. Five methods give the same result."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from ops.arguments import need_tensors, said

Shifts = Sequence[tuple[float, float]]
WholeShifts = Sequence[tuple[int, int]]


def spatial_shift(x: Tensor, shifts: Shifts, method: str = "slice") -> Tensor:
    """Move each group of channels by its own step; border pixels are repeated.

    `out[..., y, x] = x[..., y - dy, x - dx]`, with the source's coordinates clamped to the map. With a 1x1
    convolution before and after, it replaces a spatial convolution: ShiftNet (arXiv 1711.08141, one group for each
    place of the kernel), S2-MLP (arXiv 2106.07477, four groups and four directions), Active Shift (arXiv 1806.07370,
    fractions of a pixel, read bilinearly).

    All methods give the same numbers: bit by bit for whole pixels (on CUDA unless a convolution takes TF32), and up to
    rounding for fractions. They differ in cost, which `scripts/bench/shift.py` measures; on one CPU thread:

    - `slice` copies each group once. It is the fastest, except in forward with many groups of a small map, where it is
      slower by a third. Use it for whole pixels.
    - `roll` copies as much and repairs the border in place. It takes 0.7 to 1.2 times as long as `slice`, with backward
      up to 2 times.
    - `grid_sample` takes about 2 times as long as `slice` with 4 groups, at any distance. Use it for fractions in few
      groups, and for far shifts. Its grid has two numbers for every group and pixel, so time and memory grow with the
      number of groups.
    - `depthwise_conv` takes 0.7 to 4 times as long as `slice` for steps of one pixel, with any number of groups. Use it
      for fractions in many groups, and for a second derivative. Its kernel spans all shifts, so its cost grows with
      their area, and NaN and infinity spread that far.
    - `deform_conv` shows that a shift is a deformable convolution with constant offsets. It takes 8 to 50 times as long
      as `slice`.

    Differentiable in `x`; twice with `slice`, `roll` and `depthwise_conv`.

    Args:
        x: `[B, C, H, W]`, floating point.
        shifts: (dx, dy) in pixels, to the right and down, for each of G groups of C/G neighbouring channels. Only
            `depthwise_conv`, `deform_conv` and `grid_sample` take fractions of a pixel.
        method: one of `METHODS`.

    Returns:
        `[B, C, H, W]` in the dtype of `x`, also under autocast.

    Raises:
        ValueError: the method is unknown, the number of groups does not divide the channels, or a shift is not finite
            or a fraction that the method cannot do.
    """
    need_tensors(x=x)
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method {said(method)} is unknown; there are: {', '.join(METHODS)}")
    if x.dim() != 4 or not x.is_floating_point() or 0 in x.shape[1:]:
        raise ValueError(f"x must be [B, C, H, W], floating point, with pixels, got {list(x.shape)} of {x.dtype}")
    if not isinstance(shifts, Sequence):
        raise ValueError(f"shifts must be pairs (dx, dy) of finite numbers, got {said(shifts)}")
    if len(shifts) == 0 or x.shape[1] % len(shifts):
        raise ValueError(f"shifts has {len(shifts)} entries, which do not divide the {x.shape[1]} channels of x")
    for step in shifts:
        if not isinstance(step, Sequence) or len(step) != 2 or not all(map(_is_distance, step)):
            raise ValueError(f"shifts must be pairs (dx, dy) of finite numbers, got {said(step)}")
    whole = all(d % 1 == 0 for step in shifts for d in step)
    if not whole and method not in SUBPIXEL:
        raise ValueError(
            f"shifts {list(shifts)} are not whole pixels, which method '{method}' needs; {', '.join(SUBPIXEL)} do "
            "fractions"
        )
    # A shift beyond the map's length changes nothing more, but would make kernels and padding larger.
    height, width = x.shape[-2:]
    number = int if whole else float
    return METHODS[method](x, [(_limit(number(dx), width - 1), _limit(number(dy), height - 1)) for dx, dy in shifts])


def _is_distance(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _limit(step: float, most: int) -> float:
    return max(-most, min(step, most))


def _slice(x: Tensor, shifts: WholeShifts) -> Tensor:
    groups = x.chunk(len(shifts), 1)
    return torch.cat([_slide(_slide(group, dx, -1), dy, -2) for group, (dx, dy) in zip(groups, shifts)], 1)


def _slide(x: Tensor, step: int, dim: int) -> Tensor:
    """Move along one axis, and repeat the border in the gap."""
    if step == 0:
        return x
    size = x.shape[dim]
    shape = list(x.shape)
    shape[dim] = abs(step)
    if step > 0:
        return torch.cat([x.narrow(dim, 0, 1).expand(shape), x.narrow(dim, 0, size - step)], dim)
    return torch.cat([x.narrow(dim, -step, size + step), x.narrow(dim, size - 1, 1).expand(shape)], dim)


def _roll(x: Tensor, shifts: WholeShifts) -> Tensor:
    groups = x.chunk(len(shifts), 1)
    return torch.cat([_mend(group.roll((dy, dx), (-2, -1)), dx, dy) for group, (dx, dy) in zip(groups, shifts)], 1)


def _mend(rolled: Tensor, dx: int, dy: int) -> Tensor:
    """Overwrite in place what re-entered on the other side with the border, first columns, then rows."""
    for step, dim in ((dx, -1), (dy, -2)):
        size = rolled.shape[dim]
        if step > 0:
            rolled.narrow(dim, 0, step).copy_(rolled.narrow(dim, step, 1))
        elif step < 0:
            rolled.narrow(dim, size + step, -step).copy_(rolled.narrow(dim, size + step - 1, 1))
    return rolled


def _depthwise_conv(x: Tensor, shifts: Shifts) -> Tensor:
    channels = x.shape[1]
    (columns, left, right), (rows, above, below) = (_taps(steps, x) for steps in zip(*shifts))
    kernel = (rows[:, :, None] * columns[:, None]).repeat_interleave(channels // len(shifts), 0)  # [C, rows, columns]
    padded = F.pad(x, (left, right, above, below), mode="replicate")
    with torch.autocast(x.device.type, enabled=False):  # a shift must not round
        return F.conv2d(padded, kernel[:, None], groups=channels)


def _taps(steps: Sequence[float], like: Tensor) -> tuple[Tensor, int, int]:
    """A 1-d kernel `[G, taps]` for each group along an axis, and how many pixels it reaches backwards and forwards.

    A convolution reads at the pixel plus the tap, so the tap of a shift is its negative. The bilinear weights form a
    triangle around it; for whole pixels they are a one among zeros.
    """
    before, after = max(0, math.ceil(max(steps))), max(0, math.ceil(-min(steps)))
    taps = torch.arange(-before, after + 1, device=like.device, dtype=torch.float64)
    away = taps + torch.tensor(steps, device=like.device, dtype=torch.float64)[:, None]
    return (1 - away.abs()).clamp_min(0).to(like.dtype), before, after


def _deform_conv(x: Tensor, shifts: Shifts) -> Tensor:
    batch, channels, height, width = x.shape
    precise = x.to(torch.promote_types(x.dtype, torch.float32))  # positions have the same dtype
    # Offsets are the negative shifts, cut at the map's edge, because the operator reads zero outside.
    dx, dy = (
        _sources(steps, size, precise) - torch.arange(size, device=x.device)
        for steps, size in zip(zip(*shifts), (width, height))
    )
    offsets = torch.stack([dy[:, :, None].expand(-1, -1, width), dx[:, None].expand(-1, height, -1)], 1)  # [G, 2, H, W]
    offsets = offsets.to(precise.dtype).flatten(0, 1).expand(batch, -1, -1, -1)
    identity = precise.new_ones((channels, 1, 1, 1))
    return deform_conv2d(precise, offsets, identity).to(x.dtype)


def _grid_sample(x: Tensor, shifts: Shifts) -> Tensor:
    batch, channels, height, width = x.shape
    precise = x.to(torch.promote_types(x.dtype, torch.float32))  # the grid has the same dtype
    u, v = (
        (2 * _sources(steps, size, precise) + 1) / size - 1  # -1 .. 1 between the map's outer edges
        for steps, size in zip(zip(*shifts), (width, height))
    )
    grid = torch.stack([u[:, None].expand(-1, height, -1), v[:, :, None].expand(-1, -1, width)], -1)  # [G, H, W, 2]
    grid = grid.to(precise.dtype).repeat(batch, 1, 1, 1)
    # With bilinear sampling, rounded coordinates would mix neighbours; the nearest pixel is exact on maps of any size.
    whole = all(d % 1 == 0 for step in shifts for d in step)
    maps = precise.reshape(batch * len(shifts), channels // len(shifts), height, width)
    mode = "nearest" if whole else "bilinear"
    return F.grid_sample(maps, grid, mode, padding_mode="border", align_corners=False).view_as(x).to(x.dtype)


def _sources(steps: Sequence[float], size: int, like: Tensor) -> Tensor:
    """Where every pixel of an axis reads, in pixels, `[G, size]`, fp64 where the device has it."""
    dtype = like.dtype if like.device.type == "mps" else torch.float64
    places = torch.arange(size, device=like.device, dtype=dtype)
    return (places - torch.tensor(steps, device=like.device, dtype=dtype)[:, None]).clamp(0, size - 1)


METHODS: dict[str, Callable[..., Tensor]] = {
    "slice": _slice,
    "roll": _roll,
    "depthwise_conv": _depthwise_conv,
    "deform_conv": _deform_conv,
    "grid_sample": _grid_sample,
}
SUBPIXEL = ("depthwise_conv", "deform_conv", "grid_sample")
