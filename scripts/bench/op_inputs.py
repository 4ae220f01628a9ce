"""The inputs of the operator's benchmark, and the bytes that a call must move."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FULL_MAPS = ((100, 167), (50, 84), (25, 42), (13, 21))  # strides 8 to 64 of 800x1333
QUICK_MAPS = ((13, 21), (7, 11), (4, 6), (2, 3))
CASES = ("encoder-local", "encoder-uniform", "decoder", "overhead")


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call, and the gradient of its output.

    Attributes:
        value: `[B, S, M, D]`.
        spatial_shapes: `[(H, W), ...]` of the L levels.
        locations: `[B, Q, M, P, 2]`, (x, y) in [0, 1].
        weights: `[B, Q, M, P]`, a softmax over P.
        points: number of points K on every level.
        grad: `[B, Q, M*D]`, the gradient of the output.
    """

    value: Tensor
    spatial_shapes: tuple[tuple[int, int], ...]
    locations: Tensor
    weights: Tensor
    points: int
    grad: Tensor

    def to(self, device: torch.device, dtype: torch.dtype, compute: torch.dtype) -> "Inputs":
        """Move to a device, with value and gradient in `dtype`, and locations and weights in `compute`."""
        return replace(
            self,
            value=self.value.to(device, dtype),
            locations=self.locations.to(device, compute),
            weights=self.weights.to(device, compute),
            grad=self.grad.to(device, dtype),
        )

    def sizes(self) -> Tensor:
        """`[P, 2]`, (W, H) of each point's map, fp64."""
        sizes = torch.tensor(self.spatial_shapes, dtype=torch.float64, device=self.locations.device)
        return sizes.flip(-1).repeat_interleave(self.points, 0)


def make_inputs(case: str, batch: int, quick: bool = False) -> Inputs:
    """Random inputs of a case, fp32 on the CPU, the same in every run.

    Args:
        case: one of `CASES`.
        batch: number of images B; the overhead case always has 1.
        quick: whether maps are small.
    """
    rng = torch.Generator().manual_seed(0)
    maps: tuple[tuple[int, int], ...] = QUICK_MAPS if quick else FULL_MAPS
    heads, channels, points = 8, 32, 4
    if case == "overhead":
        batch, maps, heads, channels, points = 1, ((2, 2),), 2, 4, 2
    tokens, levels = sum(h * w for h, w in maps), len(maps)
    queries = {"decoder": 30 if quick else 300, "overhead": 2}.get(case, tokens)

    sampled = (batch, queries, heads, levels, points, 2)
    if case == "encoder-local":
        sizes = torch.tensor(maps).flip(-1)[:, None]  # [L, 1, 2], (W, H)
        locations = _centres(maps)[:, None, None, None] + torch.randn(sampled, generator=rng) * (2.5 / sizes)
    elif case == "decoder":
        centre = torch.rand((batch, queries, 1, 1, 1, 2), generator=rng)
        extent = torch.empty_like(centre).uniform_(0.05, 0.5, generator=rng)
        locations = (
            centre + torch.randn(sampled, generator=rng) * extent / 4
        )  # the box spans two standard deviations to each side
    else:
        locations = torch.rand(sampled, generator=rng)
    return Inputs(
        value=torch.randn((batch, tokens, heads, channels), generator=rng),
        spatial_shapes=maps,
        locations=locations.flatten(3, 4),
        weights=torch.randn((batch, queries, heads, levels * points), generator=rng).softmax(-1),
        points=points,
        grad=torch.randn((batch, queries, heads * channels), generator=rng),
    )


def _centres(maps: Sequence[tuple[int, int]]) -> Tensor:
    """`[S, 2]`: (x, y) in [0, 1] of each pixel of each level."""
    of_level = []
    for height, width in maps:
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        of_level.append(torch.stack([x, y], -1).flatten(0, 1))
    return torch.cat(of_level)


def compulsory_bytes(inputs: Inputs) -> tuple[int, int]:
    """The bytes that forward and backward must move: every argument is read once, every result is written once.

    A row of the value, with D channels, is read only if a sample touches it; the value's gradient is written whole.
    """
    row = inputs.value.shape[3] * inputs.value.element_size()
    read = sampled_rows(inputs) * row + inputs.locations.nbytes + inputs.weights.nbytes
    written_back = inputs.value.nbytes + inputs.locations.nbytes + inputs.weights.nbytes
    return read + inputs.grad.nbytes, read + inputs.grad.nbytes + written_back


def sampled_rows(inputs: Inputs) -> int:
    """How many of the value's B*S*M rows are a corner of a sample."""
    batch, tokens, heads, _ = inputs.value.shape
    seen = torch.zeros(batch * tokens * heads, dtype=torch.bool, device=inputs.value.device)
    image = torch.arange(batch, device=seen.device)[:, None, None, None] * tokens
    head = torch.arange(heads, device=seen.device)[:, None]
    first, k = 0, inputs.points
    for level, (height, width) in enumerate(inputs.spatial_shapes):
        x, y = inputs.locations[..., level * k : (level + 1) * k, :].float().unbind(-1)
        left, top = (x * width - 0.5).floor().long(), (y * height - 0.5).floor().long()
        for column, row in ((left + dx, top + dy) for dx in (0, 1) for dy in (0, 1)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            token = image + first + row * width + column
            seen[(token * heads + head)[inside]] = True
        first += height * width
    return int(seen.sum())
