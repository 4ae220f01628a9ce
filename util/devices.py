"""Devices by name, and the precision in which a model runs on them."""

from contextlib import nullcontext

import torch

from util.errors import UserError
from util.remarks import say_once

AUTOCAST = {"fp32": None, "fp64": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str | torch.device = "auto", local_rank: int = 0) -> torch.device:
    """The device of a name; `auto` is a GPU, or else the CPU. Of several GPUs, the one with the number of the process.

    Raises:
        UserError: no such device here.
    """
    if not isinstance(name, str | torch.device):
        raise UserError(f"device is {name!r}; it must be text such as 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local_rank}" if str(name) == "cuda" else name)
        torch.zeros(1, device=device).cpu()
        if device.type == "cuda":
            torch.cuda.set_device(device)  # for what does not ask, such as pinning memory
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].split(". ")[0]
        raise UserError(f"device '{name}' cannot be used here ({reason[:120]}); try 'auto' or 'cpu'") from None
    return device


def autocast(device: torch.device, precision: str):
    """The context in which a model runs at a precision; parameters stay as they are."""
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else nullcontext()


def remark_on_precision(device: torch.device, precision: str) -> None:
    """Say once, on stderr, that a precision is slow here: bf16 on a CPU that has no instructions for it."""
    if precision == "bf16" and device.type == "cpu" and not has_bf16_units():
        say_once(
            "bf16 is slower than fp32 on this CPU, often several times: it has neither AVX512-BF16 nor AMX, and "
            "computes in fp32 what it converts back and forth; take fp32 here"
        )


def has_bf16_units(unknown: bool = True) -> bool:
    """Whether the CPU multiplies bf16 by itself, as torch says; `unknown` where torch is older, or it is no x86."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if found.get("architecture") != "x86_64":
        return unknown
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
