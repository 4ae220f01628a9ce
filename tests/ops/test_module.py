"""The attention layer: initial values, references, per-level K."""

import math

import pytest
import torch

from ops import MSDeformAttn, ms_deform_attn

SHAPES = [(4, 6), (2, 3)]


def layer_and_input(num_points=2, num_heads=4, d_model=16):
    torch.manual_seed(0)
    layer = MSDeformAttn(d_model, 2, num_heads, num_points)
    return layer, torch.randn(2, 5, d_model), torch.randn(2, 30, d_model)


@pytest.mark.parametrize("heads", [1, 4, 6, 8])
def test_initial_offsets_and_weights(heads):
    layer = MSDeformAttn(24, 2, heads, [3, 1])
    bias = layer.sampling_offsets.bias.view(heads, 4, 2)
    for m in range(heads):
        angle = 2 * math.pi * m / heads
        x, y = math.cos(angle), math.sin(angle)
        edge = max(abs(x), abs(y))
        for p, k in enumerate([0, 1, 2, 0]):  # three points on the first level, one on the second
            assert bias[m, p].tolist() == pytest.approx([x / edge * (k + 1), y / edge * (k + 1)], abs=1e-6)
    zeros = (layer.sampling_offsets.weight, layer.attention_weights.weight, layer.attention_weights.bias)
    assert all(not t.any() for t in (*zeros, layer.value_proj.bias, layer.output_proj.bias))
    assert layer.value_proj.weight.abs().max() <= math.sqrt(6 / 48) + 1e-6  # xavier


def test_point_references_divide_offsets_by_width_and_height():
    layer, query, memory = layer_and_input()
    reference = torch.full((2, 5, 2, 2), 0.5)
    _, locations, weights = layer(query, reference, memory, SHAPES, return_sampling=True)
    # Head 0 looks right, head 1 down: k pixels of a 6x4 map, then of a 3x2 map.
    expected = [(0.5 + 1 / 6, 0.5), (0.5 + 2 / 6, 0.5), (0.5 + 1 / 3, 0.5), (0.5 + 2 / 3, 0.5)]
    assert torch.allclose(locations[0, 0, 0], torch.tensor(expected), atol=1e-6)
    expected = [(0.5, 0.5 + 1 / 4), (0.5, 0.5 + 2 / 4), (0.5, 0.5 + 1 / 2), (0.5, 0.5 + 2 / 2)]
    assert torch.allclose(locations[0, 0, 1], torch.tensor(expected), atol=1e-6)
    assert torch.allclose(weights, torch.full_like(weights, 1 / 4))


def test_box_references_scale_offsets_by_half_the_box_over_k():
    layer, query, memory = layer_and_input(num_points=[2, 4])
    reference = torch.tensor([0.5, 0.4, 0.2, 0.1]).expand(2, 5, 2, 4)
    _, locations, _ = layer(query, reference, memory, SHAPES, return_sampling=True)
    right = [0.5 + k / 2 * 0.1 for k in (1, 2)] + [0.5 + k / 4 * 0.1 for k in (1, 2, 3, 4)]
    assert locations[0, 0, 0, :, 0].tolist() == pytest.approx(right, abs=1e-6)  # the last one lies on the box's edge
    down = [0.4 + k / 2 * 0.05 for k in (1, 2)] + [0.4 + k / 4 * 0.05 for k in (1, 2, 3, 4)]
    assert locations[0, 0, 1, :, 1].tolist() == pytest.approx(down, abs=1e-6)


def test_padding_is_not_read():
    layer, query, memory = layer_and_input()
    reference = torch.rand(2, 5, 2, 2)
    mask = torch.zeros(2, 30, dtype=torch.bool)
    mask[:, ::3] = True
    out = layer(query, reference, memory, SHAPES, mask)
    memory[mask] = 1e6
    torch.testing.assert_close(layer(query, reference, memory, SHAPES, mask), out)


def test_autocast_keeps_locations_and_weights_in_fp32():
    layer, query, memory = layer_and_input()
    reference = torch.rand(2, 5, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, locations, weights = layer(query, reference, memory, SHAPES, return_sampling=True)
    assert (out.dtype, locations.dtype, weights.dtype) == (torch.bfloat16, torch.float32, torch.float32)


@pytest.mark.parametrize("options", [{"num_heads": 3}, {"num_points": [1]}, {"num_points": [0, 0]}, {"num_points": 0}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match=r"num_heads|num_points"):
        MSDeformAttn(**{"d_model": 16, "num_levels": 2, "num_heads": 4, "num_points": 2, **options})


def test_wrong_reference_is_refused():
    layer, query, memory = layer_and_input()
    with pytest.raises(ValueError, match="reference_points"):
        layer(query, torch.rand(2, 5, 2, 3), memory, SHAPES)


def test_kept_points_are_the_strongest_and_sum_to_one():
    """Against a loop over queries, heads and levels."""
    layer, query, memory = layer_and_input(num_points=[3, 2])
    torch.nn.init.normal_(layer.attention_weights.weight)
    torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.1)
    reference = torch.rand(2, 5, 2, 2)
    _, locations, weights = layer(query, reference, memory, SHAPES, return_sampling=True)
    layer.kept_points = [2, 1]
    out, kept_locations, kept_weights = layer(query, reference, memory, SHAPES, return_sampling=True)
    assert kept_locations.shape == (2, 5, 4, 3, 2) and kept_weights.shape == (2, 5, 4, 3)
    masked = torch.zeros_like(weights)
    for b in range(2):
        for q in range(5):
            for m in range(4):
                one = sorted(range(0, 3), key=lambda p: -weights[b, q, m, p])[:2]
                one += sorted(range(3, 5), key=lambda p: -weights[b, q, m, p])[:1]
                total = sum(weights[b, q, m, p] for p in one)
                for i, p in enumerate(one):
                    masked[b, q, m, p] = weights[b, q, m, p] / total
                    assert torch.equal(kept_locations[b, q, m, i], locations[b, q, m, p])
                    assert kept_weights[b, q, m, i].item() == pytest.approx(masked[b, q, m, p].item(), abs=1e-6)
    value = layer.value_proj(memory).unflatten(-1, (4, -1))
    expected = layer.output_proj(ms_deform_attn(value, SHAPES, locations, masked, [3, 2], backend="reference"))
    assert torch.allclose(out, expected, atol=1e-6)


def test_keeping_all_points_changes_nothing():
    layer, query, memory = layer_and_input(num_points=3)
    torch.nn.init.normal_(layer.attention_weights.weight)
    reference = torch.rand(2, 5, 2, 4)
    whole = layer(query, reference, memory, SHAPES)
    layer.kept_points = [3, 3]
    assert torch.allclose(layer(query, reference, memory, SHAPES), whole, atol=1e-6)
    layer.kept_points = [0, 1]  # nothing of a level at all
    _, locations, weights = layer(query, reference, memory, SHAPES, return_sampling=True)
    assert locations.shape[3] == 1 and torch.allclose(weights, torch.ones_like(weights))
