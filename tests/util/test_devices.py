"""Which CPUs are told that bf16 is slow on them."""

import pytest
import torch

from util.devices import remark_on_precision
from util.remarks import say_once

X86 = {"architecture": "x86_64", "avx2": True}
CASES = [
    (X86 | {"avx512_bf16": False, "amx_bf16": False}, True),
    (X86 | {"avx512_bf16": True}, False),
    (X86 | {"amx_bf16": True}, False),
    (X86, True),
    ({"architecture": "aarch64"}, False),
    ({}, False),
]


@pytest.mark.parametrize(("capabilities", "slow"), CASES)
def test_bf16_without_units_is_said_to_be_slow_once(capabilities, slow, monkeypatch, capsys):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.delenv("RANK", raising=False)
    say_once.cache_clear()
    for device, precision in (("cpu", "fp32"), ("meta", "bf16"), ("cpu", "fp64")):
        remark_on_precision(torch.device(device), precision)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        remark_on_precision(torch.device("cpu"), "bf16")
    said = capsys.readouterr().err
    assert said.count("bf16 is slower than fp32 on this CPU") == slow == said.count("\n")
