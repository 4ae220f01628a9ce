"""Pooling of regions of interest (RoIs) with learned offsets, plain and position-sensitive.

Both functions compute where each bin samples and leave the sampling to `ops.ms_deform_attn`. They therefore have its
backends, and keep no tensor of all samples' features. The project's sampling rule holds (pixel = location * size - 0.5,
bilinear), with RoI align's rule at the borders: a sample up to one pixel outside the outermost pixel centres is moved
to the nearest of them; one farther outside reads zero. Without offsets the functions therefore equal torchvision's
`roi_align` and `ps_roi_align` for every RoI.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.arguments import need_alike, need_number, need_tensors, need_whole, pair_of
from ops.functional import ms_deform_attn


def deform_roi_pool(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    offsets: Tensor | None = None,
    modulation: Tensor | None = None,
    gamma: float = 0.1,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Tensor:
    """Deformable RoI pooling (arXiv 1703.06211, section 2.2), with modulation (1811.11168, section 3.2).

    A RoI is cut into h x w bins. A bin takes the mean of a regular grid of bilinear samples in it, all moved by the
    bin's offset, and multiplies it by the bin's modulation. Without offsets and modulation this is
    `torchvision.ops.roi_align`.

    Features, offsets and modulation get gradients; RoIs are constants. No step waits for the device.

    Args:
        features: `[B, C, H, W]`, fp32, fp64, fp16 or bf16; under autocast fp32 is cast to autocast's dtype.
        rois: `[R, 5]`, (image index, x0, y0, x1, y1), in pixels of the image. On the CPU, a RoI whose image is not in
            the batch, or that is not finite, is refused. Elsewhere, and in compiled code, asking would wait for the
            device: there all that such a RoI gives is NaN.
        output_size: bins (h, w), or one number for both.
        spatial_scale: pixels of the map for one pixel of the image, 1/stride.
        offsets: `[R, h, w, 2]`, (x, y): a bin moves by gamma * offset * the RoI's (width, height).
        modulation: `[R, h, w]`, a factor for each bin.
        gamma: scale of the offsets.
        sampling_ratio: samples of a bin along each axis.
        aligned: if True, pixel centres lie at half-integer coordinates, as everywhere in this project. If False, they
            lie at integers, and a RoI is at least one pixel of the map wide and high (also for its offsets), as in the
            first RoI align.

    Returns:
        `[R, C, h, w]` in the dtype of `features`, or autocast's; channels last in memory.

    Raises:
        ValueError: a shape, type, device or number does not fit.
    """
    bins = bins_of(output_size)
    _check_numbers(spatial_scale, gamma, sampling_ratio)
    _check(features, rois, bins, offsets, modulation, ())
    if offsets is not None:
        offsets = offsets[:, None]
    if modulation is not None:
        modulation = modulation[:, None]
    locations, weights, shape = _samples(
        features, rois, bins, spatial_scale, offsets, modulation, gamma, sampling_ratio, aligned
    )
    value = _stack_images(features.permute(0, 2, 3, 1)[..., None, :])  # [1, S, 1, C]
    # One query for each bin of each RoI, with a single head that has all channels.
    locations, weights = locations.flatten(0, 3)[None, :, None], weights.flatten(0, 3)[None, :, None]
    out = ms_deform_attn(value, [shape], locations, weights, [sampling_ratio**2])  # [1, R*h*w, C]
    out = out.reshape(rois.shape[0], *bins, features.shape[1]).permute(0, 3, 1, 2)
    return _spoil_strays(out, rois, features.shape[0])


def ps_roi_pool(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    offsets: Tensor | None = None,
    modulation: Tensor | None = None,
    gamma: float = 0.1,
    sampling_ratio: int = 2,
) -> Tensor:
    """Position-sensitive RoI pooling, deformable (arXiv 1703.06211, section 2.2, figure 4) if offsets are given.

    Unlike in `deform_roi_pool`, bin (i, j) of output channel c reads its own map: channel (c*h + i)*w + j of the
    features. Without offsets this is `torchvision.ops.ps_roi_align`, whose RoIs have no minimum size and whose pixel
    centres lie at half-integer coordinates.

    Args:
        features: `[B, C*h*w, H, W]`, the score maps, with the dtypes of `deform_roi_pool`.
        rois: `[R, 5]`, (image index, x0, y0, x1, y1), as in `deform_roi_pool`.
        output_size: bins (h, w), or one number for both.
        spatial_scale: pixels of the map for one pixel of the image, 1/stride.
        offsets: `[R, G, h, w, 2]`, (x, y) as in `deform_roi_pool`, for G groups (classes) of C/G consecutive
            output channels.
        modulation: `[R, G, h, w]`, a factor for each bin; the offsets' G, if there are offsets.
        gamma: scale of the offsets.
        sampling_ratio: samples of a bin along each axis.

    Returns:
        `[R, C, h, w]` in the dtype of `features`, or autocast's.

    Raises:
        ValueError: a shape, type, device or number does not fit.
    """
    bins = bins_of(output_size)
    _check_numbers(spatial_scale, gamma, sampling_ratio)
    given = modulation if offsets is None else offsets
    groups = given.shape[1] if isinstance(given, Tensor) and given.dim() >= 2 else 1
    _check(features, rois, bins, offsets, modulation, (groups,))
    num_bins = bins[0] * bins[1]
    if features.shape[1] % num_bins:
        raise ValueError(f"features has {features.shape[1]} channels, not a multiple of {bins[0]} x {bins[1]} bins")
    channels = features.shape[1] // num_bins
    if groups < 1 or channels % groups:
        name = "modulation" if offsets is None else "offsets"
        raise ValueError(f"{name} has {groups} groups, which do not divide the {channels} output channels")
    locations, weights, shape = _samples(
        features, rois, bins, spatial_scale, offsets, modulation, gamma, sampling_ratio, True
    )
    # One query for each RoI, with a head for each bin of each group: a head's channels are those of the group.
    maps = features.unflatten(1, (groups, channels // groups, num_bins)).permute(0, 4, 5, 1, 3, 2)
    value = _stack_images(maps.flatten(3, 4))  # [1, S, G*h*w, C/G]
    locations, weights = locations.flatten(1, 3)[None], weights.flatten(1, 3)[None]
    out = ms_deform_attn(value, [shape], locations, weights, [sampling_ratio**2])  # [1, R, G*h*w*C/G]
    out = out.reshape(rois.shape[0], groups, *bins, channels // groups)
    return _spoil_strays(out.permute(0, 1, 4, 2, 3).flatten(1, 2), rois, features.shape[0])


def bins_of(output_size: int | tuple[int, int]) -> tuple[int, int]:
    """The bins (h, w) of an `output_size`.

    Raises:
        ValueError: `output_size` is neither a positive number nor two of them.
    """
    return pair_of("output_size", output_size, least=1)


# The images of a batch are stacked into one map, so a RoI's image is a number of rows to add. RoIs then need not be
# sorted by image, for which the host would have to wait for their counts. The price is precision: in fp32 a location is
# exact to about B*H * 1e-7 pixels. A row of zeros below each image keeps samples at its edge out of the next image.
def _separator(batch: int) -> int:
    return 1 if batch > 1 else 0


def _stack_images(maps: Tensor) -> Tensor:
    """`[B, H, W, M, D]` -> `[1, S, M, D]`, the tokens of all images one after the other."""
    if separator := _separator(maps.shape[0]):
        maps = F.pad(maps, (0, 0, 0, 0, 0, 0, 0, separator))
    return maps.flatten(0, 2)[None]


def _samples(
    features: Tensor,
    rois: Tensor,
    bins: tuple[int, int],
    spatial_scale: float,
    offsets: Tensor | None,  # [R, G, h, w, 2]
    modulation: Tensor | None,  # [R, G, h, w]
    gamma: float,
    ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Locations `[R, G, h, w, K, 2]` on the stacked images, weights `[R, G, h, w, K]`, and the stack's (rows, W)."""
    batch, _, height, width = features.shape
    compute = torch.float64 if features.dtype is torch.float64 else torch.float32
    rois = rois.detach().to(compute)
    # In pixel indices: pixel 0 has its centre at 0, half a pixel from the map's edge.
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    start, size = corners[:, :2], corners[:, 2:] - corners[:, :2]  # (x, y)
    if not aligned:
        size = size.clamp(min=1)

    x = _grid(start[:, 0], size[:, 0], bins[1], ratio)[:, None, None, :, None, :]  # [R, 1, 1, w, 1, ratio]
    y = _grid(start[:, 1], size[:, 1], bins[0], ratio)[:, None, :, None, :, None]  # [R, 1, h, 1, ratio, 1]
    if offsets is not None:
        moved = gamma * offsets.to(compute) * size[:, None, None, None]
        x, y = x + moved[..., 0, None, None], y + moved[..., 1, None, None]
    read = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
    weights = read.to(compute) / ratio**2  # [R, G, h, w, ratio, ratio]
    if modulation is not None:
        weights = weights * modulation.to(compute)[..., None, None]

    rows = height + _separator(batch)
    y = _clamp(y, height - 1) + rois[:, 0, None, None, None, None, None] * rows
    x, y, weights = torch.broadcast_tensors((_clamp(x, width - 1) + 0.5) / width, (y + 0.5) / (batch * rows), weights)
    return torch.stack([x, y], -1).flatten(-3, -2), weights.flatten(-2), (batch * rows, width)


