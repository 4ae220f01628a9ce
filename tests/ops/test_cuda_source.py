"""The CUDA kernels without a GPU: run on the CPU by an emulation, and read in what nvcc makes of them."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from ops import backends, compile_commands, compilers, reference
from ops.architectures import choose_architectures
from tests.ops.examples import arguments, in_float64, relative_errors

EMULATION = Path(__file__).parent / "cuda_emulation"
KERNELS = backends.SOURCES / "cuda"
SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-g1", "-O0"]
CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
FORWARD, BACKWARD, FIXED_POINT = 0, 1, 2
# Output rounded to the value's type; gradients of fp32 and fp64 by sums in another order; half types sum in fp32, and
# all but the fixed-point gradient of value stays in it.
ROUNDING = {torch.float32: 4e-6, torch.float64: 1e-12, torch.float16: 2**-10, torch.bfloat16: 2**-7}
LEVELS = [(9, 13), (5, 7), (3, 4)]  # 164 tokens


# ------------------------------------------------------------------------------------------------------- emulated


@pytest.fixture(scope="session")
def harness(tmp_path_factory):
    """The kernels' sources in a program for the CPU, with sanitizers."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    program = tmp_path_factory.mktemp("emulation") / "harness"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", *SANITIZE]
    subprocess.run(["g++", *flags, f"-I{KERNELS}", EMULATION / "harness.cpp", "-o", program], check=True)
    return program


def execute(harness, folder, mode, given, grad=None, order=0, multiprocessors=1, missing=0):
    value, shapes, locations, weights, points = given
    batch, tokens, heads, channels = value.shape
    words = [mode, CODES[value.dtype], batch, tokens, heads, channels, weights.shape[1], sum(points), len(points)]
    words += [order, multiprocessors, missing]
    words += [number for (height, width), k in zip(shapes, points) for number in (height, width, k)]
    tensors = [value, locations, weights] if grad is None else [value, locations, weights, grad]
    arrays = [t.contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in tensors if t.numel()]
    (folder / "input").write_bytes(struct.pack(f"{len(words)}q", *words) + b"".join(arrays))
    return subprocess.run([harness, folder / "input", folder / "output"], capture_output=True, text=True)


def emulate(harness, folder, mode, given, grad=None, **options):
    """The output of forward, or the gradients of value, locations and weights."""
    done = execute(harness, folder, mode, given, grad, **options)
    assert done.returncode == 0, done.stderr[:3000]
    value, _, locations, weights, _ = given
    if mode == FORWARD:
        like = [value.new_empty(value.shape[0], weights.shape[1], value.shape[2] * value.shape[3])]
    else:
        like = [value if mode == FIXED_POINT else value.to(weights.dtype), locations, weights]
    content, found, at = (folder / "output").read_bytes(), [], 0
    for tensor in like:
        size = tensor.numel() * tensor.element_size()
        piece = bytearray(content[at : at + size])
        found.append(torch.frombuffer(piece, dtype=tensor.dtype).view(tensor.shape) if size else tensor.clone())
        at += size
    assert at == len(content)
    return found


def expected(given, grad):
    """Output and gradients by the reference in float64."""
    value, shapes, locations, weights, points = in_float64(given)
    # Far away is far away: grid_sample has no rule for locations that are not numbers.
    strange = (~(locations.abs() < 1e6)).any(-1, keepdim=True)
    leaves = [t.requires_grad_() for t in (value, locations.masked_fill(strange, -9.0), weights)]
    out = reference.ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2], points)
    if not out.requires_grad:
        return [out, *(torch.zeros_like(leaf) for leaf in leaves)]
    found = torch.autograd.grad(out, leaves, grad.double(), allow_unused=True)
    return [out.detach(), *(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found))]


def gradient_for(given):
    value, _, _, weights, _ = given
    shape = (value.shape[0], weights.shape[1], value.shape[2] * value.shape[3])
    return torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(value.dtype)


def compare(harness, folder, given, **options):
    """Forward and both backwards against the reference; returns the fixed-point gradients."""
    grad, rounding = gradient_for(given), ROUNDING[given[0].dtype]
    exact = expected(given, grad)
    tight = ROUNDING[given[3].dtype]
    ours = emulate(harness, folder, FORWARD, given, **options)
    assert relative_errors(ours, exact[:1])[0] <= rounding
    plain = emulate(harness, folder, BACKWARD, given, grad, **options)
    assert all(error <= tight * 4 for error in relative_errors(plain, exact[1:]))  # NaN is no pass
    fixed = emulate(harness, folder, FIXED_POINT, given, grad, **options)
    assert relative_errors(fixed, exact[1:])[0] <= max(rounding, 1e-11)
    for a, b in zip(fixed[1:], plain[1:]):  # one channel to a lane sums in another order
        torch.testing.assert_close(a, b, rtol=0, atol=tight * 4 * float(b.abs().max()) if b.numel() else 0)
    return fixed


