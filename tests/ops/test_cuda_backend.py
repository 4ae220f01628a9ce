"""The CUDA kernels on a GPU, against the reference in float64 on the CPU."""

import pytest
import torch

import ops
from tests.ops.examples import arguments, in_float64, relative_errors, results
from tests.ops.test_cpu_backend import CHANNELS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def on_gpu(arguments):
    return [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]


def test_the_library_is_built():
    assert ops.selected_backend("cuda", "cuda") == "cuda"  # says how to build it if not


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("queries", [1, 300], ids=["one", "many"])
def test_equals_the_reference_in_float64(channels, dtype, queries):
    given_arguments = arguments(channels=channels, queries=queries, dtype=dtype)
    grad = torch.randn(2, queries, 2 * channels, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = results(in_float64(given_arguments), "reference", grad.double())
    ours = [t.cpu() for t in results(on_gpu(given_arguments), "cuda", grad.cuda())]
    for error in relative_errors(ours, exact):
        assert error <= TOLERANCES[dtype]


def test_every_query_of_an_encoder():
    shapes = [(50, 84), (25, 42), (13, 21), (7, 11)]
    tokens = sum(h * w for h, w in shapes)
    for dtype in (torch.float32, torch.bfloat16):
        given_arguments = arguments(shapes, [4] * 4, batch=2, queries=tokens, heads=8, channels=32, dtype=dtype)
        grad = torch.randn(2, tokens, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
        exact = results(in_float64(given_arguments), "reference", grad.double())
        ours = [t.cpu() for t in results(on_gpu(given_arguments), "cuda", grad.cuda())]
        assert max(relative_errors(ours, exact)) <= TOLERANCES[dtype]


@pytest.mark.parametrize("change", [{"batch": 0}, {"queries": 0}, {"num_points": (0, 0, 0)}, {"channels": 0}])
def test_nothing_to_do(change):
    given_arguments = on_gpu(arguments(**change))
    grad = torch.zeros((*given_arguments[3].shape[:2], 2 * given_arguments[0].shape[3]), device="cuda")
    out, *grads = results(given_arguments, "cuda", grad)
    assert out.abs().sum() == 0 and all(g.abs().sum() == 0 for g in grads)


def test_strided_arguments_and_an_offset_start():
    value, shapes, locations, weights, points = on_gpu(arguments(dtype=torch.float32))
    grad = torch.randn(2, 11, 16, device="cuda")
    expected = results((value, shapes, locations, weights, points), "cuda", grad)
    unaligned = torch.cat([value.new_zeros(1), value.flatten()])[1:].view_as(value)  # four bytes off 16
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    for other in (unaligned, strided):
        for ours, theirs in zip(results((other, shapes, locations, weights, points), "cuda", grad), expected):
            torch.testing.assert_close(ours, theirs)


def test_deterministic_mode_repeats_to_the_bit():
    given_arguments = on_gpu(arguments([(20, 30), (10, 15)], [4, 4], queries=750, heads=4, channels=32))
    grad = torch.randn(2, 750, 128, device="cuda")
    plain = results(given_arguments, "cuda", grad)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [results(given_arguments, "cuda", grad) for _ in range(10)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs:
        assert all(torch.equal(one, other) for one, other in zip(run, runs[0]))
    for exact, fast in zip(runs[0], plain):
        torch.testing.assert_close(exact, fast, atol=1e-4, rtol=1e-4)


def test_no_host_sync_and_capture_in_a_graph():
    value, shapes, locations, weights, points = on_gpu(arguments(queries=50, channels=32))
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    grad = torch.randn(2, 50, 64, device="cuda")

    def step():
        out = ops.ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2], points)
        return out, *torch.autograd.grad(out, leaves, grad)

    expected = step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    for ours, theirs in zip(captured, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_current_stream_is_used():
    given_arguments = on_gpu(arguments(queries=2000, channels=32))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a launch elsewhere would not wait for what comes next
        value = given_arguments[0] * 2
        out = ops.ms_deform_attn(value, *given_arguments[1:])
    stream.synchronize()
    expected = ops.ms_deform_attn(given_arguments[0] * 2, *given_arguments[1:])
    assert torch.equal(out, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_than_the_current_device():
    given_arguments = [a.to("cuda:1") if isinstance(a, torch.Tensor) else a for a in arguments()]
    out = ops.ms_deform_attn(*given_arguments)
    torch.testing.assert_close(out.cpu(), ops.ms_deform_attn(*arguments()), atol=1e-5, rtol=1e-5)


def test_more_elements_than_32_bits_count():
    memory = torch.cuda.get_device_properties(0).total_memory
    if memory < 24e9:
        pytest.skip("needs 24 GB of GPU memory")
    height, width, channels = 8300, 4100, 64  # 2.2e9 elements in one map
    value = torch.zeros(1, height * width, 1, channels, dtype=torch.float16, device="cuda")
    value[0, -1] = 1.0
    location = torch.tensor([(width - 0.5) / width, (height - 0.5) / height], device="cuda").view(1, 1, 1, 1, 2)
    weight = torch.ones(1, 1, 1, 1, device="cuda")
    out = ops.ms_deform_attn(value, [(height, width)], location, weight, [1])
    assert (out > 0.9).all()


def test_opcheck_and_compile():
    value, shapes, locations, weights, points = on_gpu(arguments())
    flat = [size for shape in shapes for size in shape]
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    torch.library.opcheck(
        torch.ops.deformable_detr.ms_deform_attn.default, (leaves[0], flat, leaves[1], leaves[2], points)
    )
    compiled = torch.compile(ops.ms_deform_attn, fullgraph=True)
    torch.testing.assert_close(
        compiled(leaves[0], shapes, leaves[1], leaves[2], points),
        ops.ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2], points),
    )


def test_autocast():
    value, shapes, locations, weights, points = on_gpu(arguments(channels=32))
    with torch.autocast("cuda", dtype=torch.float16):
        out = ops.ms_deform_attn(value, shapes, locations, weights, points)
    assert torch.equal(out, ops.ms_deform_attn(value.half(), shapes, locations, weights, points))
