"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, for every instruction set of this machine."""

import os
import platform
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ops import backends, compile_commands
from tests.ops.examples import arguments, in_float64, relative_errors, results
from tests.ops.test_cpu_backend import TOLERANCES

HARNESS = Path(__file__).parent / "sanitized" / "cpu_harness.cpp"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1"]
CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
X86 = platform.machine().lower() in ("x86_64", "amd64")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")]


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """The sources as `ops.build` compiles them, with sanitizers, around a program of their own."""
    folder = tmp_path_factory.mktemp("sanitized")
    commands, _ = compile_commands.cpu_commands(["c++"], folder)
    commands = [command for command in commands if "binding" not in str(command[-1])]
    commands.append(["c++", *compile_commands.FLAGS, "-c", HARNESS, "-o", folder / "harness.o"])
    commands = [[c for c in command if c != "-O3"] + SANITIZE for command in commands]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    objects = [command[command.index("-o") + 1] for command in commands]
    subprocess.run(["c++", *SANITIZE, *objects, "-lpthread", "-o", folder / "harness"], check=True)
    return folder / "harness"


def run(harness, folder, arguments, grad, threads=2, capability=None, short=False):
    value, shapes, locations, weights, points = arguments
    batch, tokens, heads, channels = value.shape
    sizes = [CODES[value.dtype], threads, batch, tokens, heads, channels, weights.shape[1], sum(points), len(points)]
    sizes += [number for (height, width), k in zip(shapes, points) for number in (height, width, k)]
    arrays = b"".join(
        t.contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in (value, locations, weights, grad)
    )
    (folder / "input").write_bytes(struct.pack(f"{len(sizes)}q", *sizes) + arrays)
    environment = {**os.environ, **({"ATEN_CPU_CAPABILITY": capability} if capability else {})}
    return subprocess.run(
        [harness, folder / "input", folder / "output", *(["short"] if short else [])],
        env=environment,
        capture_output=True,
        text=True,
    )


def read(folder, arguments, grad):
    value, _, locations, weights, _ = arguments
    content, tensors, at = (folder / "output").read_bytes(), [], 0
    for like in (grad, value, locations, weights):
        size = like.numel() * like.element_size()
        piece = torch.frombuffer(bytearray(content[at : at + size]), dtype=like.dtype) if size else like.flatten()
        tensors.append(piece.view(like.shape))
        at += size
    assert at == len(content)
    return tensors


@pytest.mark.parametrize(
    "capability",
    ["avx512", "avx2", "default"] if X86 else ["default"],
)
def test_no_sanitizer_objects_and_results_agree(harness, tmp_path, capability):
    cases = [
        {"channels": channels, "queries": queries, "dtype": dtype}
        for channels in (1, 3, 8, 32, 33, 64, 256)
        for queries in (1, 150)
        for dtype in TOLERANCES
    ]
    cases += [{"queries": 0}, {"batch": 0}, {"num_points": (0, 5, 0)}, {"num_points": (70, 90, 30), "queries": 3}]
    ran = set()
    for case in cases:
        given_arguments = arguments(**case)
        value, weights = given_arguments[0], given_arguments[3]
        shape = (value.shape[0], weights.shape[1], value.shape[2] * value.shape[3])
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(value.dtype)
        done = run(harness, tmp_path, given_arguments, grad, capability=capability)
        assert done.returncode == 0, f"{case}: {done.stderr[:2000]}"
        ran.add(done.stdout.strip())
        exact = results(in_float64(given_arguments), "reference", grad.double())
        errors = relative_errors(read(tmp_path, given_arguments, grad), exact)
        assert max(errors) <= TOLERANCES[value.dtype], (case, errors)
    words = set(Path("/proc/cpuinfo").read_text().split()) if X86 else set()
    has = {"avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= words, "avx2": {"avx2", "fma"} <= words}
    order = ["avx512", "avx2"] if capability == "avx512" else [capability]
    assert ran == {next((name for name in order if has.get(name)), "baseline")}


@pytest.mark.parametrize("queries", [1, 150], ids=["plain", "packed"])
def test_a_read_behind_the_end_is_caught(harness, tmp_path, queries):
    """The sanitizer sees what the kernels read: a value one row short is noticed."""
    value, shapes, locations, weights, points = arguments([(4, 5)], [3], batch=1, heads=1, queries=queries, channels=16)
    locations = torch.full_like(locations, 0.99)  # the last pixel
    grad = torch.zeros(1, queries, 16)
    done = run(harness, tmp_path, (value, shapes, locations, weights, points), grad, threads=1, short=True)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr


def test_the_sources_name_no_torch():
    """What the harness compiles is what torch gets: only the binding knows torch."""
    for path in backends.sources("cpu"):
        if path.name not in ("binding.cpp", "arguments.h"):
            assert "torch/" not in path.read_text()
