"""Deformable convolution, v1 and v2 (arXiv 1703.06211, 1811.11168)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from ops.arguments import need_alike, need_like_weight, need_tensors, need_whole, pair_of
from ops.functional import autocast_type, ms_deform_attn, selected_backend

BACKENDS = ("sampling", "torchvision")
FAR = 1e6  # pixels, outside every map, where zero is read; for NaN torchvision would read arbitrary memory


def deform_conv2d(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    modulation: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """A convolution whose kernel points are moved by offsets (1703.06211, equation 2; 1811.11168, equation 1).

    Kernel point k reads `x(p + p_k + offset_k) * modulation_k`, bilinearly and zero outside, by the sampling rule of
    this package. With zero offsets and no modulation it is `F.conv2d`; without modulation it is version 1.

    Two implementations give the same results. `torchvision` is `torchvision.ops.deform_conv2d`. `sampling` takes the
    samples by `ms_deform_attn`, with offset groups as heads and kernel points as queries, and multiplies them by the
    weights. On CPUs it is many times faster, because torchvision samples on one thread there. It takes half precision
    and can be differentiated twice. However, it keeps the samples `[B, h*w*k_h*k_w, C]` for the backward pass, whereas
    torchvision samples again.

    Args:
        x: `[B, C, H, W]`.
        offsets: `[B, 2*G*k_h*k_w, h, w]` in pixels of x: for each of G offset groups and each kernel point (row by
            row) first y, then x, as in torchvision.
        weight: `[O, C/groups, k_h, k_w]`.
        bias: `[O]`.
        stride, padding, dilation: as in `F.conv2d`, one number or (vertical, horizontal).
        modulation: `[B, G*k_h*k_w, h, w]`; None means one everywhere.
        backend: one of `BACKENDS`; None takes `sampling` where the compiled CPU operator runs, else `torchvision`.

    Returns:
        `[B, O, h, w]`, in the dtype of x, or in autocast's dtype where autocast is on.

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, a number is not one that it can be, or the backend
            is unknown.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f"deform_conv2d has no backend '{backend}'; there are: {', '.join(BACKENDS)}")
    stride, dilation = pair_of("stride", stride, least=1), pair_of("dilation", dilation, least=1)
    padding = pair_of("padding", padding, least=0)
    _check(x, offsets, weight, bias, stride, padding, dilation, modulation)
    if backend is None:
        compiled = x.device.type == "cpu" and selected_backend("cpu") == "cpu"
        backend = "sampling" if compiled else "torchvision"
    if backend == "torchvision":
        return _by_torchvision(x, offsets, weight, bias, stride, padding, dilation, modulation)
    return _by_sampling(x, offsets, weight, bias, stride, padding, dilation, modulation)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    vertical, horizontal = value
    return vertical, horizontal


def _check(x, offsets, weight, bias, stride, padding, dilation, modulation) -> None:
    optional = {"bias": bias, "modulation": modulation}
    need_tensors(x=x, offsets=offsets, weight=weight, **{k: v for k, v in optional.items() if v is not None})
    if x.dim() != 4 or weight.dim() != 4 or 0 in x.shape[1:] or 0 in weight.shape:
        raise ValueError(
            f"x must be [B, C, H, W] with pixels and weight [O, C/groups, k_h, k_w], got {list(x.shape)} and "
            f"{list(weight.shape)}"
        )
    need_alike("x", x=x, offsets=offsets, weight=weight, bias=bias, modulation=modulation)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype is not x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"{name} is {tensor.dtype}, but x is {x.dtype}")
    points = weight.shape[2] * weight.shape[3]
    if x.shape[1] % weight.shape[1] or weight.shape[0] % (x.shape[1] // weight.shape[1]):
        raise ValueError(f"weight {list(weight.shape)} does not fit the {x.shape[1]} channels of x")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}] to fit weight, got {list(bias.shape)}")
    size = [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, p, d, k, s in zip(x.shape[2:], padding, dilation, weight.shape[2:], stride)
    ]
    if min(size) < 1:
        raise ValueError(
            f"weight {list(weight.shape)} reaches farther than x {list(x.shape)} with padding {padding} and dilation "
            f"{dilation}: nothing would be left"
        )
    if offsets.dim() != 4 or [offsets.shape[0], *offsets.shape[2:]] != [x.shape[0], *size]:
        raise ValueError(
            f"offsets must be [{x.shape[0]}, 2*G*{points}, {size[0]}, {size[1]}], got {list(offsets.shape)}"
        )
    groups = offsets.shape[1] // (2 * points)
    if offsets.shape[1] % (2 * points) or not groups or x.shape[1] % groups:
        raise ValueError(
            f"offsets have {offsets.shape[1]} channels; they must be 2 * {points} for each of G offset groups, and G "
            f"divide the {x.shape[1]} channels of x"
        )
    expected = (x.shape[0], groups * points, *size)
    if modulation is not None and modulation.shape != expected:
        raise ValueError(f"modulation must be {list(expected)} to fit the offsets, got {list(modulation.shape)}")


