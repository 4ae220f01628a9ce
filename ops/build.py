"""Compiles the operator: `python -m ops.build`.

The CPU library is always built. The CUDA library is built where torch has CUDA and an nvcc is found: in CUDA_HOME, on
PATH, or in the package `nvidia-cuda-nvcc`, which needs no CUDA toolkit on the system. Both go to `ops/lib/` and work
with every torch from 2.10 on. A library that is up to date is not built again. Importing `ops` never compiles.
"""

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ops import backends

FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# No function here reads errno or floating-point exceptions. Keeping track of them would prevent vectorised loops.
KERNEL_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
X86_VARIANTS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
}
Command = Sequence[str | Path]
ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]  # `--arch all`: Turing to Blackwell


class BuildError(Exception):
    """A build cannot go on; the message says what to do."""


@dataclass
class Nvcc:
    """A CUDA compiler.

    Attributes:
        path: the nvcc program.
        version: its version, such as "13.0".
        supported: the architectures it makes code for, such as "90".
    """

    path: Path
    version: str
    supported: list[str]


def find_cxx() -> list[str]:
    """The C++ compiler's command: $CXX, such as "ccache g++", or else the first of c++, g++ and clang++ on PATH.

    Raises:
        BuildError: there is no compiler.
    """
    asked = shlex.split(os.environ.get("CXX", ""))
    for command in [asked] if asked else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    problem = f"CXX names {asked[0]}, which is not" if asked else "none of c++, g++ and clang++ is"
    raise BuildError(
        f"no C++ compiler: {problem} on PATH. Install one (Debian and Ubuntu: apt-get install g++; Fedora: dnf install "
        "gcc-c++; macOS: xcode-select --install) and build again. Until then the slower reference runs, with the same "
        "results."
    )


def package_folders(kind: str) -> list[Path]:
    """The folders `nvidia/*/<kind>` of the CUDA packages that pip installs beside torch."""
    return sorted(Path(torch.__file__).parent.parent.glob(f"nvidia/*/{kind}"))


