"""The compiled CPU kernels against the reference in float64: every width of channels, dtype and layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ops
from tests.ops.examples import arguments, in_float64, relative_errors, results

# Relative to the largest entry: 1e-10 and 1e-5 of the design, then a half-precision output's rounding.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}
# One lane, odd numbers, one, two and four registers of every instruction set, several chunks of four.
CHANNELS = [1, 3, 4, 8, 16, 32, 33, 48, 64, 128, 256]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("queries", [1, 200], ids=["plain", "packed"])
def test_equals_the_reference_in_float64(channels, dtype, queries):
    given_arguments = arguments(channels=channels, queries=queries, dtype=dtype)
    grad = torch.randn(2, queries, 2 * channels, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = results(in_float64(given_arguments), "reference", grad.double())
    for error in relative_errors(results(given_arguments, "cpu", grad), exact):
        assert error <= TOLERANCES[dtype]


@settings(max_examples=60, deadline=None)
@given(
    levels=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(0, 5)), min_size=1, max_size=5),
    batch=st.integers(0, 3),
    heads=st.integers(1, 5),
    channels=st.sampled_from(CHANNELS),
    queries=st.sampled_from([0, 1, 2, 7, 60]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_any_shape(levels, batch, heads, channels, queries, dtype):
    shapes, points = [(h, w) for h, w, _ in levels], [k for _, _, k in levels]
    given_arguments = arguments(shapes, points, batch, queries, heads, channels, dtype)
    exact = results(in_float64(given_arguments), "reference")
    assert max(relative_errors(results(given_arguments, "cpu"), exact)) <= TOLERANCES[dtype]


def test_backward_is_the_same_in_every_run_and_for_any_number_of_threads():
    given_arguments = arguments([(40, 52), (20, 26), (10, 13)], [4, 4, 4], batch=1, queries=2730, heads=3, channels=32)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in [1, 2, 5] + [2] * 10:
            torch.set_num_threads(threads)
            runs.append(results(given_arguments, "cpu"))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for one, other in zip(runs[0], run):
            assert torch.equal(one, other)


def test_more_threads_than_heads_cut_by_level():
    given_arguments = arguments(batch=1, heads=1, queries=300, dtype=torch.float64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        ours = results(given_arguments, "cpu")
    finally:
        torch.set_num_threads(before)
    for error in relative_errors(ours, results(given_arguments, "reference")):
        assert error <= 1e-10


def test_strided_and_expanded_arguments():
    value, shapes, locations, weights, points = arguments(dtype=torch.float64)
    expected = results((value, shapes, locations, weights, points), "reference")
    strided = (
        value.transpose(1, 2).contiguous().transpose(1, 2),
        shapes,
        locations.transpose(3, 4).contiguous().transpose(3, 4),
        torch.stack([weights, weights], -1)[..., 0],
        points,
    )
    for ours, theirs in zip(results(strided, "cpu"), expected):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    # The gradient of a sum is one number expanded.
    value.requires_grad_()
    ops.ms_deform_attn(value, shapes, locations, weights, points, backend="cpu").sum().backward()
    wanted = torch.autograd.grad(
        ops.ms_deform_attn(value, shapes, locations, weights, points, backend="reference").sum(), value
    )[0]
    torch.testing.assert_close(value.grad, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("queries", [1, 200], ids=["plain", "packed"])
def test_only_what_is_sampled_is_read(queries):
    """A location outside the map touches no pixel, so what the border holds cannot spread, be it infinite."""
    value, shapes, locations, weights, points = arguments([(4, 5)], [3], queries=queries, heads=1, channels=16)
    value[:] = float("nan")
    locations = locations * 0 - 3
    locations.nan_to_num_(nan=-3.0)
    for result in results((value, shapes, locations, weights, points), "cpu"):
        assert torch.equal(result, torch.zeros_like(result))


def test_points_exactly_on_a_border():
    """Offsets start as whole pixels, so many points lie at -1, 0 or W: the gradient there follows the reference."""
    value, shapes, _, weights, points = arguments([(4, 4)], [4], batch=1, queries=16, heads=1, dtype=torch.float64)
    pixels = torch.cartesian_prod(torch.arange(-2.0, 6), torch.arange(-2.0, 6)).double()
    given_arguments = value, shapes, ((pixels + 0.5) / 4).view(1, 16, 1, 4, 2), weights, points
    for ours, theirs in zip(results(given_arguments, "cpu"), results(given_arguments, "reference")):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_levels_without_points_and_empty_levels():
    given_arguments = arguments([(4, 5), (0, 3), (2, 2)], [0, 2, 3], dtype=torch.float64)
    for ours, theirs in zip(results(given_arguments, "cpu"), results(given_arguments, "reference")):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("change", [{"batch": 0}, {"queries": 0}, {"num_points": (0, 0, 0)}, {"channels": 0}])
def test_nothing_to_do(change):
    given_arguments = arguments(**change)
    out, *grads = results(given_arguments, "cpu")
    assert out.abs().sum() == 0 and all(grad.abs().sum() == 0 for grad in grads)
    assert [grad.shape for grad in grads] == [given_arguments[i].shape for i in (0, 2, 3)]


def test_half_precision_conversions_round_to_nearest_even():
    """One sample in the middle of a pixel with weight 1 copies the value: every bit pattern must come through."""
    for dtype in (torch.float16, torch.bfloat16):
        value = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, 1, 1, -1)
        out = ops.ms_deform_attn(
            value, [(1, 1)], torch.full((1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1), [1], backend="cpu"
        ).view(-1)
        torch.testing.assert_close(out, value.view(-1), atol=0, rtol=0, equal_nan=True)
        # A weight that is no power of two makes sums between two half-precision numbers; torch's rounding decides.
        weight = torch.full((1, 1, 1, 1), 1 + 2**-12)
        finite = value.view(-1).float().nan_to_num(0, 0, 0).to(dtype).view(1, 1, 1, -1)
        out = ops.ms_deform_attn(finite, [(1, 1)], torch.full((1, 1, 1, 1, 2), 0.5), weight, [1], backend="cpu").view(
            -1
        )
        assert torch.equal(out, (finite.float() * weight.item()).to(dtype).view(-1))


def test_every_query_of_an_encoder_in_fp32():
    shapes = [(25, 42), (13, 21), (7, 11), (4, 6)]
    tokens = sum(h * w for h, w in shapes)
    given_arguments = arguments(shapes, [4] * 4, batch=1, queries=tokens, heads=8, channels=32)
    exact = results(in_float64(given_arguments), "reference")
    assert max(relative_errors(results(given_arguments, "cpu"), exact)) <= 1e-5