def _grid(start: Tensor, size: Tensor, bins: int, ratio: int) -> Tensor:
    """Where RoIs `[R]` sample along one axis without offsets: `[R, bins, ratio]`."""
    step = size[:, None] / bins
    edges = start[:, None] + torch.arange(bins, device=start.device) * step
    inner = (torch.arange(ratio, device=start.device) + 0.5) * step / ratio
    return edges[:, :, None] + inner[:, None]


def _clamp(position: Tensor, last: int) -> Tensor:
    """Clamp to [0, last], with no gradient at the ends, where sampling has the slope towards the zeros outside."""
    return torch.where((position > 0) & (position < last), position, position.detach().clamp(0, last))


def _check_numbers(spatial_scale, gamma, sampling_ratio) -> None:
    need_number("spatial_scale", spatial_scale, above=0)
    need_number("gamma", gamma)
    need_whole("sampling_ratio", sampling_ratio, least=1)


def _check(features, rois, bins, offsets, modulation, groups) -> None:
    optional = {"offsets": offsets, "modulation": modulation}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    need_tensors(features=features, rois=rois, **given)
    if features.dim() != 4 or 0 in features.shape[2:]:
        raise ValueError(f"features must be [B, C, H, W] with pixels, got {list(features.shape)}")
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois must be [R, 5] (image index, x0, y0, x1, y1), got {list(rois.shape)}")
    shape = (rois.shape[0], *groups, *bins)
    for name, tensor, expected in (("offsets", offsets, (*shape, 2)), ("modulation", modulation, shape)):
        if tensor is not None and tensor.shape != expected:
            raise ValueError(f"{name} must be {list(expected)}, got {list(tensor.shape)}")
    need_alike("features", features=features, rois=rois, offsets=offsets, modulation=modulation)
    if _can_ask(rois):
        strays = ~_in_batch(rois, features.shape[0])
        if strays.any():
            first = int(strays.nonzero()[0])
            raise ValueError(
                f"rois[{first}] is {rois[first].tolist()}; it must be finite, and its first number the index of one of "
                f"the {features.shape[0]} images of features"
            )


def _can_ask(rois: Tensor) -> bool:
    """Whether the host has the numbers at hand."""
    return rois.device.type == "cpu" and not torch.compiler.is_compiling()


def _in_batch(rois: Tensor, batch: int) -> Tensor:
    """Which RoIs `[R, 5]` are finite and of an image of the batch, `[R]`."""
    image = rois[:, 0]
    return (image >= 0) & (image < batch) & (image == image.floor()) & rois.isfinite().all(1)


def _spoil_strays(out: Tensor, rois: Tensor, batch: int) -> Tensor:
    """NaN for RoIs that could not be refused: zeros would pass for what they are not."""
    if _can_ask(rois):
        return out
    return out.masked_fill(~_in_batch(rois.detach(), batch)[:, None, None, None], torch.nan)
