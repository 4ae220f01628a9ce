"""What people hand to the operators: a ValueError that names the argument, never an error of torch's insides."""

import math

import numpy as np
import pytest
import torch

import ops
from ops import roi_pool

NAN, INF = math.nan, math.inf
META = torch.device("meta")


def attention(**changed):
    given = {
        "value": torch.rand(2, 6, 4, 3),
        "spatial_shapes": [(2, 2), (1, 2)],
        "sampling_locations": torch.rand(2, 5, 4, 3, 2),
        "attention_weights": torch.rand(2, 5, 4, 3),
        "num_points": [2, 1],
    }
    return ops.ms_deform_attn(**given | changed)


def layer(**changed):
    given = {
        "query": torch.rand(2, 5, 8),
        "reference_points": torch.rand(2, 5, 2, 2),
        "memory": torch.rand(2, 6, 8),
        "spatial_shapes": [(2, 2), (1, 2)],
        "padding_mask": torch.zeros(2, 6, dtype=torch.bool),
    }
    return ops.MSDeformAttn(8, 2, 4, 2)(**given | changed)


def rois(*rows):
    return torch.tensor([[0, 0, 0, 9, 9], *rows]).float()


def pool(function=ops.deform_roi_pool, **changed):
    given = {"features": torch.rand(2, 4, 5, 7), "rois": rois(), "output_size": 2, "spatial_scale": 0.125}
    return function(**given | changed)


def pool_maps(**changed):
    return pool(ops.ps_roi_pool, **changed)


def convolution(**changed):
    given = {"x": torch.rand(2, 4, 5, 7), "offsets": torch.zeros(2, 18, 3, 5), "weight": torch.rand(6, 4, 3, 3)}
    return ops.deform_conv2d(**given | changed)


def shift(**changed):
    return ops.spatial_shift(**{"x": torch.rand(2, 4, 5, 7), "shifts": [(1, 0), (0, 1)]} | changed)


def warp(**changed):
    return ops.warp(**{"features": torch.rand(2, 4, 5, 7), "flow": torch.zeros(2, 2, 5, 7)} | changed)


def map_attention(**changed):
    return ops.DeformAttn2d(8, 4)(**{"x": torch.rand(2, 8, 5, 7)} | changed)


def original(**changed):
    given = {
        "value": torch.rand(2, 6, 4, 3),
        "value_spatial_shapes": torch.tensor([[2, 2], [1, 2]]),
        "value_level_start_index": torch.tensor([0, 4]),
        "sampling_locations": torch.rand(2, 5, 4, 2, 2, 2),
        "attention_weights": torch.rand(2, 5, 4, 2, 2),
    }
    return ops.MSDeformAttnFunction.apply(*(given | changed).values())


def roi_layer(kind=ops.DeformRoIPool, **changed):
    module = ops.DeformPSRoIPool(4, 3, 2) if kind is ops.DeformPSRoIPool else kind(4, 2)
    return module(**{"features": torch.rand(2, 4, 5, 7), "rois": rois()} | changed)


def modulated_roi_layer(**changed):
    return roi_layer(ops.ModulatedDeformRoIPool, **changed)


def map_roi_layer(**changed):
    return roi_layer(ops.DeformPSRoIPool, **changed)


def convolution_layer(**changed):
    return ops.ModulatedDeformConv2d(4, 6, 3)(**{"x": torch.rand(2, 4, 5, 7)} | changed)


