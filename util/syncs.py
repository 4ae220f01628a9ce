"""How often a block of code makes the host wait for the device, and which lines of ours do it.

On CUDA torch itself tells (`torch.cuda.set_sync_debug_mode`): also of blocking copies to the device, but not of
`torch.cuda.synchronize`, of events, nor of what libraries outside torch do.

On a CPU nothing waits, so a stand-in counts what would wait if the CPU's tensors lay on a GPU: reading a tensor from
Python (`item`, `bool`, `float`, `tolist`, `cpu`, `numpy`, `to("cpu")`, a copy into a tensor of the host) and operators
whose result has a size that only values tell (`nonzero`, indexing with a mask, `unique`, ...), and those whose
derivative reads one (`prod`: seen on an H200, where a CPU takes another way).

On the GPU are then:

- every tensor from before the block (unless named in `host`), and whatever is computed from one;
- what is made with an explicit `device=`, or moved by `.to(DEVICE)` with a `torch.device` and not with the text "cpu".

Tensors made within the block without `device=`, and those that were read back with `cpu`, belong to the host: what is
done with them is not counted. The stand-in's limits: `torch.from_numpy` and `torch.get_rng_state` look like the GPU's;
copies to the device are taken for asynchronous, which needs pinned memory; kernels that wait inside without any of the
above (some of linear algebra) and compiled parts are not seen. Tensors of the host are kept until the block ends, and
`cpu` and `to` copy as they would between devices, so take neither time nor memory within the block.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PROJECT = Path(__file__).resolve().parents[1]
CUDA_WARNING = "called a synchronizing CUDA operation"

# Operators for which the host has to know values, or how many there are of some.
_NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique", "_unique2", "unique_dim")
WAITING = frozenset(f"aten::{name}" for name in (*_NAMES, "unique_consecutive", "unique_dim_consecutive"))
WAITING_BACKWARD = frozenset(("prod", "cumprod"))  # whose derivatives ask how many zeros there are
READING = frozenset(("tolist", "numpy", "__array__", "allclose"))  # of a CPU's tensors no operator above is called
INDEXING = frozenset(("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"))


@dataclass
class SyncCount:
    """What a block waited for.

    Attributes:
        places: number of syncs by place, `file:line (operation)`, from the project's root; in a backward pass the
            line that called `backward`.
    """

    places: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All of them."""
        return self.places.total()

    def note(self, operation: str) -> None:
        """One more, by the innermost line of the project that is running."""
        self.places[f"{_place()} ({operation})"] += 1

    def __str__(self) -> str:
        return "\n".join(f"{count:4d}  {place}" for place, count in self.places.most_common()) or "   0"


@contextmanager
def count_syncs(device: torch.device | str = "cpu", host: Iterable[Tensor] = ()) -> Iterator[SyncCount]:
    """Count what makes the host wait for the device in a block; see the module's docstring for what is seen.

    Args:
        device: device of the block's tensors; anything but CUDA is counted by the stand-in.
        host: tensors from before the block that would be on the host on a GPU's machine, too. On CUDA not needed.

    Yields:
        A `SyncCount` that fills.
    """
    found = SyncCount()
    if torch.device(device).type == "cuda":
        with _cuda_warnings(found):
            yield found
    else:
        residence = _Residence(found, host)
        with _Operators(residence), _Functions(residence):
            yield found


@contextmanager
def _cuda_warnings(found: SyncCount) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=f".*{CUDA_WARNING}")
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        show = warnings.showwarning

        def note(message, *where, **more) -> None:
            if CUDA_WARNING in str(message):
                found.note("wait")
            else:
                show(message, *where, **more)

        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


class _Residence:
    """Which tensors would be on the host, by their storages."""

    def __init__(self, found: SyncCount, host: Iterable[Tensor]):
        self.found = found
        # The storages are kept, for the address of one that has gone may become that of another.
        self.storages: dict[int, Any] = {}
        self.claim(list(host))

    def claim(self, things: Any) -> None:
        """Every tensor in nested lists, tuples and dictionaries is the host's from now on."""
        for tensor in _tensors(things):
            storage = tensor.untyped_storage()
            self.storages[storage._cdata] = storage

    def release(self, tensor: Tensor) -> None:
        """This one is the device's."""
        self.storages.pop(tensor.untyped_storage()._cdata, None)

    def on_device(self, tensor: Any) -> bool:
        """Whether this is a tensor, and not the host's."""
        return isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.storages


class _Functions(TorchFunctionMode):
    """Sees calls as Python makes them: who moves and reads, and what is made without a device."""

    def __init__(self, residence: _Residence):
        super().__init__()
        self.residence = residence

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, residence = kwargs or {}, self.residence
        name = getattr(func, "__name__", "")
        from_device = bool(args) and residence.on_device(args[0])
        if name in READING and from_device:
            residence.found.note(name)
        if name in WAITING_BACKWARD and from_device and args[0].requires_grad and torch.is_grad_enabled():
            residence.found.note(f"{name}, in the backward pass")
        if name == "copy_" and not from_device and residence.on_device(args[1]):
            residence.found.note(name)

        out = func(*args, **kwargs)
        target = _target(name, args, kwargs)
        if target is not None:
            to_host = target == "cpu" or (isinstance(target, Tensor) and not residence.on_device(target))
            if from_device == to_host:  # to the other side, where it is another tensor
                out = out.clone() if out is args[0] else out
                if to_host:
                    residence.found.note(name)
                    residence.claim(out)
                else:
                    residence.release(out)
        elif kwargs.get("device") in (None, "cpu") and not _tensors((args, kwargs)):
            residence.claim(out)
        return out


class _Operators(TorchDispatchMode):
    """Sees operators, those of backward passes too: which of them wait, and whose their results are."""

    def __init__(self, residence: _Residence):
        super().__init__()
        self.residence = residence

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, residence = kwargs or {}, self.residence
        given = _tensors((args, kwargs))
        of_host = bool(given) and not any(residence.on_device(t) for t in given)
        name = func._schema.name
        if not of_host and self._waits(name, func, args, kwargs):
            residence.found.note(name.removeprefix("aten::"))
        out = func(*args, **kwargs)
        if of_host:
            residence.claim(out)
        return out

    def _waits(self, name: str, func, args: tuple, kwargs: dict) -> bool:
        if name in WAITING:
            return self.residence.on_device(args[0])
        if name == "aten::repeat_interleave":  # how many there will be is the sum of a tensor
            return func._overloadname != "self_int" and kwargs.get("output_size") is None
        if name not in INDEXING or not any(self.residence.on_device(i) and i.dtype is torch.bool for i in args[1]):
            return False
        filling = name != "aten::index" and args[2].numel() == 1 and not (len(args) > 3 and args[3])
        return not filling  # one value for all that a mask names needs no list of them


def _tensors(things: Any) -> list[Tensor]:
    return [thing for thing in tree_leaves(things) if isinstance(thing, Tensor)]


def _target(name: str, args: tuple, kwargs: dict) -> "str | torch.device | Tensor | None":
    """Where `cpu` or `to` moves a tensor; None if it is neither, or moves nothing."""
    if name == "cpu":
        return "cpu"
    if name != "to":
        return None
    named = kwargs.get("device", kwargs.get("other"))
    first = args[1] if len(args) > 1 else named
    return first if isinstance(first, str | torch.device | Tensor) else named


def _place() -> str:
    """`file:line` of the innermost frame that is the project's, this file and installed packages apart."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        inside = path.is_relative_to(PROJECT) and "site-packages" not in path.parts
        if inside and path.resolve() != Path(__file__).resolve():
            return f"{path.relative_to(PROJECT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of the project"
