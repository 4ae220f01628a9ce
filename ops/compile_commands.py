"""The commands that compile and link the CPU library and the CUDA library."""

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from ops import backends
from ops.architectures import architecture_flags
from ops.compilers import Nvcc, find_toolkit

FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# No function here reads errno or floating-point exceptions. Keeping track of them would prevent vectorised loops.
KERNEL_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
X86_VARIANTS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
}
Command = Sequence[str | Path]


def cpu_variants() -> list[str]:
    """The instruction sets that the CPU library is compiled for. It chooses one of them when it runs."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return [*(X86_VARIANTS if x86 else []), "baseline"]


def cpu_commands(cxx: list[str], folder: Path) -> tuple[list[Command], Command]:
    """The compilations of the CPU library, and the command that links their objects."""
    source, variants = backends.SOURCES / "cpu", cpu_variants()
    compile_ = [*cxx, *FLAGS]
    commands: list[Command] = [
        [*compile_, *KERNEL_FLAGS, *flags, f"-DISA={name}", "-c", source / "kernels.cpp", "-o", folder / f"{name}.o"]
        for name in variants
        for flags in [X86_VARIANTS.get(name, [])]
    ]
    with_variants = ["-DWITH_X86_VARIANTS"] if len(variants) > 1 else []
    commands.append([*compile_, *with_variants, "-c", source / "ms_deform_attn.cpp", "-o", folder / "ms_deform_attn.o"])
    commands.append([*compile_, *torch_flags(), "-c", source / "binding.cpp", "-o", folder / "binding.o"])
    objects = [command[-1] for command in commands]
    link = [*cxx, "-shared", *objects, *torch_link_flags("torch", "torch_cpu", "c10"), "-o", folder / "library.so"]
    return commands, link


def cuda_commands(cxx: list[str], nvcc: Nvcc, architectures: list[str], folder: Path) -> tuple[list[Command], Command]:
    """The compilations of the CUDA library, and the command that links their objects."""
    source = backends.SOURCES / "cuda"
    include = find_toolkit(nvcc, "include", "cuda_runtime.h")
    runtime = find_toolkit(nvcc, "lib", "libcudart_static.a")
    commands: list[Command] = [cuda_kernel_command(nvcc, architectures, folder / "kernels.o", include, cxx)]
    commands.append(
        [*cxx, *FLAGS, *torch_flags(), "-DUSE_CUDA", f"-isystem{include}", "-c", source / "binding.cpp", "-o",
         folder / "binding.o"]
    )  # fmt: skip
    objects = [command[-1] for command in commands]
    # The CUDA runtime is linked in, so torch's own may have another version.
    link = [
        *cxx, "-shared", *objects, *torch_link_flags("torch", "torch_cpu", "torch_cuda", "c10"),
        runtime / "libcudart_static.a", "-ldl", "-lrt", "-lpthread", "-o", folder / "library.so",
    ]  # fmt: skip
    return commands, link


def cuda_kernel_command(
    nvcc: Nvcc, architectures: list[str], target: Path, include: Path, cxx: list[str], extra: Iterable[str] = ()
) -> Command:
    """The command that compiles the CUDA kernels."""
    host = ["-Xcompiler", "-fPIC,-fvisibility=hidden", "-ccbin", cxx[-1]]
    return [
        str(nvcc.path), "-std=c++17", "-O3", "--threads", "0", *architecture_flags(architectures), *host, *extra,
        f"-I{include}", "-c", backends.SOURCES / "cuda" / "ms_deform_attn.cu", "-o", target,
    ]  # fmt: skip


def torch_flags() -> list[str]:
    """The compiler's options for torch's stable headers."""
    major, minor = backends.TORCH_TARGET
    include = Path(torch.__file__).parent / "include"
    return [f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000", f"-isystem{include}"]


def torch_link_flags(*libraries: str) -> list[str]:
    """The linker's options for torch's libraries, which are already in memory when ours is opened."""
    return [f"-L{Path(torch.__file__).parent / 'lib'}", *(f"-l{library}" for library in libraries)]
