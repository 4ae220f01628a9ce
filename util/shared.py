"""Arrays that processes share: a worker that is started maps them, instead of getting a copy through a pipe.

Under `fork` every array is shared as it is. Under `forkserver` and `spawn` all that a worker needs is pickled; here the
large arrays go as a reference to an anonymous file, which no folder lists and which is gone with its last process.
"""

import errno
import mmap
import os
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import context
from typing import Any

import numpy as np

LEAST = 1 << 20  # bytes from which a file is worth while
ALIGNED = 64  # bytes, so that every type lies as the processor wants it


class Block(mmap.mmap):
    """An anonymous file in memory, written once; pickled for a process that is being started, it is mapped there."""

    descriptor: int

    @classmethod
    def of(cls, size: int) -> "Block":
        """A new one of `size` bytes.

        Raises:
            OSError: there is no room for it, or half of the descriptors that a process may have are in use: two go
                with each block, and pictures, workers and checkpoints need theirs.
        """
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("arrays", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            if descriptor > _most_descriptors() // 2:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            os.truncate(descriptor, size)
            block = cls(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        block.descriptor = descriptor
        return block

    @classmethod
    def mapped(cls, sent: Any, size: int) -> "Block":
        """One of another process, from its sent descriptor; nothing can be written to it."""
        descriptor = sent.detach()
        block = cls(descriptor, size, access=mmap.ACCESS_READ)
        block.descriptor = descriptor
        return block

    def __reduce__(self) -> tuple:
        from multiprocessing.reduction import DupFd  # which Windows has not

        return Block.mapped, (DupFd(self.descriptor), len(self))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def shared(*arrays: np.ndarray) -> list[np.ndarray]:
    """The same arrays where other processes can map them, read-only; small ones stay where they are.

    So do all of them where there is no room, no such file, or no descriptor to spare; they are then copied to each
    worker.
    """
    size = sum(-(-a.nbytes // ALIGNED) * ALIGNED for a in arrays)
    if size < LEAST or sys.platform == "win32" or all(_block_of(a) is not None for a in arrays):
        return list(arrays)
    try:
        block = Block.of(size)
    except OSError:
        return list(arrays)
    moved, at = [], 0
    for array in arrays:
        there: np.ndarray = np.frombuffer(block, array.dtype, array.size, at).reshape(array.shape)
        there[...] = array
        there.flags.writeable = False
        moved.append(there)
        at += -(-array.nbytes // ALIGNED) * ALIGNED
    return moved


class SharesArrays:
    """Base of a class whose arrays, where they are `shared`, are pickled by reference for a process being started."""

    def __getstate__(self) -> dict[str, Any]:
        if context.get_spawning_popen() is None:
            return self.__dict__.copy()
        return {name: _Reference.to(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        found = {name: value.array() if isinstance(value, _Reference) else value for name, value in state.items()}
        self.__dict__.update(found)


class _Reference:
    """An array in a block, by its place."""

    def __init__(self, block: Block, dtype: np.dtype, shape: Sequence[int], offset: int):
        self.block, self.dtype, self.shape, self.offset = block, dtype, shape, offset

    @classmethod
    def to(cls, value: Any) -> Any:
        """A reference to a whole array of a block; any other value as it is."""
        block = _block_of(value) if isinstance(value, np.ndarray) and value.flags.c_contiguous else None
        if block is None or not value.size:
            return value
        first: np.ndarray = np.frombuffer(block, np.uint8, 1)
        return cls(block, value.dtype, value.shape, value.ctypes.data - first.ctypes.data)

    def array(self) -> np.ndarray:
        """The array, read-only."""
        count = int(np.prod(self.shape))
        array: np.ndarray = np.frombuffer(self.block, self.dtype, count, self.offset).reshape(self.shape)
        array.flags.writeable = False
        return array


def _most_descriptors() -> int:
    import resource  # which Windows has not

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _block_of(array: np.ndarray) -> Block | None:
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    return base if isinstance(base, Block) else None
