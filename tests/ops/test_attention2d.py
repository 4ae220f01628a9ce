"""Deformable attention between maps against a loop written from equation 2."""

import math

import pytest
import torch

from ops.attention2d import DeformAttn2d


# Every test of this module holds for each backend that runs on a CPU.
@pytest.fixture(autouse=True, params=["reference", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("MS_DEFORM_ATTN_BACKEND", request.param)
    return request.param


def lively(channels, heads, points):
    """A layer in float64 whose offsets and weights depend on the query, as after training."""
    torch.manual_seed(0)
    layer = DeformAttn2d(channels, heads, points).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def loop(layer, x, value, padding_mask, heads, points):
    """Equation 2: sum over heads of W_m (sum over points of A_mk W'_m value(p + offset_mk)), with the biases."""
    a = layer.attention
    batch, channels, height, width = x.shape
    rows, columns = value.shape[2:]
    depth = channels // heads
    out = torch.zeros_like(x)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                z = x[b, :, i, j]
                offsets = (a.sampling_offsets.weight @ z + a.sampling_offsets.bias).view(heads, points, 2)
                logits = (a.attention_weights.weight @ z + a.attention_weights.bias).view(heads, points)
                out[b, :, i, j] = a.output_proj.bias
                for m in range(heads):
                    own = slice(m * depth, (m + 1) * depth)
                    total = torch.zeros(depth, dtype=torch.float64)
                    shares = logits[m].exp() / logits[m].exp().sum()
                    for k in range(points):
                        u = (j + 0.5) / width * columns - 0.5 + float(offsets[m, k, 0])
                        v = (i + 0.5) / height * rows - 0.5 + float(offsets[m, k, 1])
                        for r in (math.floor(v), math.floor(v) + 1):
                            for s in (math.floor(u), math.floor(u) + 1):
                                if not (0 <= r < rows and 0 <= s < columns):
                                    continue
                                if padding_mask is not None and padding_mask[b, r, s]:
                                    continue
                                projected = a.value_proj.weight[own] @ value[b, :, r, s] + a.value_proj.bias[own]
                                total += shares[k] * (1 - abs(u - s)) * (1 - abs(v - r)) * projected
                    out[b, :, i, j] += a.output_proj.weight[:, own] @ total
    return out


def maps(channels, *sizes):
    torch.manual_seed(1)
    return [torch.randn(2, channels, *size, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("heads, points", [(1, 1), (1, 3), (2, 2), (4, 1)])
@torch.no_grad()
def test_equals_the_loop(heads, points):
    layer = lively(4, heads, points)
    (x,) = maps(4, (3, 5))
    torch.testing.assert_close(layer(x), loop(layer, x, x, None, heads, points), atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(6, 4), (1, 1), (2, 9)])
@torch.no_grad()
def test_value_map_of_another_size(size):
    layer = lively(4, 2, 3)
    x, value = maps(4, (3, 5), size)
    mask = torch.rand(2, *size) < 0.3
    for padding_mask in (None, mask):
        out = layer(x, value, padding_mask)
        assert out.shape == x.shape
        expected = loop(layer, x, value, padding_mask, 2, 3)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)


def test_padding_is_not_read():
    layer = lively(4, 2, 3)
    x, value = maps(4, (3, 5), (4, 6))
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)
    mask[0, :, 4:] = mask[1, 3:] = True
    out = layer(x, value, mask)
    changed = value.masked_fill(mask[:, None], 1e6)
    torch.testing.assert_close(layer(x, changed, mask), out, atol=0, rtol=0)
    assert not torch.allclose(layer(x, changed), layer(x, value))


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_a_fresh_layer_looks_from_pixel_centres_in_all_directions(heads):
    """Head m looks in direction 2 pi m / M, for 8 heads to the 8 neighbours; its k-th point lies k pixels away."""
    x, value = (m.float() for m in maps(8, (3, 5), (6, 4)))
    out, locations, weights = DeformAttn2d(8, heads, 4)(x, value, return_sampling=True)
    assert out.shape == x.shape
    assert locations.shape == (2, 3, 5, heads, 4, 2) and weights.shape == (2, 3, 5, heads, 4)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 4))
    neighbours = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]  # right, then clockwise
    for i in range(3):
        for j in range(5):
            for m in range(heads):
                dx, dy = neighbours[m * 8 // heads]
                for k in range(4):
                    place = [(j + 0.5) / 5 + (k + 1) * dx / 4, (i + 0.5) / 3 + (k + 1) * dy / 6]
                    assert locations[1, i, j, m, k].tolist() == pytest.approx(place, abs=1e-5)


def test_returned_sampling_is_what_is_read():
    """A value map whose only pixel with an entry is found where locations and weights say."""
    layer = lively(2, 1, 2)
    with torch.no_grad():
        for projection in (layer.attention.value_proj, layer.attention.output_proj):
            projection.weight.copy_(torch.eye(2))
            projection.bias.zero_()
    (x,) = maps(2, (4, 5))
    value = torch.zeros_like(x)
    value[:, :, 2, 3] = 1
    out, locations, weights = layer(x, value, return_sampling=True)
    pixel = locations * torch.tensor([5, 4]) - 0.5  # [B, H, W, 1, K, 2]
    share = (1 - (pixel - torch.tensor([3, 2])).abs()).clamp_min(0).prod(-1)
    torch.testing.assert_close(out[:, 0], (share * weights).sum((-1, -2)), atol=1e-12, rtol=0)
    assert out.any()


def test_gradients():
    layer = lively(4, 2, 2)
    x, value = (m[:1].requires_grad_() for m in maps(4, (2, 3), (3, 2)))
    parameters = list(layer.parameters())
    assert torch.autograd.gradcheck(lambda x, value, *_: layer(x, value), (x, value, *parameters), fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: layer(x), x)


def test_backends_agree(monkeypatch):
    layer = lively(16, 4, 3).float()
    x, value = (m.float() for m in maps(16, (9, 7), (5, 12)))
    found = []
    for name in ("reference", "cpu"):
        monkeypatch.setenv("MS_DEFORM_ATTN_BACKEND", name)
        layer.zero_grad()
        out = layer(x, value)
        out.square().sum().backward()
        found.append([out, *(p.grad for p in layer.parameters())])
    for theirs, ours in zip(*found):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_autocast_keeps_locations_in_fp32():
    layer = DeformAttn2d(8)
    x = torch.randn(1, 8, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out, locations, weights = layer(x.bfloat16(), return_sampling=True)
    assert (out.dtype, locations.dtype, weights.dtype) == (torch.bfloat16, torch.float32, torch.float32)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"x": torch.zeros(2, 4, 3, 5)}, "x"),
        ({"x": torch.zeros(2, 8, 15)}, "x"),
        ({"value": torch.zeros(1, 8, 6, 4)}, "value"),
        ({"value": torch.zeros(2, 4, 6, 4)}, "value"),
        ({"padding_mask": torch.zeros(2, 3, 5, dtype=torch.bool)}, "padding_mask"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, said):
    given = {"x": torch.zeros(2, 8, 3, 5), "value": torch.zeros(2, 8, 6, 4), "padding_mask": None, **change}
    with pytest.raises(ValueError, match=f"^{said} must be"):
        DeformAttn2d(8)(**given)


@pytest.mark.parametrize("options", [{"num_heads": 3}, {"num_points": 0}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DeformAttn2d(8, **options)
