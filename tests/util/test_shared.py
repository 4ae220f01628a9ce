import os
import pickle
import resource
from multiprocessing import context
from types import SimpleNamespace

import numpy as np
import pytest

from util.shared import LEAST, SharesArrays, shared


class Sent:
    """A descriptor as another process gets it; here it is of this process."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def detach(self) -> int:
        return os.dup(self.descriptor)


class Columns(SharesArrays):
    def __init__(self, *arrays: np.ndarray):
        self.first, self.second, *_ = shared(*arrays)
        self.text = "kept"


@pytest.fixture
def starting():
    """A process is being started: what is pickled is for it."""
    context.set_spawning_popen(SimpleNamespace(DupFd=Sent, duplicate_for_child=lambda descriptor: descriptor))
    yield
    context.set_spawning_popen(None)


def large() -> tuple[np.ndarray, np.ndarray]:
    return np.arange(3 * LEAST // 8, dtype=np.int64).reshape(3, -1), np.arange(5, dtype=np.uint8)


def test_large_arrays_are_sent_by_reference_and_read_only(starting):
    columns = Columns(*large())
    sent = pickle.dumps(columns)
    assert len(sent) < 2000
    first, again = pickle.loads(sent), pickle.loads(sent)
    for other in (first, again):
        assert np.array_equal(other.first, large()[0]) and np.array_equal(other.second, large()[1])
        assert other.text == "kept" and other.first.dtype == np.int64
        with pytest.raises(ValueError, match="read-only"):
            other.first[0, 0] = 1
    assert len(pickle.dumps(first)) < 2000, "a process that was sent them can send them on"


def test_the_memory_is_one(starting):
    """Whoever may write to the file changes what all processes see."""
    columns = Columns(*large())
    other = pickle.loads(pickle.dumps(columns))
    base = columns.first
    while isinstance(base, np.ndarray):
        base = base.base
    base.obj[:8] = (77).to_bytes(8, "little")
    assert columns.first[0, 0] == other.first[0, 0] == 77


def test_elsewhere_values_are_pickled():
    columns = Columns(*large())
    sent = pickle.dumps(columns)
    assert len(sent) > LEAST and np.array_equal(pickle.loads(sent).first, large()[0])


def test_small_arrays_stay_where_they_are(starting):
    small = np.arange(4)
    assert shared(small)[0] is small
    other = pickle.loads(pickle.dumps(Columns(small, small)))
    assert other.first.tolist() == [0, 1, 2, 3]


def test_shared_arrays_are_not_moved_again():
    (once,) = shared(large()[0])
    assert shared(once)[0] is once


def test_without_room_arrays_stay_where_they_are(monkeypatch):
    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("util.shared.Block.of", full)
    first, _ = large()
    assert shared(first)[0] is first


def test_half_of_the_descriptors_stay_free():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = os.dup(0)  # the next one that is free
    os.close(low)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * (low + 10), hard))
    try:
        kept = [shared(large()[0])[0] for _ in range(20)]
        free = [os.dup(0) for _ in range(low)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for descriptor in free:
        os.close(descriptor)
    assert [a.flags.writeable for a in kept[:2]] == [False, False]  # in blocks
    assert [a.flags.writeable for a in kept[-8:]] == [True] * 8
    assert all(np.array_equal(a, large()[0]) for a in kept)