@pytest.mark.parametrize("dtype", CODES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 32, 33, 64, 128, 256])
def test_every_width_and_dtype(harness, tmp_path, channels, dtype):
    """11 queries fill no block, 6 points no chunk of 8; some locations are outside, infinite or not a number."""
    compare(harness, tmp_path, arguments(channels=channels, batch=1, dtype=dtype))


@pytest.mark.parametrize(
    "case",
    [
        {"num_points": (0, 5, 0)},
        {"num_points": (4, 0, 13), "queries": 3},
        {"num_points": (1, 0, 0), "queries": 1},
        {"num_points": (8, 8, 8), "heads": 1},
        {"spatial_shapes": [(1, 1)], "num_points": (3,)},
        {"spatial_shapes": [(1, 40), (0, 3), (17, 1)], "num_points": (2, 2, 3)},
        {"spatial_shapes": [(2, 3)] * 32, "num_points": (1,) * 32, "queries": 2},
        {"spatial_shapes": LEVELS, "num_points": (2, 3, 1), "queries": 164, "heads": 1, "channels": 32},
        {"spatial_shapes": [(1, 50), (30, 1)], "num_points": (2, 3), "queries": 80, "heads": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("multiprocessors", [1, 1000], ids=["large blocks", "small blocks"])
def test_every_shape(harness, tmp_path, case, multiprocessors):
    """K that differs by level, levels without points or pixels, as many queries as tokens; blocks of 8 warps and 1."""
    compare(harness, tmp_path, arguments(**{"batch": 2, "channels": 16, **case}), multiprocessors=multiprocessors)


@pytest.mark.parametrize(
    "case",
    [
        {"queries": 0},
        {"batch": 0},
        {"heads": 0},
        {"channels": 0},
        {"num_points": (0, 0, 0)},
        {"spatial_shapes": [], "num_points": ()},
        {"spatial_shapes": [(0, 4)], "num_points": (2,)},
    ],
    ids=str,
)
def test_nothing_to_do(harness, tmp_path, case):
    given = arguments(**case)
    grad = gradient_for(given)
    results = [emulate(harness, tmp_path, FORWARD, given)]
    results += [emulate(harness, tmp_path, mode, given, grad) for mode in (BACKWARD, FIXED_POINT)]
    assert all((tensor == 0).all() for result in results for tensor in result)


def test_edges_of_the_maps(harness, tmp_path):
    """Pixels at -1, -0.5, on the last one and just beyond it, and locations around the largest integers."""
    pixels = torch.tensor([-1.001, -0.999, -0.5, 0.0, 6.0, 6.5, 6.999, 7.001, -2e9, 2.2e9, 4.3e9, 1e19, -1e38])
    locations = torch.cartesian_prod((pixels + 0.5) / 7, torch.tensor([0.3, 0.55])).view(1, -1, 1, 1, 2)
    locations = torch.cat([locations, locations.flip(-1)], 1)
    value = torch.randn(1, 49, 1, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(locations.shape[:-1])
    given = (value, [(7, 7)], locations, weights, [1])
    grad = gradient_for(given)
    exact = expected(given, grad)
    torch.testing.assert_close(emulate(harness, tmp_path, FORWARD, given)[0].double(), exact[0], rtol=0, atol=1e-5)
    # At whole pixels the derivative has two sides, and rounding chooses.
    smooth = (((locations * 7 - 0.5) % 1 - 0.5).abs() < 0.4995).all(-1, keepdim=True)
    for ours, wanted in zip(emulate(harness, tmp_path, BACKWARD, given, grad)[1:], exact[2:]):
        chosen = smooth if ours.dim() == 5 else smooth[..., 0]
        torch.testing.assert_close((ours * chosen).double(), wanted * chosen, rtol=0, atol=2e-5)


@pytest.mark.parametrize("channels", [4, 33, 256])
def test_nan_stays_where_it_is(harness, tmp_path, channels):
    """A NaN in one token reaches the queries that touch it, and no other; a query beside the map reads nothing."""
    shapes, points = [(4, 6)], [10]
    value = torch.randn(1, 24, 1, channels, generator=torch.Generator().manual_seed(0))
    bad = [0, 5, 18, 23]
    value[0, bad] = torch.nan  # the corners, where clamping leads
    locations = torch.rand(1, 40, 1, 10, 2, generator=torch.Generator().manual_seed(1)) * 4 - 2
    locations[0, :7] = 5.0  # nothing inside
    weights = torch.rand(1, 40, 1, 10, generator=torch.Generator().manual_seed(2))
    x, y = locations[..., 0] * 6 - 0.5, locations[..., 1] * 4 - 0.5
    near = [((x - t % 6).abs() < 1) & ((y - t // 6).abs() < 1) for t in bad]
    touched = torch.stack(near).any(0)  # [1, Q, 1, P]
    assert 0.1 < touched.any(-1).float().mean() < 0.9
    given = (value, shapes, locations, weights, points)
    out = emulate(harness, tmp_path, FORWARD, given)[0]
    assert torch.equal(out.isnan(), touched.any(-1).expand(1, 40, channels))
    for mode in (BACKWARD, FIXED_POINT):
        grad_value, grad_locations, grad_weights = emulate(harness, tmp_path, mode, given, gradient_for(given))
        assert grad_value.isfinite().all()
        assert torch.equal(grad_weights.isnan(), touched)
        assert torch.equal(grad_locations.isnan().any(-1), touched)


def encoder_like(dtype=torch.float32):
    """Many queries that add to few tokens."""
    return arguments([(4, 5)], [4], batch=1, queries=40, heads=2, channels=8, dtype=dtype, seed=3)


@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_fixed_point_does_not_depend_on_the_order(harness, tmp_path, dtype):
    """Threads and blocks in other orders: the plain gradient of value changes in its last bits, the exact one not."""
    given = encoder_like(dtype)
    grad = gradient_for(given)
    runs = {
        mode: [emulate(harness, tmp_path, mode, given, grad, order=order)[0] for order in (0, 1, 2)]
        for mode in (BACKWARD, FIXED_POINT)
    }
    assert not torch.equal(runs[BACKWARD][0], runs[BACKWARD][1])
    assert torch.equal(runs[FIXED_POINT][0], runs[FIXED_POINT][1])
    assert torch.equal(runs[FIXED_POINT][0], runs[FIXED_POINT][2])


@pytest.mark.parametrize("channels", [8, 33, 256])
def test_any_order_of_threads_gives_the_result(harness, tmp_path, channels):
    """A barrier that is missing between lanes would show."""
    for order in (1, 2, 3):
        compare(harness, tmp_path, arguments(batch=1, channels=channels, num_points=(7, 0, 12)), order=order)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_fixed_point_of_any_magnitude(harness, tmp_path, scale):
    given = encoder_like()
    grad = gradient_for(given) * scale
    ours = emulate(harness, tmp_path, FIXED_POINT, given, grad)
    assert all(error < 4e-6 for error in relative_errors(ours, expected(given, grad)[1:]))


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", ["grad", "weights"])
def test_fixed_point_of_what_is_not_finite(harness, tmp_path, bad, where):
    """No integer holds it: the whole gradient of value is NaN, which a gradient scaler sees."""
    given = encoder_like(torch.float16)
    grad = gradient_for(given)
    (grad if where == "grad" else given[3]).view(-1)[77] = bad
    assert emulate(harness, tmp_path, FIXED_POINT, given, grad)[0].isnan().all()


def test_fixed_point_does_not_overflow(harness, tmp_path):
    """Every query puts the largest term on one element."""
    value, weights = torch.zeros(1, 1, 1, 1), torch.ones(1, 64, 1, 3)
    given = (value, [(1, 1)], torch.full((1, 64, 1, 3, 2), 0.5), weights, [3])
    for largest in (1.0, 1.9999999):
        found = emulate(harness, tmp_path, FIXED_POINT, given, torch.full((1, 64, 1), largest))[0]
        torch.testing.assert_close(found, torch.full_like(value, 192 * largest))


@pytest.mark.parametrize("mode", [FORWARD, BACKWARD, FIXED_POINT])
@pytest.mark.parametrize("channels", [3, 32])
def test_a_read_behind_the_end_is_caught(harness, tmp_path, mode, channels):
    """The sanitizer sees what the kernels read: a value one row short is noticed."""
    value, shapes, locations, weights, points = arguments([(4, 5)], [3], batch=1, heads=1, channels=channels)
    given = (value, shapes, torch.full_like(locations, 0.99), weights, points)  # the last pixel
    grad = None if mode == FORWARD else gradient_for(given)
    done = execute(harness, tmp_path, mode, given, grad, missing=1)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize(
    "mode, message",
    [
        (10, "has left|leaves while others"),
        (11, "wait at different operations"),
        (12, "has left|leaves while others"),
        (13, "heap-buffer-overflow"),
    ],
)
def test_the_emulation_finds_mistakes(harness, tmp_path, mode, message):
    done = execute(harness, tmp_path, mode, arguments())
    assert done.returncode != 0 and re.search(message, done.stderr)


# ------------------------------------------------------------------------------------------------------- compiled


def find_tool(name):
    """One of NVIDIA's programs: on PATH, beside nvcc, or in a package of Python's."""
    nvcc = compilers.find_nvcc()
    places = [Path(found) for found in [shutil.which(name)] if found]
    places += [nvcc.path.resolve().parent / name] if nvcc else []
    places += [folder / name for folder in compilers.package_folders("bin")]
    return next((place for place in places if place.exists()), None)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The kernels' object for every architecture, as the build compiles it, and what ptxas says about it."""
    nvcc = compilers.find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc: in CUDA_HOME, on PATH, or `pip install nvidia-cuda-nvcc`")
    target = tmp_path_factory.mktemp("compiled") / "kernels.o"
    include = compilers.find_toolkit(nvcc, "include", "cuda_runtime.h")
    architectures = choose_architectures("all", nvcc)
    # One command for all: the host's half is compiled once.
    command = compile_commands.cuda_kernel_command(
        nvcc, architectures, target, include, compilers.find_cxx(), ["-Xptxas", "-v", "-Werror", "all-warnings"]
    )
    # Machine code alone.
    command = [part for part in command if "code=compute_" not in str(part)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return target, architectures, done.stderr


@pytest.mark.slow
def test_no_spills_and_no_stack(compiled):
    _, architectures, report = compiled
    # The same of every function, also of one that is no kernel and names no architecture.
    frame = (
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    assert not [found for found in re.findall(frame, report) if set(found[1:]) != {"0"}]
    kernel = r"entry function '(\S+_kernel\S+)' for 'sm_(\d+)'\s+ptxas info\s+: " + frame
    entries = re.findall(kernel + r"\s+ptxas info\s+: Used (\d+) registers", report)
    assert architectures
    for architecture in architectures:
        kernels = [entry for entry in entries if entry[1] == architecture]
        assert len(kernels) >= 40, f"sm_{architecture}: the report names {len(kernels)} kernels"
        # 16 warps of every kernel fit on a multiprocessor with its 65536 registers, but for those of fp64.
        greedy = [entry for entry in kernels if int(entry[-1]) > 128]
        assert not greedy, f"sm_{architecture}: {greedy}"


@pytest.mark.slow
def test_wide_loads_and_vector_reductions(compiled):
    """In sm_90: 16-byte loads in forward and backward, and four sums to a reduction."""
    cuobjdump = find_tool("cuobjdump")
    if cuobjdump is None or find_tool("nvdisasm") is None:
        pytest.skip("needs cuobjdump and nvdisasm: `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`")
    environment = {"PATH": f"{find_tool('nvdisasm').parent}:/usr/bin:/bin"}
    shown = subprocess.run(
        [cuobjdump, "-sass", "-arch", "sm_90", compiled[0]], capture_output=True, text=True, env=environment, check=True
    ).stdout
    functions = {text.split(None, 1)[0]: text for text in shown.split("Function : ")[1:]}
    # One that stands for each: fp32, 4 channels in each of 8 lanes, D = 32.
    (forward,) = [text for name, text in functions.items() if "forward_kernelIfLi4ELi8E" in name]
    (backward,) = [text for name, text in functions.items() if "backward_kernelIffLi4ELi8E" in name]
    assert len(re.findall(r"LDG\.E\.128", forward)) >= 8
    assert len(re.findall(r"LDG\.E\.128", backward)) >= 32
    assert len(re.findall(r"RED\w*\.E\.ADD\.F32x4", backward)) == 32  # 8 points of 4 corners
    between = re.search(r"LDG\.E\.128.*?FFMA", forward, re.DOTALL).group()
    assert len(re.findall(r"LDG\.E\.128", between)) == 8, "the loads of two points should go out together"
    for name, text in functions.items():
        if re.search(r"(for|back)ward_kernelI[^L]*Li[248]E", name):
            assert re.search(r"LDG\.E\.128", text), name
        assert not re.search(r"\b(STL|LDL)\b", text), name


def test_the_kernels_name_no_torch():
    """What the emulation compiles is what torch gets: only the binding knows torch."""
    for path in KERNELS.iterdir():
        if path.name != "binding.cpp":
            assert "torch/" not in path.read_text()
