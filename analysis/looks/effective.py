"""Effective sampling locations: attention mass traced from a query through the stacked layers to the feature maps.

A query's attention is followed backwards. Its cross-attention spreads a mass of 1: each of the M heads gets 1/M, each
of its points gets that times its weight, and the four tokens around the point get that in the proportions in which the
bilinear sample reads them. Every encoder layer, last to first, spreads the mass of a token in the same way over the
points of its self-attention, except the share `residual`, which the residual path leaves on the token. Mass outside
the maps or on padding reads zero and is lost.

The idea comes from Deformable ConvNets v2 (arXiv 1811.11168, section 2), which weighs locations by the gradient. Mass
ignores values, projections, normalisation and feed-forward layers, and attention among queries. Half for the residual
path is the convention of attention rollout (arXiv 2005.00928).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.looks.sampling import Recording


@dataclass
class EffectiveLocations:
    """Where a query's attention ends, in fp64 on the CPU.

    Attributes:
        points: `[N, 2]`, (x, y) in [0, 1] of the unpadded image, strongest first.
        mass: `[N]`, mass of each point.
        levels: `[N]`, feature level of each point.
        token_mass: `[S]`, all mass, by token of the encoder's input maps; its sum is 1 less the lost mass.
    """

    points: Tensor
    mass: Tensor
    levels: Tensor
    token_mass: Tensor

    @property
    def kept(self) -> float:
        """The share of attention that reads the image; the rest lies outside the maps or on padding."""
        return float(self.token_mass.sum())


def deposit(locations: Tensor, levels: Tensor, mass: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Lay the mass of points on the tokens around them, by the weights with which a bilinear sample reads them.

    Args:
        locations: `[N, 2]`, (x, y) in [0, 1] of each level's map.
        levels: `[N]`, level of each point.
        mass: `[N]`.
        spatial_shapes: `[(H, W), ...]` of the L levels.

    Returns:
        `[S]`, mass by token; mass outside the maps is left out.
    """
    sizes = torch.tensor([(w, h) for h, w in spatial_shapes])
    starts = sizes.prod(-1).cumsum(0) - sizes.prod(-1)
    size, start = sizes[levels], starts[levels]
    pixel = locations * size - 0.5
    corner = pixel.floor()
    found = mass.new_zeros(int(sizes.prod(-1).sum()))
    for step in product((0, 1), (0, 1)):
        token = corner + torch.tensor(step)
        share = (1 - (pixel - token).abs()).prod(-1) * mass
        inside = ((token >= 0) & (token < size)).all(-1)
        x, y = token[inside].long().unbind(-1)
        found.index_add_(0, start[inside] + y * size[inside, 0] + x, share[inside])
    return found


def trace(
    record: Recording, query: int, image: int = 0, layer: int = -1, residual: float = 0.5, strongest: int = 500
) -> EffectiveLocations:
    """Follow a query's attention back to the encoder's input maps, by the rule in this module's docstring.

    Args:
        record: the recorded forward pass.
        query: index of the query.
        image: index in the batch.
        layer: decoder layer whose cross-attention is followed.
        residual: share of a token's mass that each encoder layer leaves on the token, in [0, 1).
        strongest: largest number of points to return.
    """
    shapes, padding = record.spatial_shapes, record.padding_mask[image].cpu()
    source = record.decoder[layer]
    mass = torch.ones(1, dtype=torch.float64)
    active, stays = torch.tensor([query]), torch.zeros(int(padding.numel()), dtype=torch.float64)
    moving = 1.0  # the decoder's residual path holds no part of the image
    for attention in [source, *reversed(record.encoder)]:
        if attention is not source:
            active = mass.nonzero()[:, 0]
            stays, moving = residual * mass, 1 - residual
            mass = mass[active]
        weights = attention.weights[image, active.to(attention.weights.device)].cpu().double()  # [N, M, P]
        spread = moving * mass[:, None, None] * weights / weights.shape[1]
        on_maps = attention.on_maps[image, active.to(attention.weights.device)].cpu().double()  # [N, M, P, 2]
        levels = attention.levels.cpu().expand(weights.shape).flatten()
        last = (on_maps.flatten(0, -2), levels, spread.flatten())
        mass = (stays + deposit(*last, shapes)).masked_fill(padding, 0.0)

    ratios = record.valid_ratios[image].cpu().double()  # [L, 2]
    points, levels, point_mass = last[0] / ratios[last[1]], last[1], last[2]
    if record.encoder:  # mass that stayed becomes a point in the middle of its token
        centres = record.encoder[0].references[image].cpu().double()
        of_token = torch.cat([torch.full((h * w,), i) for i, (h, w) in enumerate(shapes)])
        here = stays.nonzero()[:, 0]
        points, levels = torch.cat([points, centres[here]]), torch.cat([levels, of_token[here]])
        point_mass = torch.cat([point_mass, stays[here]])
    best = point_mass.topk(min(strongest, len(point_mass))).indices
    return EffectiveLocations(points[best], point_mass[best], levels[best], mass)


def density(
    token_mass: Tensor, spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor, size: tuple[int, int]
) -> Tensor:
    """Mass by pixel: each token's mass is spread smoothly over its cell, and all levels are summed.

    Args:
        token_mass: `[S]`, mass by token.
        spatial_shapes: `[(H, W), ...]` of the L levels.
        valid_ratios: `[L, 2]`, unpadded share (x, y) of each level.
        size: (height, width) of the picture.

    Returns:
        `[height, width]`, with the sum of `token_mass`.
    """
    total = token_mass.new_zeros(size)
    levels = token_mass.split([h * w for h, w in spatial_shapes])
    for mass, (height, width), (ratio_x, ratio_y) in zip(levels, spatial_shapes, valid_ratios.tolist()):
        grid = mass.reshape(height, width)[: round(ratio_y * height), : round(ratio_x * width)]
        fine = F.interpolate(grid[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        if fine.sum() > 0:
            total += fine * (grid.sum() / fine.sum())
    return total
