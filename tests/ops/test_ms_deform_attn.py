"""The operator against a loop written from equation 3, F.grid_sample, and numerical gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ops
from ops.reference import bilinear_sample


def loop(value, spatial_shapes, locations, weights, num_points):
    """Equation 3 in plain float64 loops."""
    batch, _, heads, channels = value.shape
    out = torch.zeros(batch, locations.shape[1], heads, channels, dtype=torch.float64)
    level_of = [level for level, k in enumerate(num_points) for _ in range(k)]
    starts = [sum(h * w for h, w in spatial_shapes[:i]) for i in range(len(spatial_shapes))]
    for b in range(batch):
        for q in range(locations.shape[1]):
            for m in range(heads):
                for p, level in enumerate(level_of):
                    height, width = spatial_shapes[level]
                    x = float(locations[b, q, m, p, 0]) * width - 0.5
                    y = float(locations[b, q, m, p, 1]) * height - 0.5
                    if not (math.isfinite(x) and math.isfinite(y)):
                        continue
                    for row in (math.floor(y), math.floor(y) + 1):
                        for column in (math.floor(x), math.floor(x) + 1):
                            if 0 <= row < height and 0 <= column < width:
                                share = (1 - abs(x - column)) * (1 - abs(y - row)) * float(weights[b, q, m, p])
                                out[b, q, m] += share * value[b, starts[level] + row * width + column, m].double()
    return out.flatten(2)


def arguments(spatial_shapes, num_points, batch=2, queries=3, heads=2, channels=3, spread=1.4, seed=0):
    """Random arguments in float64, some locations outside the maps, none near an integer pixel position."""
    generator = torch.Generator().manual_seed(seed)
    tokens, points = sum(h * w for h, w in spatial_shapes), sum(num_points)
    value = torch.randn(batch, tokens, heads, channels, generator=generator, dtype=torch.float64)
    locations = torch.rand(batch, queries, heads, points, 2, generator=generator, dtype=torch.float64)
    locations = (locations - 0.5) * spread + 0.5
    sizes = torch.tensor([(w, h) for (h, w), k in zip(spatial_shapes, num_points) for _ in range(k)])
    pixels = locations * sizes - 0.5
    fraction = (pixels - pixels.floor()).clamp(0.1, 0.9)  # finite differences must not cross a kink
    locations = (pixels.floor() + fraction + 0.5) / sizes
    weights = torch.rand(batch, queries, heads, points, generator=generator, dtype=torch.float64).softmax(-1)
    return value, spatial_shapes, locations, weights, num_points


CASES = [
    ([(4, 5)], [3]),
    ([(6, 4), (3, 2), (1, 1)], [2, 1, 2]),
    ([(5, 3), (2, 7)], [0, 4]),
    ([(3, 4), (2, 2), (1, 2), (1, 1), (1, 1)], [1, 1, 1, 1, 1]),
]


# Every test of this module holds for each backend that runs on a CPU.
@pytest.fixture(autouse=True, params=["reference", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("MS_DEFORM_ATTN_BACKEND", request.param)
    return request.param


@pytest.mark.parametrize("spatial_shapes, num_points", CASES)
def test_equals_the_loop(spatial_shapes, num_points):
    given_arguments = arguments(spatial_shapes, num_points)
    torch.testing.assert_close(ops.ms_deform_attn(*given_arguments), loop(*given_arguments), atol=1e-12, rtol=0)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    k=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(0, 4),
    spread=st.floats(0.1, 6),
)
def test_equals_the_loop_for_any_shape(shapes, k, heads, queries, spread):
    given_arguments = arguments(shapes, [k] * len(shapes), batch=1, queries=queries, heads=heads, spread=spread)
    torch.testing.assert_close(ops.ms_deform_attn(*given_arguments), loop(*given_arguments), atol=1e-12, rtol=0)


def test_hand_worked():
    """A 1x2 map with values 10 and 20: the middle reads 15, an outer edge half of its pixel, beyond it nothing."""
    value = torch.tensor([10.0, 20.0]).view(1, 2, 1, 1)
    locations = torch.tensor([[0.5, 0.5], [0.25, 0.5], [0.0, 0.5], [1.0, 0.5], [1.5, 0.5], [0.25, 0.0]])
    out = ops.ms_deform_attn(value, [(1, 2)], locations.view(1, 6, 1, 1, 2), torch.ones(1, 6, 1, 1), [1])
    assert out.flatten().tolist() == [15.0, 10.0, 5.0, 10.0, 0.0, 5.0]


@pytest.mark.parametrize("spatial_shapes, num_points", CASES)
def test_gradients_once_and_twice(spatial_shapes, num_points):
    value, _, locations, weights, _ = arguments(spatial_shapes, num_points, batch=1, queries=2, channels=2)
    leaves = [t.requires_grad_() for t in (value, locations, weights)]

    def function(value, locations, weights):
        return ops.ms_deform_attn(value, spatial_shapes, locations, weights, num_points)

    assert torch.autograd.gradcheck(function, leaves)
    # All numbers of a small case; of the others random sums of them, which are a hundred times fewer.
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=len(num_points) > 1)


def test_gradient_of_sampling_equals_grid_sample():
    torch.manual_seed(0)
    grad = torch.randn(2, 3, 4, 5)
    results = []
    for sample in (bilinear_sample, lambda m, g: F.grid_sample(m, g, align_corners=False)):
        torch.manual_seed(1)
        maps, grid = torch.randn(2, 3, 6, 7, requires_grad=True), (torch.rand(2, 4, 5, 2) * 2.4 - 1.2).requires_grad_()
        out = sample(maps, grid)
        results.append((out, *torch.autograd.grad(out, (maps, grid), grad)))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_gradient_where_only_one_input_wants_it():
    value, shapes, locations, weights, points = arguments([(3, 4)], [2])
    for wanted in (value, locations, weights):
        wanted.requires_grad_()
        (first,) = torch.autograd.grad(
            ops.ms_deform_attn(value, shapes, locations, weights, points).sum(), wanted, create_graph=True
        )
        assert first.abs().sum() > 0
        wanted.requires_grad_(False)


def test_half_precision_values_accumulate_in_fp32():
    value, shapes, locations, weights, points = arguments([(6, 4), (3, 2)], [4, 4])
    exact = ops.ms_deform_attn(value.bfloat16().double(), shapes, locations, weights, points)
    half = ops.ms_deform_attn(value.bfloat16(), shapes, locations.float(), weights.float(), points)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, atol=0, rtol=2**-8)


def test_non_contiguous_input_and_empty_queries():
    value, shapes, locations, weights, points = arguments([(3, 4)], [2])
    expected = ops.ms_deform_attn(value, shapes, locations, weights, points)
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(ops.ms_deform_attn(strided, shapes, locations, weights, points), expected)
    none = ops.ms_deform_attn(value, shapes, locations[:, :0], weights[:, :0], points)
    assert none.shape == (2, 0, 6)


@pytest.mark.parametrize(
    "change, name",
    [
        ({"value": torch.zeros(2, 12, 6)}, "value"),
        ({"spatial_shapes": [(3, 5)]}, "spatial_shapes"),
        ({"spatial_shapes": [(-3, -4)]}, "spatial_shapes must not be negative"),
        ({"spatial_shapes": [(3, 4), (0, 0)], "num_points": [4, -2]}, "num_points must not be negative"),
        ({"spatial_shapes": [(1, 1)] * 33, "num_points": [1] * 33}, "33 levels, at most 32"),
        ({"num_points": [2, 2]}, "num_points"),
        ({"num_points": [3]}, "attention_weights"),
        ({"sampling_locations": torch.zeros(2, 3, 2, 2, 3)}, "sampling_locations"),
        ({"attention_weights": torch.zeros(2, 3, 2, 2, dtype=torch.long)}, "attention_weights"),
    ],
)
def test_wrong_arguments_are_named(change, name):
    value, shapes, locations, weights, points = arguments([(3, 4)], [2])
    whole = {
        "value": value,
        "spatial_shapes": shapes,
        "sampling_locations": locations,
        "attention_weights": weights,
        "num_points": points,
    }
    with pytest.raises(ValueError, match=name):
        ops.ms_deform_attn(**{**whole, **change})
