"""Time and memory of a call, and the memory that there is."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

MIB = 2**20


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Time one call, with the device's queue empty before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - started


def measure_peak(call: Callable[[], object], device: torch.device, resident: Iterable[Tensor]) -> int:
    """Most memory of tensors at any moment of a call, in bytes.

    That is `resident` and, measured, how far the call rises above what was there before: on CUDA by
    `torch.cuda.max_memory_allocated`, on a CPU by the allocations and releases that torch's profiler sees, in the order
    in which they happen. Not in it: CUDA's context and the caches of allocators, and what libraries such as oneDNN take
    for themselves.

    Args:
        call: once warm.
        device: where.
        resident: tensors that must be there before: weights, inputs, state of the optimizer.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return nbytes(resident) + torch.cuda.max_memory_allocated(device) - before
    with quiet_profiler(profile_memory=True) as profiler:
        call()
    changes = [(e.start_ns(), e.nbytes()) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        now += change
        peak = max(peak, now)
    return nbytes(resident) + peak


def quiet_profiler(on_gpu: bool = False, profile_memory: bool = False) -> torch.profiler.profile:
    """torch's profiler of the CPU, and of the GPU if so asked."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of every start, and that there is no GPU
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, profile_memory=profile_memory)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of their storages, each counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def require_memory(needed: int) -> None:
    """Refuse what the machine cannot hold.

    Raises:
        MemoryError: more bytes than Linux says are available; elsewhere nothing is refused.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise MemoryError(f"{needed:.1e} bytes are needed, {available:.1e} available")


def available_memory() -> int | None:
    """Bytes that a process can still have, by /proc/meminfo; None where there is none."""
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory does not suffice."""
    words = ("out of memory", "allocate memory", "not enough memory", "bad_alloc")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(w in str(error) for w in words)
