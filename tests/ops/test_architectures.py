"""Which GPUs the CUDA library is built for: named, listed in the environment, or those that are there."""

import pytest
import torch

from ops.architectures import architecture_flags, choose_architectures
from ops.compilers import BuildError, Nvcc

NVCC = Nvcc("nvcc", "13.0", ["75", "80", "86", "90", "100", "120"])


@pytest.fixture(autouse=True)
def no_list(monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)


@pytest.mark.parametrize(
    "asked, expected",
    [
        ("90", ["90"]),
        ("8.0;9.0+PTX", ["80", "90"]),
        ("sm_90, 75", ["75", "90"]),
        ("all", ["75", "80", "86", "90", "100", "120"]),
    ],
)
def test_lists_of_architectures(asked, expected):
    assert choose_architectures(asked, NVCC) == expected


@pytest.mark.parametrize("asked", ["35", "ninety", "90,,x", ",", ""])
def test_unknown_architectures_are_refused(asked):
    with pytest.raises(BuildError, match=r"nvcc 13\.0 does not make code for"):
        choose_architectures(asked, NVCC)


def test_cards_choose_and_newer_ones_take_the_newest_below(monkeypatch):
    cards = [(9, 0), (12, 1), (9, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: cards[i])
    assert choose_architectures(None, NVCC) == ["90", "120"]
    assert architecture_flags(["80", "90"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]


@pytest.mark.parametrize(
    "listed, expected", [("7.0 Ampere 9.0a 9.0", ["90"]), ("8.0;9.0+PTX;", ["80", "90"]), (" ", []), ("3.5", [])]
)
def test_the_list_of_the_environment_is_taken_as_far_as_nvcc_knows_it(listed, expected, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert choose_architectures(None, NVCC) == expected
    assert ("of TORCH_CUDA_ARCH_LIST" in capsys.readouterr().out) == (listed in ("7.0 Ampere 9.0a 9.0", "3.5"))
