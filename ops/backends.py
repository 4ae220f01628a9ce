"""The compiled libraries: where they lie, whether they fit this machine, and how they are loaded.

`python -m ops.build` makes `ops/lib/{cpu,cuda}.so`. A record (`.json`) beside each says what it was built from and for.
A library whose record does not fit is never opened; the message names it, the reason and the remedy.
"""

import ctypes
import functools
import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
FOLDER = Path(__file__).parent / "lib"
REBUILD = "run `python -m ops.build`"
TORCH_TARGET = (2, 10)  # the oldest torch whose stable ABI the libraries are built for


@dataclass(frozen=True)
class Backend:
    """One compiled library, loaded or not.

    Attributes:
        name: `cpu` or `cuda`, the device type of the tensors that it takes.
        loaded: whether its kernels can be called.
        detail: a description if it is loaded; otherwise the reason and the remedy.
        targets: the instruction sets or architectures it is compiled for, such as `sm_90` and `PTX 90`.
    """

    name: str
    loaded: bool
    detail: str
    targets: Sequence[str] = ()


def sources(name: str) -> list[Path]:
    """The files a library is built from, headers included."""
    return sorted(
        path
        for folder in (SOURCES, SOURCES / name)
        for pattern in ("*.h", "*.cpp", "*.cuh", "*.cu")
        for path in folder.glob(pattern)
    )


def sources_hash(name: str) -> str:
    """A hash of the library's sources."""
    digest = hashlib.sha256()
    for path in sources(name):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def this_machine() -> str:
    """The platform of this machine, such as `linux-x86_64`."""
    return f"{sys.platform}-{platform.machine().lower()}"


def torch_version() -> tuple[int, int]:
    """Major and minor version of the installed torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


@functools.cache
def load(name: str) -> Backend:
    """Open the library of a backend, once in a process. If it does not fit, the result says why; nothing is raised."""
    path = FOLDER / f"{name}.so"
    reason = _unfit(name, path)
    if reason is None:
        try:
            torch.ops.load_library(str(path))
        except OSError as error:  # the dynamic linker's: another platform, a missing symbol, a damaged file
            reason = f"{path} cannot be loaded ({error.__cause__ or error}): {REBUILD}"
    if reason is not None:
        return Backend(name, False, reason)
    record = read_record(path)
    made = f"C++ on torch's stable ABI, built with {record['compiler']} against torch {record['torch']}"
    return Backend(name, True, made + (f", running {_capability(path)}" if name == "cpu" else ""), record["targets"])


def read_record(path: Path) -> dict:
    """The record of what a library was built from and for; empty if there is none or it is damaged.

    Keys: `compiler`, `torch`, `machine`, `sources` (a hash), `bytes` (the library's size), `seconds`, and `targets`
    (the instruction sets or architectures, such as `sm_90` and `PTX 90`).
    """
    try:
        record = json.loads(path.with_suffix(".json").read_text())
        keys = {"compiler", "torch", "machine", "sources", "bytes", "targets"}
        return record if keys <= set(record) else {}
    except (OSError, ValueError, TypeError):
        return {}


def serves(targets: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a CUDA library for `targets` runs on a card.

    It does with machine code of the card's generation that is not newer than the card, or with PTX that is not newer.
    """
    card = 10 * capability[0] + capability[1]
    for kind, number in ((target.replace("sm_", "sm ")).split() for target in targets):
        if int(number) <= card and (kind == "PTX" or int(number) // 10 == capability[0]):
            return True
    return False


def _unfit(name: str, path: Path) -> str | None:
    """Why a library must not be opened, or None."""
    if torch_version() < TORCH_TARGET:
        return f"torch {torch.__version__} is older than {'.'.join(map(str, TORCH_TARGET))}: install a newer one"
    if name == "cuda" and torch.version.hip is not None:
        return f"torch {torch.__version__} is built for ROCm, which has no kernels here"
    if name == "cuda" and torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install torch's CUDA build to use it"
    if not path.exists():
        return f"{path} is not built: {REBUILD}"
    record = read_record(path)
    if not record:
        return f"{path} has no record of what it was built from: {REBUILD}"
    if record["machine"] != this_machine():
        return f"{path} is built for {record['machine']}, this is {this_machine()}: {REBUILD}"
    if record["sources"] != sources_hash(name):
        return f"{path} is built from other sources than those in {SOURCES}: {REBUILD}"
    if record["bytes"] != path.stat().st_size:  # opening a file cut short would end the process
        return f"{path} is damaged, it has {path.stat().st_size} bytes instead of {record['bytes']}: {REBUILD}"
    return None


def _capability(path: Path) -> str:
    function = ctypes.CDLL(str(path)).ms_deform_attn_cpu_capability
    function.restype = ctypes.c_char_p
    return function().decode()
