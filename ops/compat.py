"""The operator with the name and arguments of the original repository, for code that was written for it."""

from torch import Tensor

from ops.arguments import need_tensors
from ops.functional import ms_deform_attn


class MSDeformAttnFunction:
    """Replaces the original's autograd function: `MSDeformAttnFunction.apply(...)` takes the same six arguments."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor | None,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int | None = None,
    ) -> Tensor:
        """Multi-scale deformable attention with K points on every level.

        The shapes are read from their tensor, so the host waits for the GPU. `ops.ms_deform_attn` takes them as Python
        ints and does not wait.

        Args:
            value: `[B, S, M, D]`.
            value_spatial_shapes: `[L, 2]`, (H, W) of each level.
            value_level_start_index: `[L]`, the first token of each level. Levels must follow each other without a gap;
                None assumes so.
            sampling_locations: `[B, Q, M, L, K, 2]`, (x, y) in [0, 1].
            attention_weights: `[B, Q, M, L, K]`.
            im2col_step: ignored, because any batch size works.

        Returns:
            `[B, Q, M*D]`.

        Raises:
            ValueError: an argument's shape, dtype or device does not fit the others, or there are gaps between levels.
        """
        need_tensors(
            value=value,
            value_spatial_shapes=value_spatial_shapes,
            sampling_locations=sampling_locations,
            attention_weights=attention_weights,
        )
        if value_level_start_index is not None:
            need_tensors(value_level_start_index=value_level_start_index)
        if value_spatial_shapes.dim() != 2 or value_spatial_shapes.shape[1] != 2:
            raise ValueError(f"value_spatial_shapes must be [L, 2], got {list(value_spatial_shapes.shape)}")
        shapes = [(int(height), int(width)) for height, width in value_spatial_shapes.tolist()]
        starts = [sum(height * width for height, width in shapes[:level]) for level in range(len(shapes))]
        if value_level_start_index is not None and value_level_start_index.tolist() != starts:
            raise ValueError(
                f"value_level_start_index must be {starts} for spatial shapes {shapes}, "
                f"got {value_level_start_index.tolist()}"
            )
        levels, size = len(shapes), attention_weights.shape
        if len(size) != 5 or size[3] != levels or sampling_locations.shape != (*size, 2):
            raise ValueError(
                f"sampling_locations must be [B, Q, M, L={levels}, K, 2] and attention_weights "
                f"[B, Q, M, L={levels}, K], got {list(sampling_locations.shape)} and {list(size)}"
            )
        num_points = [attention_weights.shape[4]] * len(shapes)
        return ms_deform_attn(
            value, shapes, sampling_locations.flatten(3, 4), attention_weights.flatten(3, 4), num_points
        )
