"""Writing while the program goes on: what is written is copied first, and a single thread writes it."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from util.remarks import say_once


class WriteBehind:
    """Runs one call at a time in a thread. An error of it is raised by whichever method comes next.

    A program that ends waits for the call.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "write")
        self._pending: Future | None = None

    def start(self, call: Callable[[], object]) -> None:
        """Begin a call, when the one before has ended."""
        self.wait()
        self._pending = self._thread.submit(call)

    def wait(self) -> None:
        """Let the call that runs end."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def check(self) -> None:
        """Raise the error of a call that has ended; wait for none."""
        if self._pending is not None and self._pending.done():
            self.wait()

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Let the call that runs at the end of a block end too, whatever ends the block.

        An error of the block stays the one that is raised: if the call fails as well, that is told on stderr, and
        chained to it.
        """
        try:
            yield
        except BaseException as error:
            try:
                self.wait()
            except Exception as failure:
                say_once(str(failure))
                failure.__cause__ = error.__cause__ or error.__context__  # what the error came from stays to be seen
                raise error from failure
            raise
        self.wait()


def host_copy(content: Any) -> Any:
    """Nested dictionaries, lists and tuples with copies of their tensors on the host.

    Tensors that share memory share that of their copies, so a file is as large as it would be.
    """
    return _copy(content, {})


def _copy(thing: Any, storages: dict[int, torch.UntypedStorage]) -> Any:
    if isinstance(thing, Tensor):
        storage = thing.untyped_storage()
        if storage._cdata not in storages:
            storages[storage._cdata] = storage.clone() if thing.device.type == "cpu" else storage.cpu()
        copy = torch.empty(0, dtype=thing.dtype)
        return copy.set_(storages[storage._cdata], thing.storage_offset(), thing.shape, thing.stride())
    if isinstance(thing, dict):
        copied = type(thing)((key, _copy(value, storages)) for key, value in thing.items())
        vars_of = getattr(thing, "_metadata", None)  # a state dict says by it which versions its modules have
        if vars_of is not None:
            copied._metadata = vars_of  # type: ignore[attr-defined]
        return copied
    if isinstance(thing, list | tuple):
        return type(thing)([_copy(value, storages) for value in thing])
    return thing