CALLS = [
    *(roi_layer, modulated_roi_layer, map_roi_layer, convolution_layer),
    attention,
    layer,
    pool,
    pool_maps,
    convolution,
    shift,
    warp,
    map_attention,
    original,
]
WRONG_MAPS = [
    *(None, torch.rand(4, 5, 7), torch.rand(2, 3, 5, 7), torch.rand(2, 4, 5, 7).double()),
    torch.rand(2, 4, 5, 7, device=META),
]
REFUSED = [
    *((call, "features", *WRONG_MAPS) for call in (roi_layer, modulated_roi_layer, map_roi_layer)),
    *((call, "rois", rois([2, 0, 0, 9, 9]), None) for call in (roi_layer, modulated_roi_layer, map_roi_layer)),
    (convolution_layer, "x", *WRONG_MAPS),
    (layer, "query", torch.rand(2, 5, 8).double()),
    (layer, "memory", torch.rand(2, 6, 8).double()),
    (map_attention, "x", torch.rand(2, 8, 5, 7).double()),
    (attention, "value", [[1, 2]], np.ones((2, 6, 4, 3)), None, torch.rand(6, 4, 3), torch.ones(2, 6, 4, 3).int()),
    (attention, "sampling_locations", None, [1], torch.rand(2, 5, 4, 3), torch.zeros(2, 5, 4, 3, 2).int()),
    (attention, "sampling_locations", torch.rand(2, 5, 4, 3, 2, device=META), torch.rand(2, 5, 4, 3, 2).double()),
    (attention, "attention_weights", None, torch.rand(2, 5, 4, 2), torch.rand(2, 5, 4, 3, dtype=torch.complex64)),
    (attention, "spatial_shapes", torch.tensor([[2, 2], [1, 2]]), [2, 2], None, "ab", [(2.0, 2), (1, 2)], [(2, 2, 2)]),
    (attention, "spatial_shapes", [(2, 2), (-1, -2)], np.array([[2, 2], [1, 2]])),
    (attention, "num_points", 2, None, [2.0, 1.0], torch.tensor([2, 1]), [3], [4, -1]),
    (layer, "query", None, torch.rand(2, 5, 7), torch.rand(5, 8), torch.ones(2, 5, 8).int()),
    (layer, "memory", None, torch.rand(2, 6, 7), torch.rand(1, 6, 8), torch.rand(2, 6, 8, device=META)),
    (layer, "reference_points", None, torch.rand(2, 5, 2), torch.rand(2, 5, 1, 2), torch.rand(2, 5, 2, 3)),
    (layer, "reference_points", torch.rand(2, 4, 2, 2), torch.rand(3, 5, 2, 2)),
    (layer, "spatial_shapes", None, [(6, 1)], torch.tensor([[2, 2], [1, 2]])),
    (layer, "padding_mask", [True], torch.zeros(2, 5, dtype=torch.bool), torch.zeros(2, 6)),
    *(
        row
        for call in (pool, pool_maps)
        for row in (
            (call, "features", None, torch.rand(4, 5, 7), torch.rand(2, 4, 0, 7), torch.ones(2, 4, 5, 7).int()),
            (call, "rois", None, [[0, 0, 0, 9, 9]], torch.rand(5), torch.rand(1, 4), torch.zeros(1, 5).int()),
            (call, "rois", rois([2, 0, 0, 9, 9]), rois([-1, 0, 0, 9, 9]), rois([0.5, 0, 0, 9, 9])),
            (call, "rois", rois([NAN, 0, 0, 9, 9]), rois([0, NAN, 0, 9, 9]), rois([0, 0, 0, INF, 9]), rois().to(META)),
            (call, "output_size", 0, -1, 2.0, (2,), (2, 0), (2, 2.5), "2", None, True, torch.tensor(2)),
            (call, "spatial_scale", NAN, INF, 0, -0.5, "0.1", None, (0.1, 0.1), True, torch.tensor(0.1)),
            (call, "gamma", NAN, INF, None, "0.1", torch.tensor(0.1)),
            (call, "sampling_ratio", 0, -1, 2.0, None, True, "2"),
            (call, "offsets", [0], torch.zeros(2, 2, 2), torch.zeros(1), torch.zeros(3, 1, 2, 2, 2)),
            (call, "modulation", [0], torch.zeros(1, 2), torch.zeros(1)),
        )
    ),
    (pool, "offsets", torch.zeros(1, 2, 2, 2).int(), torch.zeros(1, 2, 2, 2, device=META)),
    (pool_maps, "features", torch.rand(2, 6, 5, 7)),
    (convolution, "x", None, torch.rand(4, 5, 7), torch.ones(2, 4, 5, 7).int(), torch.rand(2, 4, 5, 0)),
    (convolution, "offsets", None, torch.zeros(2, 17, 3, 5), torch.zeros(1, 18, 3, 5), torch.zeros(2, 18, 3, 5).int()),
    (convolution, "offsets", torch.zeros(2, 18, 3, 5, device=META), torch.zeros(18, 3, 5)),
    (convolution, "weight", None, torch.rand(6, 3, 3, 3), torch.rand(6, 4, 3), torch.rand(6, 4, 3, 3).double()),
    (convolution, "weight", torch.rand(6, 4, 9, 9), torch.rand(6, 4, 3, 3, device=META), torch.rand(6, 4, 0, 3)),
    (convolution, "bias", [0], torch.rand(5), torch.rand(6).double()),
    (convolution, "modulation", [0], torch.rand(2, 8, 3, 5), torch.ones(2, 9, 3, 5).int()),
    (convolution, "stride", 0, -1, 1.5, (1, 1, 1), None, "1"),
    (convolution, "padding", -1, "same", 0.5, (0,), None),
    (convolution, "dilation", 0, 1.5, (1, 0), None),
    (convolution, "backend", "cudnn", 3),
    (shift, "x", None, torch.rand(4, 5, 7), torch.ones(2, 4, 5, 7).int()),
    (shift, "shifts", None, 3, [], [1, 2], [("1", "0"), (0, 1)], [(NAN, 0), (0, 1)], [(1, 0)] * 3, [(None, 0), (0, 1)]),
    (shift, "shifts", torch.zeros(2, 2), [(torch.tensor(1), 0), (0, 1)], [(True, 0), (0, 1)]),
    (shift, "method", None, "slide", ["slice"]),
    (warp, "features", None, torch.rand(4, 5, 7), torch.ones(2, 4, 5, 7).int()),
    (warp, "flow", None, torch.rand(2, 3, 5, 7), torch.zeros(2, 2, 5, 7).int(), torch.zeros(2, 2, 5, 7, device=META)),
    (warp, "padding", None, "reflect", 0, ["zeros"]),
    (map_attention, "x", None, torch.rand(8, 5, 7), torch.rand(2, 7, 5, 7)),
    (map_attention, "value", [1], torch.rand(1, 8, 5, 7)),
    (map_attention, "padding_mask", [True], torch.zeros(2, 5, 6, dtype=torch.bool), torch.zeros(2, 5, 7)),
    (original, "value", None, torch.rand(6, 4, 3)),
    (original, "value_spatial_shapes", [(2, 2), (1, 2)], torch.tensor([2, 2])),
    (original, "value_level_start_index", [0, 4], torch.tensor([0, 5])),
    (original, "attention_weights", None, torch.rand(2, 5, 4, 3)),
    (lambda **changed: ops.MSDeformAttn(**changed), "num_heads", 0, 8.0, "8", None, True, 7),
    (lambda **changed: ops.MSDeformAttn(**changed), "num_points", 0, 4.0, "4", None, [4, 4], [4, 4, 4, 4.5]),
    (lambda **changed: ops.DeformAttn2d(8, **changed), "num_points", 0, 4.0, None),
    (lambda **changed: ops.DeformConv2d(8, 8, 3, **changed), "offset_groups", 0, 3, 2.0, None),
]


