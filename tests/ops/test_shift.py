"""The five shifts against arrays written by hand, a loop from the definition, one another, and numerical gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.shift import METHODS, SUBPIXEL, spatial_shift

STEPS = [(-1, 0), (1, 0), (0, -1), (0, 1)]  # left, right, up, down
LEFT = [
    [1, 2, 3, 4, 4],
    [6, 7, 8, 9, 9],
    [11, 12, 13, 14, 14],
    [16, 17, 18, 19, 19],
    [21, 22, 23, 24, 24],
]
RIGHT = [
    [0, 0, 1, 2, 3],
    [5, 5, 6, 7, 8],
    [10, 10, 11, 12, 13],
    [15, 15, 16, 17, 18],
    [20, 20, 21, 22, 23],
]
UP = [
    [5, 6, 7, 8, 9],
    [10, 11, 12, 13, 14],
    [15, 16, 17, 18, 19],
    [20, 21, 22, 23, 24],
    [20, 21, 22, 23, 24],
]
DOWN = [
    [0, 1, 2, 3, 4],
    [0, 1, 2, 3, 4],
    [5, 6, 7, 8, 9],
    [10, 11, 12, 13, 14],
    [15, 16, 17, 18, 19],
]


def loop(x, shifts):
    """The definition in float64: read at (x - dx, y - dy), cut to the map, bilinearly."""
    _, channels, height, width = x.shape
    out = torch.zeros(x.shape, dtype=torch.float64)
    for c in range(channels):
        dx, dy = shifts[c * len(shifts) // channels]
        for row in range(height):
            for column in range(width):
                v, u = min(max(row - dy, 0), height - 1), min(max(column - dx, 0), width - 1)
                top, left = math.floor(v), math.floor(u)
                for r, share_r in ((top, 1 - (v - top)), (top + 1, v - top)):
                    for s, share_s in ((left, 1 - (u - left)), (left + 1, u - left)):
                        if share_r and share_s:
                            out[:, c, row, column] += share_r * share_s * x[:, c, r, s].double()
    return out


def random_map(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_five_by_five_by_hand(method, dtype):
    x = torch.arange(25, dtype=dtype).view(1, 1, 5, 5).repeat(1, 4, 1, 1)
    assert spatial_shift(x, STEPS, method).equal(torch.tensor([[LEFT, RIGHT, UP, DOWN]], dtype=dtype))


@pytest.mark.parametrize("method", METHODS)
def test_diagonal_by_hand(method):
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).view(1, 1, 2, 3)
    assert spatial_shift(x, [(2, -1)], method).tolist() == [[[[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]]]
    assert spatial_shift(x, [(-1, 1)], method).tolist() == [[[[2.0, 3.0, 3.0], [2.0, 3.0, 3.0]]]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape, shifts",
    [
        ((2, 8, 7, 11), STEPS),
        ((2, 6, 11, 7), [(2, -3), (0, 0), (-4, 1), (1, 1), (-1, -1), (6, 10)]),  # G = C
        ((1, 4, 5, 6), [(3, -2)]),  # G = 1
        ((1, 4, 5, 6), [(0, 0), (0, 0)]),
        ((2, 4, 4, 3), [(3, 4), (-3, -4), (100, 0), (-7, 10**9)]),  # as far as the map is long, and further
        ((1, 2, 6, 1), [(1, 2), (-5, 0)]),  # one pixel wide, one high, one pixel
        ((1, 2, 1, 6), [(1, 2), (-5, 0)]),
        ((1, 2, 1, 1), [(1, 2), (0, -1)]),
    ],
)
def test_whole_pixels_are_exact(method, dtype, shape, shifts):
    x = random_map(*shape, dtype=dtype)
    out = spatial_shift(x, shifts, method)
    assert out.dtype is dtype and out.equal(loop(x, shifts).to(dtype))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), height=st.integers(1, 9), width=st.integers(1, 9), groups=st.integers(1, 4))
def test_whole_pixels_are_exact_for_any_map(data, height, width, groups):
    step = st.integers(-12, 12)
    shifts = data.draw(st.lists(st.tuples(step, step), min_size=groups, max_size=groups))
    x = random_map(1, 2 * groups, height, width, dtype=torch.float32)
    expected = loop(x, shifts).float()
    for method in METHODS:
        assert spatial_shift(x, shifts, method).equal(expected), method


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(100, 152), (67, 131)])
def test_large_maps_agree_to_the_bit(dtype, size):
    """Where a normalised coordinate of a bilinear sample would be rounded."""
    x = random_map(2, 9, *size, dtype=dtype)
    shifts = [(dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 17)]
    rows, columns = (torch.arange(n) for n in size)
    expected = torch.stack(
        [
            x[:, c, (rows - dy).clamp(0, size[0] - 1)][:, :, (columns - dx).clamp(0, size[1] - 1)]
            for c, (dx, dy) in enumerate(shifts)
        ],
        1,
    )
    for method in METHODS:
        assert spatial_shift(x, shifts, method).equal(expected), method


@pytest.mark.parametrize("method", SUBPIXEL)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    "shape, shifts",
    [
        ((2, 4, 6, 9), [(0.5, -0.25), (-1.7, 2.0), (0, 0), (-8.9, 5.1)]),
        ((1, 3, 5, 4), [(2.3, -0.6)]),
        ((1, 2, 1, 7), [(-0.4, 0.9), (9.5, 0.1)]),
        ((1, 2, 7, 1), [(-0.4, 0.9), (0.1, 9.5)]),
    ],
)
def test_fractions_are_bilinear(method, dtype, tolerance, shape, shifts):
    x = random_map(*shape, dtype=dtype)
    out = spatial_shift(x, shifts, method)
    torch.testing.assert_close(out.double(), loop(x, shifts), atol=tolerance, rtol=0)


def test_half_a_pixel_by_hand():
    x = torch.tensor([0.0, 10.0, 40.0]).view(1, 1, 1, 3)
    for method in SUBPIXEL:
        out = spatial_shift(x, [(0.5, 0)], method)
        assert out.flatten().tolist() == pytest.approx([0.0, 5.0, 25.0], abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method):
    x = random_map(2, 4, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spatial_shift(x, [(1, -1), (-2, 0), (0, 0), (9, 2)], method), x)
    if method in SUBPIXEL:
        assert torch.autograd.gradcheck(lambda x: spatial_shift(x, [(0.4, -1.2), (-2.5, 0)], method), x)


@pytest.mark.parametrize("method", ["slice", "roll", "depthwise_conv"])
def test_gradients_of_gradients(method):
    x = random_map(1, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: spatial_shift(x, [(1, -1), (-2, 0)], method) ** 2, x)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_and_autocast_lose_nothing(method):
    for dtype in (torch.bfloat16, torch.float16):
        x = random_map(1, 4, 5, 300, dtype=torch.float32).to(dtype)  # bfloat16 has no 299
        out = spatial_shift(x, STEPS, method)
        assert out.dtype is dtype and out.double().equal(loop(x, STEPS))
    x = random_map(1, 4, 5, 6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = spatial_shift(x, STEPS, method)
    assert out.dtype is torch.float32 and out.double().equal(loop(x, STEPS))


@pytest.mark.parametrize("method", METHODS)
def test_input_is_left_as_it_is(method):
    """Also when its memory is laid out otherwise, and when the batch is empty."""
    x = random_map(2, 4, 5, 6).to(memory_format=torch.channels_last)
    before = x.clone()
    out = spatial_shift(x, [(1, 2), (0, 0)], method)
    assert x.equal(before) and out.equal(loop(before, [(1, 2), (0, 0)]))
    out += 1  # no view of it
    assert x.equal(before)
    assert spatial_shift(x[:0], STEPS, method).shape == (0, 4, 5, 6)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"method": "shear"}, "slice, roll, depthwise_conv, deform_conv, grid_sample"),
        ({"shifts": [(0.5, 0), (0, 0)]}, "depthwise_conv, deform_conv, grid_sample"),
        ({"shifts": [(0.5, 0), (0, 0)], "method": "roll"}, "depthwise_conv, deform_conv, grid_sample"),
        ({"shifts": [(1, 0)] * 3}, "3 entries, which do not divide the 4 channels"),
        ({"shifts": []}, "0 entries"),
        ({"shifts": [(math.nan, 0)], "method": "grid_sample"}, "finite"),
        ({"shifts": [(0, -math.inf)]}, "finite"),
        ({"shifts": [(1, 0, 0)]}, "pairs"),
        ({"shifts": (1, 0)}, "pairs"),
        ({"x": torch.zeros(4, 5, 6)}, "x must be"),
        ({"x": torch.zeros(1, 4, 5, 6, dtype=torch.long)}, "int64"),
        ({"x": torch.zeros(1, 4, 0, 6)}, "with pixels"),
    ],
)
def test_wrong_arguments_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        spatial_shift(**{"x": torch.zeros(1, 4, 5, 6), "shifts": [(1, 0), (0, 1)], **change})
