"""Finds what compiles the operator: the C++ compiler, nvcc, and the headers and libraries of CUDA."""

import os
import platform
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch


class BuildError(Exception):
    """A build cannot go on; the message says what to do."""


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


def compiler_version(cxx: list[str]) -> str:
    """The first line that the compiler prints for `--version`."""
    shown = subprocess.run([*cxx, "--version"], capture_output=True, text=True).stdout
    return shown.splitlines()[0] if shown else " ".join(cxx)


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


def package_folders(kind: str) -> list[Path]:
    """The folders `nvidia/*/<kind>` of the CUDA packages that pip installs beside torch."""
    return sorted(Path(torch.__file__).parent.parent.glob(f"nvidia/*/{kind}"))
