"""Warping against a loop, hand-worked values, and the two operators of which it is a special case."""

import math

import pytest
import torch

from ops import MSDeformAttn, ms_deform_attn
from ops.shift import spatial_shift
from ops.warp import warp


def loop(features, flow, padding):
    """The definition in float64."""
    batch, _, height, width = features.shape
    out = torch.zeros(features.shape, dtype=torch.float64)
    for b in range(batch):
        for row in range(height):
            for column in range(width):
                u, v = column + float(flow[b, 0, row, column]), row + float(flow[b, 1, row, column])
                if padding == "border":
                    u, v = min(max(u, 0), width - 1), min(max(v, 0), height - 1)
                for r in (math.floor(v), math.floor(v) + 1):
                    for s in (math.floor(u), math.floor(u) + 1):
                        if 0 <= r < height and 0 <= s < width:
                            share = (1 - abs(v - r)) * (1 - abs(u - s))
                            out[b, :, row, column] += share * features[b, :, r, s].double()
    return out


def example(shape=(2, 3, 5, 7), spread=3.0, dtype=torch.float64):
    """Some of the flow leaves the map; none ends near the middle of a pixel, where bilinear samples have kinks."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator, dtype=torch.float64)
    flow = spread * torch.randn((shape[0], 2, *shape[2:]), generator=generator, dtype=torch.float64)
    flow = flow.floor() + (flow - flow.floor()).clamp(0.1, 0.9)
    return features.to(dtype), flow.to(dtype)


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 4), (1, 2, 4, 1)])
def test_equals_the_loop(padding, shape):
    features, flow = example(shape)
    torch.testing.assert_close(warp(features, flow, padding), loop(features, flow, padding), atol=1e-12, rtol=0)
    out = warp(features.float(), flow.float(), padding)
    torch.testing.assert_close(out.double(), loop(features, flow, padding), atol=1e-5, rtol=0)


def test_by_hand():
    features = torch.tensor([10.0, 20.0, 40.0]).view(1, 1, 1, 3)
    flow = torch.tensor([[1.0, 0.5, 0.5], [0.0, 0.0, 0.0]]).view(1, 2, 1, 3)
    assert warp(features, flow).flatten().tolist() == pytest.approx([20.0, 30.0, 20.0], abs=1e-4)
    assert warp(features, flow, "border").flatten().tolist() == pytest.approx([20.0, 30.0, 40.0], abs=1e-4)
    flow = torch.tensor([[0.0, 0.0, 0.0], [-0.25, 0.75, 1.0]]).view(1, 2, 1, 3)
    assert warp(features, flow).flatten().tolist() == pytest.approx([7.5, 5.0, 0.0], abs=1e-4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_is_deformable_attention_with_one_point(backend):
    features, flow = example()
    batch, _, height, width = features.shape
    value = features.flatten(2).transpose(1, 2)[:, :, None]  # [B, S, M=1, D]
    locations = torch.zeros(batch, height * width, 1, 1, 2, dtype=torch.float64)
    for q in range(height * width):
        row, column = divmod(q, width)
        locations[:, q, 0, 0, 0] = (column + 0.5 + flow[:, 0, row, column]) / width
        locations[:, q, 0, 0, 1] = (row + 0.5 + flow[:, 1, row, column]) / height
    ones = torch.ones(batch, height * width, 1, 1, dtype=torch.float64)
    out = ms_deform_attn(value, [(height, width)], locations, ones, [1], backend=backend)
    torch.testing.assert_close(warp(features, flow).flatten(2), out.transpose(1, 2), atol=1e-12, rtol=0)


def test_is_a_deformable_attention_layer_whose_offsets_are_the_flow():
    features, flow = example((2, 4, 5, 7))
    height, width = features.shape[2:]
    layer = MSDeformAttn(4, num_levels=1, num_heads=1, num_points=1).double()
    with torch.no_grad():
        for projection in (layer.value_proj, layer.output_proj):
            projection.weight.copy_(torch.eye(4))
        layer.sampling_offsets.weight.copy_(torch.eye(2, 4))  # the query's first two channels
        layer.sampling_offsets.bias.zero_()
    query = torch.cat([flow, torch.randn_like(flow)], 1).flatten(2).transpose(1, 2)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], -1).double().view(1, -1, 1, 2)
    memory = features.flatten(2).transpose(1, 2)
    out = layer(query, centres.expand(2, -1, 1, 2), memory, [(height, width)])
    # The centres above are of fp32.
    torch.testing.assert_close(warp(features, flow).flatten(2), out.transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dx, dy", [(0, 0), (1, 0), (-2, 3), (9, -1), (0.3, -1.6)])
def test_constant_flow_is_a_shift_by_its_negative(dx, dy):
    features, _ = example()
    flow = torch.tensor([dx, dy], dtype=torch.float64).view(1, 2, 1, 1).expand(2, 2, 5, 7)
    method = "slice" if dx == int(dx) else "depthwise_conv"
    expected = spatial_shift(features, [(-dx, -dy)], method)
    torch.testing.assert_close(warp(features, flow, "border"), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_gradients(padding):
    features, flow = example((1, 2, 3, 4), spread=1.5)
    leaves = (features.requires_grad_(), flow.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, f: warp(x, f, padding), leaves)


def test_far_and_undefined_flow():
    features, flow = example()
    finite = warp(features, flow)
    flow[0, 0, 0, :4] = torch.tensor([1e30, -math.inf, math.inf, math.nan])
    flow[1, 1, 4, 6] = -3e9
    out = warp(features, flow)
    assert not out[0, :, 0, :4].any() and not out[1, :, 4, 6].any()
    assert out[:, :, 1:4].equal(finite[:, :, 1:4])
    flow[0, 1] = 0
    border = warp(features, flow, "border")[0, :, 0]
    expected = features[0, :, 0, [6, 0, 6, 0]]
    torch.testing.assert_close(border[:, :4], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("flow_dtype", [torch.float32, torch.bfloat16])
def test_half_precision_features_keep_their_type(flow_dtype):
    """Positions are exact to fp32: bfloat16 has no 299."""
    features, flow = example((1, 2, 3, 300), spread=2.0, dtype=torch.float32)
    features, flow = features.bfloat16(), flow.to(flow_dtype)
    out = warp(features, flow)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.double(), loop(features, flow, "zeros"), atol=1e-4, rtol=2**-8)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"features": torch.zeros(3, 4, 5)}, "features"),
        ({"features": torch.zeros(1, 3, 4, 5, dtype=torch.long)}, "features"),
        ({"features": torch.zeros(1, 3, 0, 5)}, "features"),
        ({"flow": torch.zeros(1, 2, 5, 4)}, "flow"),
        ({"flow": torch.zeros(1, 3, 4, 5)}, "flow"),
        ({"flow": torch.zeros(1, 2, 4, 5, dtype=torch.long)}, "flow"),
        ({"padding": "reflection"}, "padding"),
    ],
)
def test_wrong_arguments_are_named(change, said):
    with pytest.raises(ValueError, match=f"^{said} must be"):
        warp(**{"features": torch.zeros(1, 3, 4, 5), "flow": torch.zeros(1, 2, 4, 5), **change})
