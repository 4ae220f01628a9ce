"""Single-scale deformable attention as a layer on a feature map, for use outside of a transformer."""

import torch
from torch import Tensor, nn

from ops.arguments import need_like_weight, need_tensors, need_whole
from ops.module import MSDeformAttn


class DeformAttn2d(nn.Module):
    """Deformable attention between maps (arXiv 2010.04159, section 4.1, equation 2).

    Every pixel is a query. Each of its M heads samples K points of the value map around the pixel. Linear layers
    compute the points' offsets and weights from the pixel's features. Positions are not added: where they matter, add
    an encoding to `x`. With one head the layer is a single weighted sum of K samples.

    Args:
        channels: channels of the map, a multiple of `num_heads`.
        num_heads: number of heads M.
        num_points: number of sampling points K of each head.

    Attributes:
        attention: `ops.MSDeformAttn` with one level, which holds the weights.

    Raises:
        ValueError: `channels` is not a multiple of `num_heads`, or `num_points` is not positive.
    """

    def __init__(self, channels: int, num_heads: int = 8, num_points: int = 4):
        super().__init__()
        for name, number in (("channels", channels), ("num_heads", num_heads), ("num_points", num_points)):
            need_whole(name, number, least=1)
        if channels % num_heads:
            raise ValueError(f"channels {channels} is not a multiple of num_heads {num_heads}")
        self.attention = MSDeformAttn(channels, num_levels=1, num_heads=num_heads, num_points=num_points)

    def forward(
        self,
        x: Tensor,
        value: Tensor | None = None,
        padding_mask: Tensor | None = None,
        return_sampling: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Attend from every pixel to points of the value map.

        Args:
            x: `[B, C, H, W]`, the queries. The caller adds a residual, if it wants one.
            value: `[B, C, H', W']`, the sampled map, of any size; None takes `x`. Both maps show the same picture: a
                pixel looks around its own centre in [0, 1], and offsets are in pixels of the value map.
            padding_mask: `[B, H', W']`, True on padding of the value map, which reads zero; None without padding.
            return_sampling: also return the sampled locations and their weights.

        Returns:
            `[B, C, H, W]`; with `return_sampling` also locations `[B, H, W, M, K, 2]`, (x, y) in [0, 1] of the value
            map, and weights `[B, H, W, M, K]`.

        Raises:
            ValueError: the shapes do not fit each other.
        """
        value = x if value is None else value
        need_tensors(x=x, value=value, **({} if padding_mask is None else {"padding_mask": padding_mask}))
        channels = self.attention.value_proj.in_features
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"x must be [B, C={channels}, H, W], got {list(x.shape)}")
        if value.dim() != 4 or value.shape[:2] != x.shape[:2]:
            raise ValueError(f"value must be [B={len(x)}, C={channels}, H', W'] to fit x, got {list(value.shape)}")
        for name, tensor in (("x", x), ("value", value)):
            need_like_weight(name, tensor, self.attention.value_proj.weight)
        if padding_mask is not None:
            if padding_mask.shape != (len(value), *value.shape[2:]):
                raise ValueError(
                    f"padding_mask must be {[len(value), *value.shape[2:]]} to fit the value map, "
                    f"got {list(padding_mask.shape)}"
                )
            padding_mask = padding_mask.flatten(1)
        height, width = x.shape[2:]
        query, memory = (tensor.flatten(2).transpose(1, 2) for tensor in (x, value))  # [B, H*W, C]
        references = pixel_centres(height, width, x).expand(len(x), -1, 1, 2)
        out, locations, weights = self.attention(
            query, references, memory, [tuple(value.shape[2:])], padding_mask, return_sampling=True
        )
        out = out.transpose(1, 2).unflatten(2, (height, width))
        if not return_sampling:
            return out
        return out, locations.unflatten(1, (height, width)), weights.unflatten(1, (height, width))


def pixel_centres(height: int, width: int, like: Tensor) -> Tensor:
    """The centres of a map's pixels row by row, (x, y) in [0, 1], `[H*W, 1, 2]`, at least fp32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    x = (torch.arange(width, device=like.device, dtype=dtype) + 0.5) / width
    y = (torch.arange(height, device=like.device, dtype=dtype) + 0.5) / height
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1)[:, None]
