"""The multi-scale deformable attention layer: linear projections around `ops.ms_deform_attn`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ops.arguments import need_alike, need_like_weight, need_shapes, need_tensors, need_whole, said
from ops.functional import ms_deform_attn


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention (arXiv 2010.04159, section 4.1, equation 3).

    Args:
        d_model: embedding width E, a multiple of `num_heads`.
        num_levels: number of feature levels L.
        num_heads: number of heads M.
        num_points: number of sampling points K for each head, one for all levels or one for each level.

    Attributes:
        kept_points: for each level, how many of the K points a head keeps for a query: those with the largest weights,
            which are scaled to sum to one. None keeps all. It is for trained models: the choice has no gradient.

    Raises:
        ValueError: `d_model` is not a multiple of `num_heads`, or `num_points` does not fit `num_levels`.
    """

    level_of_point: Tensor
    points_of_level: Tensor

    def __init__(
        self, d_model: int = 256, num_levels: int = 4, num_heads: int = 8, num_points: int | Sequence[int] = 4
    ):
        super().__init__()
        for name, number in (("d_model", d_model), ("num_levels", num_levels), ("num_heads", num_heads)):
            need_whole(name, number, least=1)
        if d_model % num_heads:
            raise ValueError(f"d_model {d_model} is not a multiple of num_heads {num_heads}")
        points = list(num_points) if isinstance(num_points, Sequence) else [num_points] * num_levels
        if (
            not all(isinstance(k, int) for k in points)
            or len(points) != num_levels
            or min(points) < 0
            or sum(points) < 1
        ):
            raise ValueError(f"num_points {num_points} must give a count >= 0 for each of {num_levels} levels")
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, points
        self.kept_points: list[int] | None = None
        total = sum(points)

        self.sampling_offsets = nn.Linear(d_model, num_heads * total * 2)
        self.attention_weights = nn.Linear(d_model, num_heads * total)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        # Not saved, because num_points determines them. On the device, because a copy from the host would wait.
        level_of_point = [level for level, k in enumerate(points) for _ in range(k)]
        self.register_buffer("level_of_point", torch.tensor(level_of_point), persistent=False)
        self.register_buffer("points_of_level", torch.tensor([points[i] for i in level_of_point]), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The M heads look in M directions, the k-th point k pixels away; all points weigh the same (section 4.1)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads, dtype=torch.float64) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)  # [M, 2]
        directions = directions / directions.abs().max(-1, keepdim=True).values  # on the unit square's edge
        steps = torch.cat([torch.arange(1, k + 1) for k in self.num_points])  # [P]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((directions[:, None] * steps[:, None]).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None = None,
        return_sampling: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Attend from every query to sampled points of the memory.

        Args:
            query: `[B, Q, E]`, content plus position.
            reference_points: `[B, Q, L, 2]` points (x, y), or `[B, Q, L, 4]` boxes cxcywh, both in [0, 1] of each
                level's padded map.
            memory: `[B, S, E]`, the tokens of all levels.
            spatial_shapes: `[(H, W), ...]` of the L levels.
            padding_mask: `[B, S]`, True on padding, which reads zero; None without padding.
            return_sampling: also return the sampled locations and their weights.

        Returns:
            `[B, Q, E]`; with `return_sampling` also locations `[B, Q, M, P, 2]` and weights `[B, Q, M, P]`.

        Raises:
            ValueError: an argument's shape, dtype or device does not fit the others.
        """
        self._check(query, reference_points, memory, spatial_shapes, padding_mask)
        value = self.value_proj(memory)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))  # [B, S, M, D]

        # Under autocast too, locations and weights keep the references' precision: half a pixel matters.
        dtype = reference_points.dtype
        weights = self.attention_weights(query).to(dtype).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        offsets = self.sampling_offsets(query).to(dtype).unflatten(-1, (self.num_heads, -1, 2))  # [B, Q, M, P, 2]
        locations = self._locations(reference_points, offsets, spatial_shapes)

        points = self.num_points
        if self.kept_points is not None:
            points = self.kept_points
            locations, weights = strongest_points(locations, weights, self.num_points, points)

        out = ms_deform_attn(value, spatial_shapes, locations, weights, points)
        out = self.output_proj(out)
        return (out, locations, weights) if return_sampling else out

    def _check(self, query, reference_points, memory, spatial_shapes, padding_mask) -> None:
        need_tensors(query=query, reference_points=reference_points, memory=memory)
        need_shapes(spatial_shapes)
        if len(spatial_shapes) != self.num_levels:
            raise ValueError(f"spatial_shapes must have {self.num_levels} levels, got {said(spatial_shapes)}")
        width = self.value_proj.in_features
        for name, tensor in (("query", query), ("memory", memory)):
            if tensor.dim() != 3 or tensor.shape[2] != width:
                raise ValueError(f"{name} must be [B, length, E={width}], got {list(tensor.shape)}")
        batch, queries, _ = query.shape
        if memory.shape[0] != batch:
            raise ValueError(f"memory has a batch of {memory.shape[0]}, but query has one of {batch}")
        shape = reference_points.shape
        if len(shape) != 4 or shape[0] not in (1, batch) or shape[1] not in (1, queries) or shape[3] not in (2, 4):
            raise ValueError(
                f"reference_points must be [B={batch}, Q={queries}, L={self.num_levels}, 2 (x, y) or 4 (cxcywh)], got "
                f"{list(shape)}"
            )
        if shape[2] != self.num_levels:
            raise ValueError(f"reference_points must have {self.num_levels} levels, got {list(shape)}")
        need_alike("query", query=query, reference_points=reference_points, memory=memory)
        need_like_weight("query", query, self.attention_weights.weight)
        need_like_weight("memory", memory, self.value_proj.weight)
        if padding_mask is not None:
            need_tensors(padding_mask=padding_mask)
            if padding_mask.shape != memory.shape[:2] or padding_mask.dtype is not torch.bool:
                raise ValueError(f"padding_mask must be {list(memory.shape[:2])} of bool, got {said(padding_mask)}")

    def _locations(self, reference_points: Tensor, offsets: Tensor, spatial_shapes) -> Tensor:
        reference = reference_points[:, :, self.level_of_point][:, :, None]  # [B, Q, 1, P, 2 or 4]
        if reference.shape[-1] == 2:  # offsets are in pixels of the level, so divide by (W, H)
            sizes = [
                torch.stack([offsets.new_full((points,), side) for side in (width, height)], -1)
                for points, (height, width) in zip(self.num_points, spatial_shapes)
            ]
            return reference + offsets / torch.cat(sizes)  # [P, 2]
        # Offsets are in K-ths of half the box, so the initial points reach its edge.
        return reference[..., :2] + offsets / self.points_of_level[:, None] * reference[..., 2:] * 0.5


def strongest_points(
    locations: Tensor, weights: Tensor, num_points: Sequence[int], kept: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """For each head and level, keep the points with the largest weights, strongest first.

    Args:
        locations: `[B, Q, M, P, 2]`.
        weights: `[B, Q, M, P]`.
        num_points: number of points K of each level, P in all.
        kept: how many points to keep on each level, P' in all.

    Returns:
        Locations `[B, Q, M, P', 2]` and weights `[B, Q, M, P']`, scaled to sum to one.
    """
    chosen = [w.topk(k, -1) for w, k in zip(weights.split(list(num_points), -1), kept)]
    parts = zip(locations.split(list(num_points), -2), chosen)
    locations = torch.cat([x.gather(-2, c.indices[..., None].expand(*c.indices.shape, 2)) for x, c in parts], -2)
    weights = torch.cat([c.values for c in chosen], -1)
    return locations, weights / weights.sum(-1, keepdim=True)
