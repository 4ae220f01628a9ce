"""How the tests share two cores: a worker on each, a thread in each worker, the longest files first."""

import contextlib
import os

with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401  # once distutils is imported without it, torch's inductor cannot compile
import pytest
import torch

from tests.quick import make_quick

# Seconds that the files with expensive fixtures take. They begin first, so that no worker is left alone with one.
LONGEST = {
    "test_cuda_source": 50,
    "test_distributed": 60,
    "test_resume": 70,
    "test_launch": 60,
    "test_cpu_source": 50,
    "test_docs": 50,
    "test_presets": 50,
    "test_elastic": 40,
    "test_build": 35,
    "test_library": 35,
    "test_sweep": 30,
    "test_main": 30,
}

make_quick()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; tests of one file stay together and in their order."""
    items.sort(key=lambda item: -LONGEST.get(item.path.stem, 0))
