"""The common parts of the benchmarks: turns, medians over rounds, the machine, tables and JSON.

Contenders take turns in a new order every round, so a busy machine slows all alike. Short calls are timed in bursts.
Slow contenders skip some rounds, but have at least three turns.
"""

import datetime
import json
import math
import os
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

from ops.functional import BACKEND_VARIABLE
from util.environment import variable
from util.measuring import is_out_of_memory

BURST = 0.01  # about how many seconds one burst of calls takes
BUDGET = 1.5  # about how many seconds all turns of a call take

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)


class DisagreementError(Exception):
    """A contender's result differs from that of the contender it is compared with."""


def seconds(call: Callable[[], object], device: torch.device, count: int = 1) -> float:
    """Mean seconds of `count` calls in a row; the device's queue is emptied before and after.

    On CUDA the clock is CUDA's events.
    """
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(count):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000 / count
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count


def both_clocks(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call by the clock, and of the processor, all threads together."""
    begun = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


def in_turns(contenders: Sequence[T], rounds: int, turns: Sequence[int] | None = None) -> Iterator[T]:
    """Yield the contender whose turn it is: each once in a round, in a new order, which is the same in every run.

    Args:
        contenders: the contenders.
        rounds: number of rounds.
        turns: in how many rounds each contender takes part, spread over all; None means every round.
    """
    order, turns = random.Random(0), turns or [rounds] * len(contenders)
    for i in range(rounds):
        for j in order.sample(range(len(contenders)), len(contenders)):
            if (i + 1) * turns[j] // rounds > i * turns[j] // rounds:
                yield contenders[j]


def plan(
    calls: Sequence[Callable[[], object]], rounds: int, device: torch.device, burst: float, budget: float
) -> tuple[int, list[int]]:
    """Plan the turns of calls by how long each takes.

    Args:
        calls: made one after another in each turn; each has run before.
        rounds: most turns.
        device: where the calls run.
        burst: seconds that a call's burst should take.
        budget: seconds that a call's turns should take together.

    Returns:
        How many turns there are, and how often each call is made in a turn.
    """
    counts, slowest = [], 0.0
    for call in calls:
        once = max(seconds(call, device, 3 if device.type == "cuda" else 1), 1e-7)
        counts.append(max(1, min(2000, round(burst / once))))
        slowest = max(slowest, counts[-1] * once)
    return min(rounds, max(3, int(budget / slowest))), counts


def median_seconds(calls: Mapping[Key, Callable[[], object]], rounds: int, device: torch.device) -> dict[Key, float]:
    """Median seconds of every call. The calls take turns; each must have run before."""
    turns, counts, found = [], {}, defaultdict(list)
    for key, call in calls.items():
        of_call, (counts[key],) = plan([call], rounds, device, BURST, BUDGET)
        turns.append(of_call)
    for key in in_turns(list(calls), rounds, turns):
        found[key].append(seconds(calls[key], device, counts[key]))
    return {key: median(times) for key, times in found.items()}


def within_memory(call: Callable[[], T]) -> T | None:
    """The result of `call`, or None if memory runs out; any other error is raised."""
    try:
        return call()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Not in the handler, where the error's traceback still keeps the tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def forced_backend(name: str) -> AbstractContextManager[None]:
    """Run all calls of `ops.ms_deform_attn` on one backend while the context lasts."""
    return variable(BACKEND_VARIABLE, name)


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Run torch with this many threads on the CPU; None leaves torch's own choice."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine(device: torch.device) -> dict:
    """A description of the machine. `load_before` is the load of the last minute; None on Windows, which has none."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cpu": cpu,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "load_before": load(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
    }


def load() -> float | None:
    """The average number of processes that ran or waited in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def machine_line(about: dict) -> str:
    """A machine in words.

    Args:
        about: the result of `machine`; it may also have `load_after`.
    """
    words = [about["name"], f"{about['threads']} CPU threads", f"torch {about['torch']}"]
    if about["cuda"]:
        words.append(f"CUDA {about['cuda']}")
    loads = [(about.get(f"load_{when}"), when) for when in ("before", "after")]
    told = " and ".join(f"{number:.1f} {when}" for number, when in loads if number is not None)
    return ", ".join([*words, f"load {told}"] if told else words)


def figure(number: float | None) -> str:
    """A number with three digits, or a dash if there is none."""
    if number is None or not math.isfinite(number):
        return "-"
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2 if abs(number) >= 1 else 3
    return f"{number:.{digits}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table in Markdown. The first `words` columns are aligned left; the others, of numbers, right."""
    rule = "|" + "---|" * words + "--:|" * (len(header) - words)
    head, *body = (f"| {' | '.join(row)} |" for row in (header, *rows))
    return "\n".join([head, rule, *body])


def write_json(path: Path, content: dict) -> None:
    """Write figures for other programs to read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def progress(line: str) -> None:
    """Print progress to stderr, so that stdout holds only the tables."""
    print(line, file=sys.stderr, flush=True)