def find_nvcc() -> Nvcc | None:
    """The first CUDA compiler in CUDA_HOME, on PATH or in the package `nvidia-cuda-nvcc`; None if there is none.

    Raises:
        BuildError: CUDA_HOME is set but has no nvcc, or nvcc does not run.
    """
    home = os.environ.get("CUDA_HOME")
    if home and not (Path(home) / "bin" / "nvcc").exists():
        raise BuildError(f"CUDA_HOME is {home}, which has no bin/nvcc: set it to a CUDA toolkit, or unset it")
    on_path = shutil.which("nvcc")
    found = [Path(home) / "bin" / "nvcc"] if home else [Path(on_path)] if on_path else []
    found += [folder / "nvcc" for folder in package_folders("bin") if (folder / "nvcc").exists()]
    if not found:
        return None
    path = found[0]
    try:
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        listed = subprocess.run([path, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{path} does not run ({error}): install it anew, or set CUDA_HOME to another") from None
    release = re.search(r"release (\d+\.\d+)", version)
    return Nvcc(path, release.group(1) if release else "?", re.findall(r"sm_(\d+)\b", listed))


def nvcc_packages() -> list[str]:
    """The packages with the nvcc of torch's CUDA version; none before CUDA 13, whose packages lack the program."""
    if int((torch.version.cuda or "0").split(".")[0]) < 13:
        return []
    # nvcc's package does not pin the versions of its parts, and older parts cannot read the code of newer ones.
    return [f"{name}=={torch.version.cuda}.*" for name in ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt")]


def missing_packages() -> list[str]:
    """The packages to install where torch sees a card but there is no nvcc; empty if nothing is missing."""
    if not torch.cuda.device_count() or os.environ.get("CUDA_HOME"):
        return []
    try:
        return [] if find_nvcc() else nvcc_packages()
    except BuildError:  # the build itself will report it
        return []


def find_toolkit(nvcc: Nvcc, kind: str, name: str) -> Path:
    """The folder with a header (`include`) or library (`lib`), in nvcc's own toolkit or in torch's packages.

    Raises:
        BuildError: no folder has it.
    """
    roots = [nvcc.path.resolve().parent.parent]
    if os.environ.get("CUDA_HOME"):
        roots.append(Path(os.environ["CUDA_HOME"]))
    # nvcc on PATH may be a script; its dry run names the toolkit behind it.
    dry = subprocess.run([nvcc.path, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    roots += [Path(top) for top in re.findall(r"^#\$ TOP=(.+)$", dry, re.MULTILINE)]
    kinds = [kind, "lib64", f"targets/{platform.machine()}-linux/lib"] if kind == "lib" else [kind]
    folders = [root / k for root in roots for k in kinds] + package_folders(kind)
    for folder in folders:
        if (folder / name).exists():
            return folder.resolve()
    raise BuildError(
        f"{name} is in none of {', '.join(map(str, folders))}: install the whole CUDA toolkit, or "
        f"`pip install nvidia-cuda-runtime`"
    )


def choose_architectures(asked: str | None, nvcc: Nvcc) -> list[str]:
    """The architectures to build for, such as "90".

    Args:
        asked: "all", or a list such as "80,90"; None takes TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX", or else this
            machine's cards.
        nvcc: the compiler. Architectures in `asked` that it does not know are an error. Those in TORCH_CUDA_ARCH_LIST,
            which container images set for every program, are left out with a message.

    Returns:
        Sorted numbers; empty if none are asked for and there is no card.

    Raises:
        BuildError: `asked` is not a list of architectures, or has one that nvcc does not make code for.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if asked is None and listed.strip():
        numbers = architecture_numbers(listed)
        known = sorted(set(numbers) & set(nvcc.supported), key=int)
        if len(known) < len(set(numbers)) or not known:
            print(f"cuda: nvcc knows {', '.join(known) or 'nothing'} of TORCH_CUDA_ARCH_LIST={listed}", flush=True)
        if known:
            return known
    if asked is None:
        count = torch.cuda.device_count()
        cards = sorted({"".join(map(str, torch.cuda.get_device_capability(i))) for i in range(count)}, key=int)
        # A card newer than nvcc runs the PTX of the newest architecture below it.
        older = [[a for a in nvcc.supported if int(a) <= int(card)] for card in cards]
        return sorted({max(archs, key=int) for archs in older if archs}, key=int)
    if asked == "all":
        return [arch for arch in ARCHITECTURES if arch in nvcc.supported]
    numbers = architecture_numbers(asked)
    unknown = [number for number in numbers if number not in nvcc.supported]
    if unknown or not numbers:
        raise BuildError(
            f"nvcc {nvcc.version} does not make code for '{', '.join(unknown) or asked}'; it does for "
            f"{', '.join(nvcc.supported)}. Give a list as --arch 80,90"
        )
    return sorted(set(numbers), key=int)


def architecture_numbers(listed: str) -> list[str]:
    """The entries of a list such as "8.0;9.0+PTX", "sm_90" or "80,90", as "80" and "90"."""
    parts = (part for part in re.split(r"[\s,;]+", listed) if part)
    return [part.replace("+PTX", "").replace("sm_", "").replace(".", "") for part in parts]


def architecture_flags(architectures: Iterable[str]) -> list[str]:
    """nvcc's options for machine code of every architecture, and for PTX of the last, which newer cards compile."""
    architectures = list(architectures)
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    return [*code, f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}"]


def torch_flags() -> list[str]:
    """The compiler's options for torch's stable headers."""
    major, minor = backends.TORCH_TARGET
    include = Path(torch.__file__).parent / "include"
    return [f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000", f"-isystem{include}"]


def torch_link_flags(*libraries: str) -> list[str]:
    """The linker's options for torch's libraries, which are already in memory when ours is opened."""
    return [f"-L{Path(torch.__file__).parent / 'lib'}", *(f"-l{library}" for library in libraries)]


def run_all(commands: Sequence[Command], jobs: int, verbose: bool) -> None:
    """Run commands side by side.

    Raises:
        BuildError: a command failed; the message holds its output.
    """

    def run(command: Command) -> None:
        if verbose:
            print("  " + " ".join(map(str, command)), flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            output = "\n".join(done.stdout.splitlines()[:40])
            raise BuildError(f"this command failed:\n  {' '.join(map(str, command))}\n{output}")
        if verbose and done.stdout.strip():
            print(done.stdout.rstrip(), flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, commands))


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


def compiler_version(cxx: list[str]) -> str:
    """The first line that the compiler prints for `--version`."""
    shown = subprocess.run([*cxx, "--version"], capture_output=True, text=True).stdout
    return shown.splitlines()[0] if shown else " ".join(cxx)


def build(name: str, commands: Sequence[Command], link: Command, record: dict, jobs: int, verbose: bool) -> None:
    """Run a library's commands and put the result in place. The old record is removed first, the new one written last.

    Raises:
        BuildError: a command failed; the library that was there stays.
    """
    started = time.perf_counter()
    run_all(commands, jobs, verbose)
    run_all([link], 1, verbose)
    target = backends.FOLDER / f"{name}.so"
    target.with_suffix(".json").unlink(missing_ok=True)
    Path(link[-1]).replace(target)
    seconds = time.perf_counter() - started
    record = {
        **record,
        "torch": torch.__version__,
        "machine": backends.this_machine(),
        "sources": backends.sources_hash(name),
        "bytes": target.stat().st_size,
        "seconds": round(seconds, 1),
    }
    target.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"  {seconds:.1f} s -> {target} ({target.stat().st_size / 1024:.0f} KiB)", flush=True)


def up_to_date(name: str, expected: dict) -> bool:
    """Whether the library in place loads, and was built from these sources, for this machine, as `expected`."""
    target = backends.FOLDER / f"{name}.so"
    record = backends.read_record(target)
    expected = {**expected, "machine": backends.this_machine(), "sources": backends.sources_hash(name)}
    return all(record.get(key) == wanted for key, wanted in expected.items()) and backends.load(name).loaded


def build_cpu(args: argparse.Namespace, folder: Path) -> None:
    """Compile the CPU library if it is not up to date."""
    cxx = find_cxx()
    record = {"compiler": compiler_version(cxx), "targets": cpu_variants()}
    if not args.force and up_to_date("cpu", record):
        print("cpu: up to date", flush=True)
        return
    commands, link = cpu_commands(cxx, folder)
    print(f"cpu: compiling with {record['compiler']}", flush=True)
    build("cpu", commands, link, record, args.jobs, args.verbose)


def build_cuda(args: argparse.Namespace, folder: Path) -> None:
    """Compile the CUDA library if it is not up to date and can be built; otherwise print why not."""
    if torch.version.cuda is None:
        print(f"cuda: skipped, torch {torch.__version__} is built without CUDA", flush=True)
        return
    nvcc = find_nvcc()
    if nvcc is None:
        packages = " ".join(f"'{package}'" for package in nvcc_packages())
        mend = f"`{sys.executable} -m pip install {packages}`" if packages else f"CUDA toolkit {torch.version.cuda}"
        message = (
            "no nvcc in CUDA_HOME, on PATH or in Python's packages; without one, CUDA tensors take the slower "
            f"reference. {mend} brings one"
        )
        if args.arch or torch.cuda.device_count():
            raise BuildError(f"cuda: {message}")
        print(f"cuda: skipped, {message}", flush=True)
        return
    if float(nvcc.version.split(".")[0]) > float(torch.version.cuda.split(".")[0]):
        print(
            f"cuda: nvcc is {nvcc.version} and torch's CUDA {torch.version.cuda}: the GPU's driver must be recent "
            "enough for the former, else set CUDA_HOME to a toolkit of torch's version",
            flush=True,
        )
    architectures = choose_architectures(args.arch, nvcc)
    if not architectures:
        print(
            "cuda: skipped, there is no GPU here; to build for another machine name its architecture, as --arch 90 "
            "(H100, H200), 80 (A100), 89 (RTX 40), a list of them, or all",
            flush=True,
        )
        return
    cxx = find_cxx()
    names = [f"sm_{arch}" for arch in architectures]
    record = {"compiler": f"nvcc {nvcc.version}", "targets": [*names, f"PTX {architectures[-1]}"]}
    if not args.force and up_to_date("cuda", record):
        print("cuda: up to date", flush=True)
        return
    commands, link = cuda_commands(cxx, nvcc, architectures, folder)
    print(f"cuda: compiling with nvcc {nvcc.version} ({nvcc.path}) for {', '.join(record['targets'])}", flush=True)
    build("cuda", commands, link, record, args.jobs, args.verbose)


def main(argv: list[str] | None = None) -> int:
    """Build what the command line asks for.

    Returns:
        The exit code: 1 if something could not be built, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m ops.build", description=__doc__)
    parser.add_argument("--backend", choices=["cpu", "cuda"], help="build only this library")
    parser.add_argument(
        "--arch",
        help="CUDA architectures, such as 80,90, or all; PTX of the last is for newer cards "
        "(default: TORCH_CUDA_ARCH_LIST, else those of this machine's cards)",
    )
    parser.add_argument("--force", action="store_true", help="also build what is up to date")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), metavar="N", help="compilers that run at once (default: all cores)"
    )
    parser.add_argument("--verbose", action="store_true", help="show the commands and the compilers' output")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"argument --jobs: must be 1 or more, got {args.jobs}")

    failed = False
    for name, build_one in (("cpu", build_cpu), ("cuda", build_cuda)):
        if args.backend in (None, name):
            try:
                backends.FOLDER.mkdir(exist_ok=True)
                with tempfile.TemporaryDirectory(prefix="build-", dir=backends.FOLDER) as folder:
                    build_one(args, Path(folder))
            except BuildError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                failed = True
            except OSError as error:
                print(f"error: cannot write {backends.FOLDER} ({error}): make it writable", file=sys.stderr, flush=True)
                failed = True
    return int(failed)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # end as other tools do when the reader of the output has gone
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
