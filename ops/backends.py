"""The compiled libraries: where they lie, whether they fit this machine, and loading them.

`python -m ops.build` leaves `ops/lib/{cpu,cuda}.so`, each with a record (`.json`) of what it was built from and for. A
library whose record does not fit is never opened: it is named, with the reason and the mend.
"""

import ctypes
import functools
import hashlib
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
FOLDER = Path(__file__).parent / "lib"
REBUILD = "run `python -m ops.build`"
TORCH_TARGET = (2, 10)  # the oldest torch whose stable ABI the libraries are built for


@dataclass(frozen=True)
class Backend:
    """What became of one compiled library.

    Attributes:
        name: `cpu` or `cuda`, the type of the tensors it takes.
        loaded: whether its kernels can be called.
        detail: what it is if loaded, else why not and how to mend it.
    """

    name: str
    loaded: bool
    detail: str


def sources(name: str) -> list[Path]:
    """The files a library is built from, headers included."""
    return sorted([*SOURCES.glob("*.h"), *(p for p in (SOURCES / name).iterdir() if p.suffix != ".md")])


def sources_hash(name: str) -> str:
    """Changes whenever a source of the library does."""
    digest = hashlib.sha256()
    for path in sources(name):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def this_machine() -> str:
    """The platform that machine code is made for, as `linux-x86_64`."""
    return f"{sys.platform}-{platform.machine().lower()}"


def torch_version() -> tuple[int, int]:
    """Major and minor version of the torch that runs."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


@functools.cache
def load(name: str) -> Backend:
    """Open the library of a backend, once for a process; a library that does not fit is reported, not raised."""
    path = FOLDER / f"{name}.so"
    reason = _unfit(name, path)
    if reason is None:
        try:
            torch.ops.load_library(str(path))
        except OSError as error:  # of the dynamic linker: another platform, a missing symbol, a damaged file
            reason = f"{path} cannot be loaded ({error.__cause__ or error}): {REBUILD}"
    if reason is not None:
        return Backend(name, False, reason)
    record = json.loads(path.with_suffix(".json").read_text())
    parts = [f"C++ on torch's stable ABI, built with {record['compiler']} against torch {record['torch']}"]
    if name == "cpu":
        parts.append(f"running {_capability(path)}")
    else:
        parts.append(f"for {', '.join(record['architectures'])}")
    return Backend(name, True, ", ".join(parts))


def _unfit(name: str, path: Path) -> str | None:
    """Why a library must not be opened, or None."""
    if torch_version() < TORCH_TARGET:
        return f"torch {torch.__version__} is older than {'.'.join(map(str, TORCH_TARGET))}: install a newer one"
    if name == "cuda" and torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install torch's CUDA build to use it"
    if not path.exists():
        return f"{path} is not built: {REBUILD}"
    try:
        record = json.loads(path.with_suffix(".json").read_text())
        machine, built_from = record["machine"], record["sources"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path} has no record of what it was built from: {REBUILD}"
    if machine != this_machine():
        return f"{path} is built for {machine}, this is {this_machine()}: {REBUILD}"
    if built_from != sources_hash(name):
        return f"{path} is built from other sources than those in {SOURCES}: {REBUILD}"
    return None


def _capability(path: Path) -> str:
    function = ctypes.CDLL(str(path)).ms_deform_attn_cpu_capability
    function.restype = ctypes.c_char_p
    return function().decode()
