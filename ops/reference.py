"""The PyTorch reference of multi-scale deformable attention: any device, any dtype, differentiable twice."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
) -> Tensor:
    """`ops.ms_deform_attn` with one call of bilinear sampling for each level; heads are folded into the batch."""
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    compute = torch.promote_types(torch.promote_types(value.dtype, sampling_locations.dtype), torch.float32)

    # [B, Q, M, P, ...] -> [B*M, Q, P, ...]: a head sees only its own channels, so it is a batch entry of its own.
    locations = sampling_locations.to(compute).transpose(1, 2).flatten(0, 1)
    # Locations far away, NaN and infinity read zero; grid_sample would spread them.
    locations = locations.nan_to_num(nan=-8.0, posinf=-8.0, neginf=-8.0).clamp(-8, 8)
    weights = attention_weights.to(compute).transpose(1, 2).flatten(0, 1)
    maps = value.to(compute).permute(0, 2, 3, 1).flatten(0, 1)  # [B*M, D, S]

    out = value.new_zeros((batch * heads, channels, queries), dtype=compute)
    token, point = 0, 0
    for (height, width), k in zip(spatial_shapes, num_points):
        level = maps[:, :, token : token + height * width].unflatten(2, (height, width))
        grid = locations[:, :, point : point + k] * 2 - 1  # grid_sample counts -1 .. 1 between the outer edges
        if level.numel() and grid.numel():
            samples = bilinear_sample(level, grid)  # [B*M, D, Q, K]
            out = out + (samples * weights[:, None, :, point : point + k]).sum(-1)
        token, point = token + height * width, point + k
    # Adds zero, so that every argument has a gradient, even one without entries.
    out = out + sum(t[:0].sum() for t in (maps, locations, weights))
    return out.reshape(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)


def bilinear_sample(maps: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples with zero padding, `F.grid_sample(align_corners=False)` that can be differentiated twice.

    Args:
        maps: `[N, D, H, W]`.
        grid: `[N, Q, K, 2]`, (x, y) in [-1, 1] between the maps' outer edges.

    Returns:
        `[N, D, Q, K]`.
    """
    return _BilinearSample.apply(maps, grid)


class _BilinearSample(torch.autograd.Function):
    """`F.grid_sample`, and its own gradient in an ordinary backward pass.

    PyTorch cannot differentiate that gradient. With `create_graph=True` the sample is therefore computed by gathers,
    which have derivatives of any order.
    """

    @staticmethod
    def forward(ctx, maps: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(maps, grid)
        return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx, grad: Tensor):
        maps, grid = ctx.saved_tensors
        if torch.is_grad_enabled():
            out = _gather_bilinear(maps, grid)
            wanted = [t for t, needed in zip((maps, grid), ctx.needs_input_grad) if needed]
            found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
        return torch.ops.aten.grid_sampler_2d_backward(grad, maps, grid, 0, 0, False, list(ctx.needs_input_grad))


def _gather_bilinear(maps: Tensor, grid: Tensor) -> Tensor:
    channels, height, width = maps.shape[1:]
    x = (grid[..., 0] + 1) * (width / 2) - 0.5  # [N, Q, K]
    y = (grid[..., 1] + 1) * (height / 2) - 0.5
    left, top = x.detach().floor(), y.detach().floor()
    flat = maps.flatten(2)  # [N, D, H*W]
    out = flat.new_zeros(())
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = left + dx, top + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            index = index.long().flatten(1)[:, None].expand(-1, channels, -1)
            out = out + flat.gather(2, index).unflatten(2, grid.shape[1:3]) * weight[:, None]
    return out
