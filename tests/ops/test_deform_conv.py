"""Deformable convolution: the equation by hand, ordinary convolution, torchvision, gradients, layers."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ops import DeformConv2d, ModulatedDeformConv2d, deform_conv2d

BACKENDS = ["sampling", "torchvision"]
# stride, padding, dilation, groups, offset groups, kernel, (height, width)
CASES = [
    (1, 1, 1, 1, 1, (3, 3), (7, 9)),
    (2, 1, 1, 1, 1, (3, 3), (8, 7)),
    (1, 2, 2, 2, 1, (3, 3), (6, 6)),
    ((2, 1), (0, 1), (1, 2), 4, 2, (2, 3), (9, 8)),
    (1, 0, 1, 1, 4, (1, 1), (5, 4)),
    (3, 2, 1, 8, 8, (5, 3), (7, 7)),
]


def inputs(case, modulated=True, spread=2.0, dtype=torch.float64, seed=0):
    stride, padding, dilation, groups, offset_groups, kernel, size = case
    torch.manual_seed(seed)
    x = torch.randn(2, 8, *size, dtype=dtype)
    weight = torch.randn(16, 8 // groups, *kernel, dtype=dtype)
    bias = torch.randn(16, dtype=dtype)
    h, w = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape[2:]
    points = math.prod(kernel)
    offsets = spread * torch.randn(2, 2 * offset_groups * points, h, w, dtype=dtype)
    modulation = torch.rand(2, offset_groups * points, h, w, dtype=dtype) if modulated else None
    return x, offsets, weight, bias, stride, padding, dilation, modulation


def bilinear(plane, y, x):
    """The interpolated value at (y, x) of a plane that is zero outside (1703.06211, equations 3 and 4)."""
    total = 0.0
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < len(plane) and 0 <= j < len(plane[0]):
                total += max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * plane[i][j]
    return total


def by_hand(x, offsets, weight, bias, stride, padding, dilation, modulation):
    """1811.11168, equation 1, one number at a time."""
    (sy, sx), (py, px), (dy, dx) = (v if isinstance(v, tuple) else (v, v) for v in (stride, padding, dilation))
    out_channels, in_group, k_h, k_w = weight.shape
    points, channels = k_h * k_w, x.shape[1]
    offset_groups, groups = offsets.shape[1] // (2 * points), channels // in_group
    out = torch.zeros(x.shape[0], out_channels, *offsets.shape[2:], dtype=torch.float64)
    planes = x.tolist()
    for b, o, i, j in product(*map(range, out.shape)):
        total = float(bias[o])
        first = o // (out_channels // groups) * in_group
        for c, u, v in product(range(in_group), range(k_h), range(k_w)):
            g = (first + c) // (channels // offset_groups)
            k = g * points + u * k_w + v
            y = i * sy - py + u * dy + float(offsets[b, 2 * k, i, j])
            z = j * sx - px + v * dx + float(offsets[b, 2 * k + 1, i, j])
            scale = 1.0 if modulation is None else float(modulation[b, k, i, j])
            total += float(weight[o, c, u, v]) * scale * bilinear(planes[b][first + c], y, z)
        out[b, o, i, j] = total
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("case", "modulated"), [(CASES[0], False), (CASES[3], True), (CASES[5], True)])
def test_the_equation(case, modulated, backend):
    arguments = [t[:1] if torch.is_tensor(t) and t.shape[0] == 2 else t for t in inputs(case, modulated)]
    assert torch.allclose(deform_conv2d(*arguments, backend=backend), by_hand(*arguments), atol=1e-11, rtol=0)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_sampling_and_torchvision_agree_with_their_gradients(case, modulated):
    found = []
    for run in (partial_backend("sampling"), torchvision_itself):
        arguments = inputs(case, modulated)
        tensors = [t.requires_grad_() for t in arguments if torch.is_tensor(t)]
        out = run(*arguments)
        found.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9, rtol=1e-9)


def partial_backend(backend):
    return lambda *arguments: deform_conv2d(*arguments, backend=backend)


def torchvision_itself(x, offsets, weight, bias, stride, padding, dilation, modulation):
    return torchvision.ops.deform_conv2d(x, offsets, weight, bias, stride, padding, dilation, modulation)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_zero_offsets_are_an_ordinary_convolution(case, backend):
    x, offsets, weight, bias, stride, padding, dilation, modulation = inputs(case)
    expected = F.conv2d(x, weight, bias, stride, padding, dilation, case[3])
    for ones in (None, torch.ones_like(modulation)):
        out = deform_conv2d(x, offsets * 0, weight, bias, stride, padding, dilation, ones, backend)
        assert torch.allclose(out, expected, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unit_modulation_is_v1_and_integer_offsets_shift(backend):
    x, offsets, weight, bias, *rest, modulation = inputs(CASES[0])
    v1 = deform_conv2d(x, offsets, weight, bias, *rest, None, backend)
    assert torch.allclose(
        deform_conv2d(x, offsets, weight, bias, *rest, torch.ones_like(modulation), backend), v1, atol=1e-12
    )
    offsets.view(2, 9, 2, 7, 9)[:, :, 0], offsets.view(2, 9, 2, 7, 9)[:, :, 1] = 1, -2  # a row down, two columns left
    moved = F.pad(x, (2, 0, 0, 1))[:, :, 1:, :-2]
    # In the middle, where what was moved in from outside is not read: the frame reads zeros of either kind.
    expected = F.conv2d(moved, weight, bias, padding=1)[:, :, 1:-1, 1:-1]
    assert torch.allclose(
        deform_conv2d(x, offsets, weight, bias, *rest, None, backend)[:, :, 1:-1, 1:-1], expected, atol=1e-11
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend):
    given = inputs((2, 1, 1, 4, 2, (3, 2), (4, 3)))
    x, offsets, weight, bias, *rest, modulation = (t[:1] if torch.is_tensor(t) and len(t) == 2 else t for t in given)
    # Away from integer positions, where bilinear interpolation has a kink.
    offsets = offsets.floor() + 0.2 + 0.6 * torch.rand_like(offsets)
    tensors = [t.requires_grad_() for t in (x, offsets, weight, bias, modulation)]

    def run(x, offsets, weight, bias, modulation):
        return deform_conv2d(x, offsets, weight, bias, *rest, modulation, backend)

    assert torch.autograd.gradcheck(run, tensors)


def test_second_derivative_by_sampling():
    x, offsets, weight, _, *rest, modulation = inputs((1, 0, 1, 1, 1, (2, 2), (3, 3)))
    offsets = offsets.floor() + 0.2 + 0.6 * torch.rand_like(offsets)
    tensors = [x[:1, :2], offsets[:1], weight[:2, :2], modulation[:1]]

    def run(x, offsets, weight, modulation):
        return deform_conv2d(x, offsets, weight, None, *rest, modulation, "sampling")

    assert torch.autograd.gradgradcheck(run, [t.clone().requires_grad_() for t in tensors])


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(backend):
    arguments = inputs(CASES[0], dtype=torch.float32)
    exact = deform_conv2d(*arguments, backend="torchvision")
    x, offsets, weight, bias, *rest, modulation = arguments
    for given in (x.bfloat16(), x):
        with torch.autocast("cpu", torch.bfloat16):
            out = deform_conv2d(given, offsets, weight, bias, *rest, modulation, backend)
        assert out.dtype == torch.bfloat16
        assert (out.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nowhere", [math.nan, math.inf, -math.inf, 1e30])
def test_offsets_that_point_nowhere_read_zero(backend, nowhere):
    x, offsets, weight, bias, *rest, _ = inputs(CASES[1], dtype=torch.float32)
    out = deform_conv2d(x, torch.full_like(offsets, nowhere), weight, bias, *rest, None, backend)
    assert torch.equal(out, bias[:, None, None].expand_as(out))


def test_channels_last_no_images_and_compiled():
    arguments = inputs(CASES[1], dtype=torch.float32)
    exact = deform_conv2d(*arguments, backend="torchvision")
    x, *rest = arguments
    assert torch.allclose(deform_conv2d(x.contiguous(memory_format=torch.channels_last), *rest), exact, atol=1e-4)
    empty = [t[:0] if torch.is_tensor(t) and t.shape[0] == 2 else t for t in arguments]
    assert deform_conv2d(*empty).shape == (0, *exact.shape[1:])
    run = torch.compile(deform_conv2d, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.allclose(run(*arguments), exact, atol=1e-4)


def test_refuses_what_does_not_fit():
    x, offsets, weight, bias, *rest, modulation = inputs(CASES[0])
    with pytest.raises(ValueError, match="offsets have 16 channels"):
        deform_conv2d(x, offsets[:, :16], weight, bias, *rest)
    with pytest.raises(ValueError, match=r"offsets must be \[2, 2\*G\*9, 7, 9\]"):
        deform_conv2d(x, offsets[:, :, 1:], weight, bias, *rest)
    with pytest.raises(ValueError, match="modulation must be"):
        deform_conv2d(x, offsets, weight, bias, *rest, modulation[:, :8])
    for wrong in (bias[:3], bias[:1]):
        with pytest.raises(ValueError, match=r"bias must be \[16\]"):
            deform_conv2d(x, offsets, weight, wrong, *rest)
    with pytest.raises(ValueError, match="padding must be a number of pixels"):
        DeformConv2d(8, 8, 3, padding="same")
    with pytest.raises(ValueError, match="does not fit the 8 channels"):
        deform_conv2d(x, offsets, weight[:, :3], bias, *rest)
    with pytest.raises(ValueError, match="no backend 'cudnn'"):
        deform_conv2d(x, offsets, weight, bias, *rest, backend="cudnn")
    with pytest.raises(ValueError, match="does not divide in_channels 8"):
        DeformConv2d(8, 8, 3, offset_groups=3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        ModulatedDeformConv2d(8, 8, 3, initial_modulation=1.0)
    with pytest.raises(ValueError, match="only zero padding"):
        DeformConv2d.from_conv(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "dilation": 2, "groups": 4}])
def test_layers_begin_as_the_convolution_they_replace(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, padding=1, **options)
    x = torch.randn(2, 8, 9, 10)
    v1 = DeformConv2d.from_conv(conv, offset_groups=2)
    assert v1.weight is conv.weight and v1.sampling_offsets.out_channels == 2 * 9 * 2
    assert torch.allclose(v1(x), conv(x), atol=1e-5)
    plain = conv(x) - conv.bias[:, None, None]
    v2 = ModulatedDeformConv2d.from_conv(conv, offset_groups=2)
    assert v2.sampling_offsets.out_channels == 3 * 9 * 2
    assert torch.allclose(v2(x), 0.5 * plain + conv.bias[:, None, None], atol=1e-5)
    v2 = ModulatedDeformConv2d.from_conv(conv, initial_modulation=0.9)
    assert torch.allclose(v2(x), 0.9 * plain + conv.bias[:, None, None], atol=1e-5)
    assert set(v2.state_dict()) == {"weight", "bias", "sampling_offsets.weight", "sampling_offsets.bias"}
    for parameter in (v2.sampling_offsets.weight, v1.sampling_offsets.weight, v1.sampling_offsets.bias):
        assert not parameter.any()


def test_layers_move_by_what_their_offset_convolution_says():
    torch.manual_seed(0)
    layer = ModulatedDeformConv2d(4, 6, 3, padding=2, dilation=2)
    nn.init.normal_(layer.sampling_offsets.weight, std=0.3)
    x = torch.randn(1, 4, 8, 8)
    raw = F.conv2d(x, layer.sampling_offsets.weight, layer.sampling_offsets.bias, padding=2, dilation=2)
    expected = torchvision_itself(x, raw[:, :18], layer.weight, layer.bias, 1, 2, 2, raw[:, 18:].sigmoid())
    assert torch.allclose(layer(x), expected, atol=1e-5)
    layer(x).sum().backward()
    assert layer.sampling_offsets.weight.grad[:18].abs().min() > 0 and layer.sampling_offsets.bias.grad[18:].any()