def _by_torchvision(x, offsets, weight, bias, stride, padding, dilation, modulation) -> Tensor:
    # Half precision cannot express positions finely enough, and torchvision lacks it on CPUs.
    compute, dtype = torch.promote_types(x.dtype, torch.float32), autocast_type(x)
    offsets = offsets.to(compute).nan_to_num(nan=FAR, posinf=FAR, neginf=-FAR)
    with torch.autocast(x.device.type, enabled=False):
        x, weight, bias, modulation = (None if t is None else t.to(compute) for t in (x, weight, bias, modulation))
        return torchvision_deform_conv2d(x, offsets, weight, bias, stride, padding, dilation, modulation).to(dtype)


def _by_sampling(x, offsets, weight, bias, stride, padding, dilation, modulation) -> Tensor:
    batch, channels, height, width = x.shape
    out_channels, in_group, k_h, k_w = weight.shape
    points, (h, w) = k_h * k_w, offsets.shape[2:]
    groups, offset_groups = channels // in_group, offsets.shape[1] // (2 * points)
    compute = torch.promote_types(x.dtype, torch.float32)

    def positions(axis: int) -> tuple[Tensor, Tensor]:  # the kernel's first point, and all points from there
        counts = (offsets.shape[2 + axis], weight.shape[2 + axis])
        first, further = (torch.arange(count, device=x.device, dtype=compute) for count in counts)
        return first * stride[axis] - padding[axis], further * dilation[axis]

    (top, down), (left, right) = positions(0), positions(1)
    rows = top[:, None, None] + down.repeat_interleave(k_w)  # [h, 1, k]
    columns = left[:, None] + right.repeat(k_h)  # [w, k]
    # Kernel points are queries and offset groups are heads: [B, h, w, k, G] each.
    dy, dx = offsets.to(compute).unflatten(1, (offset_groups, points, 2)).permute(0, 4, 5, 2, 1, 3).unbind(-1)
    locations = torch.stack([(columns[..., None] + dx + 0.5) / width, (rows[..., None] + dy + 0.5) / height], -1)
    locations = locations.reshape(batch, h * w * points, offset_groups, 1, 2)
    if modulation is None:
        weights = locations.new_ones(1).expand(locations.shape[:-1])
    else:
        weights = modulation.to(compute).unflatten(1, (offset_groups, points)).permute(0, 3, 4, 2, 1)
        weights = weights.reshape(locations.shape[:-1])
    value = x.permute(0, 2, 3, 1).reshape(batch, height * width, offset_groups, channels // offset_groups)
    samples = ms_deform_attn(value, [(height, width)], locations, weights, [1])  # [B, h*w*k, C]
    if groups == 1:
        out = samples.reshape(batch, h * w, points * channels) @ weight.permute(2, 3, 1, 0).flatten(0, 2)
    else:
        samples = samples.view(batch * h * w, points, groups, in_group).permute(2, 0, 1, 3).flatten(2)
        kernels = (
            weight.unflatten(0, (groups, -1)).permute(0, 3, 4, 2, 1).flatten(1, 3)
        )  # [groups, k*C/groups, O/groups]
        out = (samples @ kernels).permute(1, 0, 2)
    out = out.reshape(batch, h, w, out_channels)
    if bias is not None:
        out = out + bias.to(out.dtype)
    return out.permute(0, 3, 1, 2)


class DeformConv2d(nn.Conv2d):
    """Deformable convolution (arXiv 1703.06211, section 2.1): a second convolution predicts the offsets.

    The offsets' convolution, `sampling_offsets`, has the same kernel, stride and dilation, and 2*k*k channels for each
    offset group. It starts at zero, so the layer starts as the ordinary convolution with its weights. The weights have
    the names and shapes of an `nn.Conv2d`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in `nn.Conv2d`.
        offset_groups: number of groups G of input channels, each with offsets of its own; it divides `in_channels`.

    Attributes:
        backend: the backend of `deform_conv2d`.

    Raises:
        ValueError: `offset_groups` does not divide `in_channels`, or `padding` is a word.
    """

    maps_per_point = 2  # channels of sampling_offsets for each kernel point and offset group
    # nn.Conv2d turns each into a pair of numbers; padding by a word is refused.
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        offset_groups: int = 1,
    ):
        if isinstance(padding, str):
            raise ValueError(f"padding must be a number of pixels, or two, got '{padding}'")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        need_whole("offset_groups", offset_groups, least=1)
        if in_channels % offset_groups:
            raise ValueError(f"offset_groups {offset_groups} does not divide in_channels {in_channels}")
        self.offset_groups, self.points = offset_groups, math.prod(self.kernel_size)
        self.backend: str | None = None
        self.sampling_offsets = nn.Conv2d(
            in_channels,
            self.maps_per_point * offset_groups * self.points,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        for parameter in self.sampling_offsets.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, offset_groups: int = 1, **options) -> "DeformConv2d":
        """A layer that replaces an ordinary convolution, with the same weight tensors and training mode.

        Args:
            conv: the convolution, with zero padding.
            offset_groups: number of offset groups G.
            options: further arguments of the class.

        Raises:
            ValueError: the convolution does not pad with zeros, or `offset_groups` does not fit.
        """
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"only zero padding by a number of pixels can be deformed, not {conv}")
        new = cls(
            conv.in_channels,
            conv.out_channels,
            _pair(conv.kernel_size),
            _pair(conv.stride),
            _pair(conv.padding),
            _pair(conv.dilation),
            conv.groups,
            conv.bias is not None,
            offset_groups,
            **options,
        ).to(conv.weight)
        new.weight, new.bias = conv.weight, conv.bias
        return new.train(conv.training)

    def offsets_and_modulation(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x `[B, C, H, W]` -> offsets `[B, 2*G*k*k, h, w]` in pixels, (y, x), and None: version 1 has no modulation."""
        return self.sampling_offsets(x), None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, O, h, w]`.

        Raises:
            ValueError: x has another shape.
        """
        need_tensors(x=x)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be [B, C={self.in_channels}, H, W], got {list(x.shape)}")
        need_like_weight("x", x, self.weight)
        offsets, modulation = self.offsets_and_modulation(x)
        return deform_conv2d(
            x, offsets, self.weight, self.bias, self.stride, self.padding, self.dilation, modulation, self.backend
        )

    def extra_repr(self) -> str:
        """The arguments of `nn.Conv2d`, and the offset groups."""
        return f"{super().extra_repr()}, offset_groups={self.offset_groups}"


class ModulatedDeformConv2d(DeformConv2d):
    """Modulated deformable convolution (arXiv 1811.11168, section 3.2): each sample is also scaled, by 0 to 1.

    `sampling_offsets` has 3*k*k channels for each offset group: first all offsets, then a logit for each kernel point;
    its sigmoid is the modulation.

    Args:
        initial_modulation: start value of all modulations, in (0, 1). The paper's is 0.5, which halves the ordinary
            convolution's output. Near 1 the layer starts as the ordinary convolution, but the modulation hardly gets a
            gradient.
        args, options: arguments of `DeformConv2d`.
    """

    maps_per_point = 3

    def __init__(self, *args, initial_modulation: float = 0.5, **options):
        super().__init__(*args, **options)
        logit = modulation_logit(initial_modulation)
        bias = self.sampling_offsets.get_parameter("bias")
        nn.init.constant_(bias[2 * self.offset_groups * self.points :], logit)

    def offsets_and_modulation(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x `[B, C, H, W]` -> offsets `[B, 2*G*k*k, h, w]` in pixels, (y, x), and modulation `[B, G*k*k, h, w]`."""
        offsets, logits = self.sampling_offsets(x).split_with_sizes(
            [2 * self.offset_groups * self.points, self.offset_groups * self.points], 1
        )
        return offsets, logits.sigmoid()


def modulation_logit(initial_modulation: float) -> float:
    """The bias whose sigmoid is the initial modulation.

    Raises:
        ValueError: `initial_modulation` is not between 0 and 1.
    """
    if not 0 < initial_modulation < 1:
        raise ValueError(f"initial_modulation must be between 0 and 1, got {initial_modulation}")
    return math.log(initial_modulation / (1 - initial_modulation))