@pytest.mark.parametrize("call", CALLS)
def test_what_fits_is_taken(call):
    assert call().isfinite().all()


@pytest.mark.parametrize(
    ("call", "name", "value"), [(call, name, v) for call, name, *values in REFUSED for v in values]
)
def test_what_does_not_fit_is_named(call, name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b") as raised:
        call(**{name: value})
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_a_roi_that_does_not_fit_is_named_with_its_place():
    with pytest.raises(ValueError, match=r"rois\[2\] is \[7.0, .* one of the 2 images"):
        pool(rois=rois([1, 0, 0, 9, 9], [7, 0, 0, 9, 9]))


@pytest.mark.parametrize("function", [ops.deform_roi_pool, ops.ps_roi_pool])
def test_where_asking_would_wait_a_roi_that_does_not_fit_gives_nan(function, monkeypatch):
    """As on a GPU, and in compiled code; the others are what they are without it."""
    expected = pool(function, rois=rois([1, 3, 3, 20, 30]))
    monkeypatch.setattr(roi_pool, "_can_ask", lambda given: False)
    strays = [[2, 0, 0, 9, 9], [-1, 0, 0, 9, 9], [0.5, 0, 0, 9, 9], [NAN, 0, 0, 9, 9], [0, NAN, 0, 9, 9]]
    features = torch.rand(2, 4, 5, 7, requires_grad=True)
    out = pool(function, features=features, rois=rois(*strays))
    assert out[1:].isnan().all() and out[0].isfinite().all()
    out[0].sum().backward()
    assert features.grad.isfinite().all() and features.grad.any()
    monkeypatch.undo()
    assert expected.isfinite().all()


def test_where_asking_would_wait_nothing_is_asked():
    """Tensors without numbers, whose values no host could read."""
    for function in (ops.deform_roi_pool, ops.ps_roi_pool):
        out = function(torch.rand(2, 4, 5, 7, device=META), rois().to(META), 2, 0.1)
        assert out.device == META and out.shape == (1, 4 if function is ops.deform_roi_pool else 1, 2, 2)


def test_one_number_stands_for_two_and_whole_numbers_for_others():
    given = {"features": torch.rand(2, 4, 5, 7)}
    assert torch.equal(pool(**given, spatial_scale=1, output_size=[2, 2]), pool(**given, spatial_scale=1.0))
    x, offsets, weight = torch.rand(1, 4, 5, 7), torch.zeros(1, 18, 3, 4), torch.rand(6, 4, 3, 3)
    options = {"stride": [2, 2], "padding": (1, 1), "dilation": 1}
    out = ops.deform_conv2d(x, offsets, weight, **options)
    assert torch.allclose(out, torch.nn.functional.conv2d(x, weight, stride=2, padding=1), atol=1e-5)
