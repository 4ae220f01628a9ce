"""The compiled operator inside PyTorch: opcheck, compile, export, autocast, FLOPs, vmap, second derivatives."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

import ops
from ops.compat import MSDeformAttnFunction
from tests.ops.examples import arguments, results
from tests.ops.test_ms_deform_attn import arguments as smooth_arguments

SHAPES, POINTS = [(5, 6), (3, 2)], [2, 3]


@pytest.fixture(autouse=True)
def compiled_backend(monkeypatch):
    monkeypatch.setenv("MS_DEFORM_ATTN_BACKEND", "cpu")


def leaves(**changes):
    value, _, locations, weights, _ = smooth_arguments(SHAPES, POINTS, **changes)
    return [t.requires_grad_() for t in (value, locations, weights)]


def attend(value, locations, weights):
    return ops.ms_deform_attn(value, SHAPES, locations, weights, POINTS)


@pytest.mark.parametrize("needs_grad", [True, False])
def test_opcheck(needs_grad):
    value, locations, weights = (t.detach().requires_grad_(needs_grad) for t in leaves())
    grad = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=needs_grad)
    rest = ([5, 6, 3, 2], locations, weights, POINTS)
    torch.library.opcheck(torch.ops.deformable_detr.ms_deform_attn.default, (value, *rest))
    torch.library.opcheck(torch.ops.deformable_detr.ms_deform_attn_backward.default, (grad, value, *rest, False))


def test_opcheck_of_half_and_empty():
    for dtype, queries in ((torch.bfloat16, 3), (torch.float32, 0)):
        value, shapes, locations, weights, points = arguments(SHAPES, POINTS, dtype=dtype, queries=queries)
        flat = [size for shape in shapes for size in shape]
        torch.library.opcheck(
            torch.ops.deformable_detr.ms_deform_attn.default,
            (value.requires_grad_(), flat, locations, weights, points),
        )


def test_gradients_once_and_twice_through_the_compiled_kernels():
    given_leaves = leaves(batch=1, queries=2)
    assert torch.autograd.gradcheck(attend, given_leaves)
    assert torch.autograd.gradgradcheck(attend, given_leaves, fast_mode=True)


def test_second_gradient_where_the_gradient_comes_from_the_same_arguments():
    """A gradient penalty: the first gradient of a square holds the output, which leads to the weights a second way."""
    seconds = []
    for backend in ("cpu", "reference"):
        value, locations, weights = leaves()
        out = ops.ms_deform_attn(value, SHAPES, locations, weights, POINTS, backend=backend)
        firsts = torch.autograd.grad(out.square().sum(), (value, weights), create_graph=True)
        penalty = sum(first.square().sum() for first in firsts)
        seconds.append(torch.autograd.grad(penalty, (value, locations, weights)))
    for ours, theirs in zip(*seconds):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_second_gradient_in_half_precision():
    value, locations, weights = leaves()
    half, locations, weights = value.detach().bfloat16().requires_grad_(), locations.float(), weights.float()
    (first,) = torch.autograd.grad(attend(half, locations, weights).sum(), half, create_graph=True)
    assert torch.autograd.grad(first.sum(), weights)[0].isfinite().all()


def test_compiles_without_graph_breaks():
    compiled = torch.compile(attend, fullgraph=True)
    given_leaves = leaves()
    ours, expected = compiled(*given_leaves), attend(*given_leaves)
    torch.testing.assert_close(ours, expected, atol=0, rtol=0)
    for one, other in zip(
        torch.autograd.grad(ours.sum(), given_leaves), torch.autograd.grad(expected.sum(), given_leaves)
    ):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_map_sizes_stay_symbolic_when_compiled():
    def function(maps, locations, weights):
        _, height, width, _, _ = maps.shape
        return ops.ms_deform_attn(maps.flatten(1, 2), [(height, width)], locations, weights, [2])

    counter = CompileCounter()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for height, width in ((3, 4), (5, 6), (9, 7), (11, 20)):
        inputs = torch.randn(1, height, width, 2, 4), torch.rand(1, 3, 2, 2, 2), torch.rand(1, 3, 2, 2)
        torch.testing.assert_close(compiled(*inputs), function(*inputs))
    assert counter.frame_count <= 2  # torch may specialise the first sizes it sees, not every size


def test_the_layer_compiles_and_exports():
    torch.manual_seed(0)
    layer = ops.MSDeformAttn(16, num_levels=2, num_heads=2, num_points=[1, 3])
    query, reference, memory = torch.randn(2, 5, 16), torch.rand(2, 5, 2, 4), torch.randn(2, 36, 16)
    expected = layer(query, reference, memory, SHAPES)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(query, reference, memory, SHAPES), expected)
    exported = torch.export.export(layer, (query, reference, memory, SHAPES))
    assert "deformable_detr.ms_deform_attn.default" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(query, reference, memory, SHAPES), expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_takes_the_value_in_half_precision_and_the_rest_in_fp32(backend):
    value, _, locations, weights, _ = arguments(SHAPES, POINTS)
    value, locations, weights = (t.requires_grad_() for t in (value, locations, weights))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.ms_deform_attn(value, SHAPES, locations, weights, POINTS, backend=backend)
    assert out.dtype == torch.bfloat16
    wanted = ops.ms_deform_attn(value.bfloat16(), SHAPES, locations, weights, POINTS, backend=backend)
    torch.testing.assert_close(out, wanted, atol=0, rtol=0)
    out.float().sum().backward()
    assert value.grad.dtype == locations.grad.dtype == weights.grad.dtype == torch.float32


def test_half_precision_locations_are_raised_to_fp32():
    value, shapes, locations, weights, points = arguments(SHAPES, POINTS)
    out = ops.ms_deform_attn(value.half(), shapes, locations.half(), weights.half(), points)
    wanted = ops.ms_deform_attn(value.half(), shapes, locations.half().float(), weights.half().float(), points)
    assert torch.equal(out, wanted)


def test_flops_are_counted_by_hand():
    """B 2, Q 3, M 2, P 5 samples of four corners times D 3 channels, each multiplied and added: 2*3*2*5*4*3*2."""
    given_leaves = leaves()
    with FlopCounterMode(display=False) as counter:
        attend(*given_leaves).sum().backward()
    counts = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    assert counts == {
        "deformable_detr.ms_deform_attn": 1440,
        "deformable_detr.ms_deform_attn_backward": 2880,
    }


def test_vmap_equals_a_loop():
    value, locations, weights = (t.detach() for t in leaves())
    values, weights_of = torch.stack([value, 2 * value, -value]), torch.stack([weights, weights, 3 * weights], 1)
    mapped = torch.vmap(attend, in_dims=(0, None, 1))(values, locations, weights_of)
    for index in range(3):
        torch.testing.assert_close(mapped[index], attend(values[index], locations, weights_of[:, index]))


def test_vmap_of_the_gradient():
    value, locations, weights = leaves()
    out = attend(value, locations, weights)
    grads = torch.randn(3, *out.shape, dtype=out.dtype)
    batched = torch.autograd.grad(out, (value, locations), grads, is_grads_batched=True, retain_graph=True)
    for index in range(3):
        single = torch.autograd.grad(out, (value, locations), grads[index], retain_graph=True)
        for one, other in zip(batched, single):
            torch.testing.assert_close(one[index], other)


def test_forward_mode_is_refused():
    value, locations, weights = (t.detach() for t in leaves())
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda v: attend(v, locations, weights), (value,), (value,))
    with torch.autograd.forward_ad.dual_level():
        attend(value, locations, weights)  # nobody asks for a derivative
        dual = torch.autograd.forward_ad.make_dual(value, value)
        with pytest.raises(NotImplementedError, match="forward-mode"):
            attend(dual, locations, weights)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_derivatives_of_torch_func_are_refused(transform):
    value, locations, weights = (t.detach() for t in leaves())
    with pytest.raises(NotImplementedError, match=r"under torch\.vmap, but not under torch\.func's derivatives"):
        transform(lambda v: attend(v, locations, weights).sum())(value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.zeros(2, 36, 6)}, r"value must be \[B, S, M, D\], got \[2, 36, 6\]"),
        ({1: [5, 6]}, "two numbers for each of 2 levels, got 2"),
        ({1: [5, 6, 3, 3]}, "value has 36 tokens, but spatial_shapes hold 39"),
        ({1: [-5, -6, 3, 2]}, "must not be negative"),
        ({2: torch.zeros(2, 3, 2, 4, 2)}, r"sampling_locations must be \[2, 3, 2, 5, 2\], got \[2, 3, 2, 4, 2\]"),
        ({2: torch.zeros(2, 3, 2, 5, 2).double()}, "sampling_locations must be float32"),
        ({3: torch.zeros(2, 3, 2, 4)}, r"attention_weights must be \[2, 3, 2, 5\], got \[2, 3, 2, 4\]"),
        ({3: torch.zeros(2, 3, 2, 5).half()}, "attention_weights must be float32"),
        ({0: torch.zeros(2, 36, 2, 3, dtype=torch.int32)}, "value must be float32"),
        ({1: [1, 1] * 36, 4: [1] * 36}, "at most 32 levels"),
    ],
)
def test_the_kernels_check_for_themselves(change, message):
    whole = [torch.zeros(2, 36, 2, 3), [5, 6, 3, 2], torch.zeros(2, 3, 2, 5, 2), torch.zeros(2, 3, 2, 5), [2, 3]]
    for index, replacement in change.items():
        whole[index] = replacement
    with pytest.raises(RuntimeError, match=message):
        torch.ops.deformable_detr.ms_deform_attn(*whole)


def test_the_backward_kernel_checks_its_gradient():
    value, _, locations, weights, _ = arguments(SHAPES, POINTS)
    with pytest.raises(RuntimeError, match=r"grad must be \[2, 11, 16\], got \[2, 11, 8\]"):
        torch.ops.deformable_detr.ms_deform_attn_backward(
            torch.zeros(2, 11, 8), value, [5, 6, 3, 2], locations, weights, POINTS, False
        )


def test_the_entry_for_code_written_against_the_original():
    value, shapes, locations, weights, points = arguments(SHAPES, [3, 3])
    starts = torch.tensor([0, 30])
    out = MSDeformAttnFunction.apply(
        value, torch.tensor(shapes), starts, locations.unflatten(3, (2, 3)), weights.unflatten(3, (2, 3)), 64
    )
    assert torch.equal(out, ops.ms_deform_attn(value, shapes, locations, weights, points))
    with pytest.raises(ValueError, match="value_level_start_index must be"):
        MSDeformAttnFunction.apply(
            value, torch.tensor(shapes), starts + 1, locations.unflatten(3, (2, 3)), weights.unflatten(3, (2, 3)), 64
        )
    with pytest.raises(ValueError, match=r"\[B, Q, M, L=2, K, 2\]"):
        MSDeformAttnFunction.apply(value, torch.tensor(shapes), starts, locations, weights, 64)
    with pytest.raises(ValueError, match=r"\[B, Q, M, L=2, K, 2\]"):  # L and K the other way round
        MSDeformAttnFunction.apply(
            value, torch.tensor(shapes), starts, locations.unflatten(3, (3, 2)), weights.unflatten(3, (2, 3)), 64
        )


def test_results_do_not_depend_on_what_else_wants_a_gradient():
    given_arguments = arguments(SHAPES, POINTS)
    everything = results(given_arguments, "cpu")
    value = given_arguments[0].detach().requires_grad_()
    out = ops.ms_deform_attn(value, *given_arguments[1:])
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(9)))
    assert torch.equal(value.grad, everything[1])
