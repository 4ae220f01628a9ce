"""One case of the benchmark of the operator, checked and timed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from scripts.bench import timing
from scripts.bench.op_agreement import check, truth
from scripts.bench.op_contenders import Contender, label, make_contender
from scripts.bench.op_inputs import make_inputs
from scripts.bench.timing import progress, within_memory
from util.measuring import require_memory

OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Settings:
    """How a case is measured.

    Attributes:
        device: the device on which the operator runs.
        batch: number of images in a call.
        repeats: number of rounds.
        seconds: about how many seconds all turns of one contender and direction take together.
        burst: about how many seconds one burst of calls takes.
        quick: whether maps are small.
    """

    device: torch.device
    batch: int
    repeats: int
    seconds: float
    burst: float
    quick: bool


class Copy:
    """The measure of memory speed: one large tensor is copied to another, in turns with the contenders."""

    def __init__(self, device: torch.device, quick: bool):
        size = 2**22 if quick else 2**28 if device.type == "cuda" else 2**26  # fp32: 16 MiB, 1 GiB, 256 MiB
        self.source, self.target = torch.ones(size, device=device), torch.zeros(size, device=device)
        self.forward_s: list[float] = []
        self.failure = ""

    def run(self) -> Tensor:
        """One copy."""
        return self.target.copy_(self.source)

    def bytes_per_second(self) -> float:
        """Bytes read and written in a second, median."""
        return 2 * self.source.nbytes / median(self.forward_s)


def measure(case: str, dtype: str, names: Sequence[str], settings: Settings) -> dict:
    """Check and time all contenders on a case.

    Args:
        case: one of `op_inputs.CASES`.
        dtype: torch's name of the value's dtype.
        names: names of the contenders.
        settings: how the case is measured.

    Returns:
        The content of the JSON file for this case; see `summary`.

    Raises:
        DisagreementError: a contender's result differs from the reference's.
    """
    progress(f"{case}, {dtype}: inputs and reference in fp64")
    ready = within_memory(partial(_set_up, case, getattr(torch, dtype), names, settings))
    if ready is None:
        failure = "out of memory for the inputs and the check"
        failed = [{"contender": name, "label": label(name), "failure": failure} for name in names]
        return {"case": case, "dtype": dtype, "contenders": failed}
    contenders, expected, copy = ready
    for contender in contenders:
        found = within_memory(contender.both)
        if found is None:
            out = within_memory(contender.forward)
            found = None if out is None else (out,)
            contender.failure = OUT_OF_MEMORY if out is None else f"backward {OUT_OF_MEMORY}"
        if found is not None:
            contender.error = check(contender, expected[contender.inputs.locations.dtype], found)
            progress(f"  {label(contender.name)} agrees, largest deviation {contender.error:.1e}")
        del found
    progress(f"  timing, {settings.repeats} rounds")
    take_turns([c for c in contenders if c.failure != OUT_OF_MEMORY], copy, settings)
    return summary(case, dtype, contenders, copy)


def _set_up(
    case: str, dtype: torch.dtype, names: Sequence[str], settings: Settings
) -> tuple[list[Contender], dict[torch.dtype, tuple[Tensor, ...]], Copy | None]:
    """The contenders, the right results by the locations' dtype, and the copy, which the overhead case does not have.

    Raises:
        MemoryError: the machine cannot hold the batch. Linux would grant the memory, and then end some process.
    """
    image = make_inputs(case, 1, settings.quick)
    # Inputs, results and the right results in fp64.
    bytes_of_image = sum(t.nbytes for t in (image.value, image.locations, image.weights, image.grad))
    require_memory(8 * settings.batch * bytes_of_image)
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    inputs = make_inputs(case, settings.batch, settings.quick).to(settings.device, dtype, compute)
    contenders, expected = [make_contender(name, inputs) for name in names], {}
    for contender in contenders:
        # In half precision the package takes rounded locations, for which other results are right.
        key = contender.inputs.locations.dtype
        if key not in expected:
            expected[key] = truth(contender.inputs)
    return contenders, expected, Copy(settings.device, settings.quick) if case != "overhead" else None


def take_turns(contenders: Sequence[Contender], copy: Copy | None, settings: Settings) -> None:
    """Fill in the contenders' `forward_s` and `both_s`, and the copy's time.

    In its turn a contender runs forward, then forward + backward. If it runs out of memory, it stops with a `failure`.
    """
    turns: dict[Copy | Contender, int] = {}
    calls: dict[Copy | Contender, list[tuple[Callable[[], object], int, list[float]]]] = {}
    if copy is not None:
        copy.run()
        turns[copy], calls[copy] = settings.repeats, [(copy.run, 1, copy.forward_s)]
    for c in contenders:
        directions: list[tuple[Callable[[], object], list[float]]] = [(c.forward, c.forward_s)]
        if not c.failure:
            directions.append((c.both, c.both_s))
        planned = within_memory(partial(_plan, [run for run, _ in directions], settings))
        if planned is None:
            c.failure = OUT_OF_MEMORY
        else:
            turns[c], counts = planned
            calls[c] = [(run, count, found) for (run, found), count in zip(directions, counts)]

    for who in timing.in_turns(list(turns), settings.repeats, list(turns.values())):
        for run, count, found in calls[who]:
            if who.failure != OUT_OF_MEMORY:
                taken = within_memory(partial(timing.seconds, run, settings.device, count))
                if taken is None:
                    who.failure = OUT_OF_MEMORY
                else:
                    found.append(taken)


def _plan(calls: Sequence[Callable[[], object]], settings: Settings) -> tuple[int, list[int]]:
    """Run each call once to warm up, then plan turns as `timing.plan` does."""
    for call in calls:
        call()
    return timing.plan(calls, settings.repeats, settings.device, settings.burst, settings.seconds)


def summary(case: str, dtype: str, contenders: Sequence[Contender], copy: Copy | None) -> dict:
    """Medians, ratios and traffic of a case, in seconds, bytes and bytes per second.

    Each entry of "contenders" has `forward`, `backward` and `both`. Each of these has `seconds` and their `quartiles`,
    `reference_ratio` and `package_ratio` (the rival's seconds over the contender's, above 1 where the contender is
    faster). `forward` and `backward` also have `bytes`, `bytes_per_second`, `floor_seconds` and `of_floor` (1: as fast
    as the copy).
    """
    inputs = contenders[0].inputs
    batch, tokens, heads, channels = inputs.value.shape
    medians = {
        c.name: {d: median(c.seconds(d)) for d in ("forward", "backward", "both") if c.seconds(d)} for c in contenders
    }
    speed = copy.bytes_per_second() if copy is not None else None
    rows = []
    for c in contenders:
        row: dict[str, Any] = {
            "contender": c.name,
            "label": label(c.name),
            "failure": c.failure,
            "largest_error": c.error,
        }
        row["turns"] = len(c.forward_s)
        for direction, seconds in medians[c.name].items():
            samples = c.seconds(direction)
            numbers = {
                "seconds": seconds,
                "quartiles": quantiles(samples, n=4) if len(samples) > 1 else [seconds] * 3,
                "reference_ratio": ratio(medians.get("reference", {}).get(direction), seconds),
                "package_ratio": ratio(medians.get("package", {}).get(direction), seconds),
            }
            if speed is not None and direction != "both":
                moved = c.bytes[direction == "backward"]
                floor = moved / speed
                numbers |= {"bytes": moved, "bytes_per_second": ratio(moved, seconds)}
                numbers |= {"floor_seconds": floor, "of_floor": ratio(floor, seconds)}
            row[direction] = numbers
        rows.append(row)
    return {
        "case": case,
        "dtype": dtype,
        "shape": {"B": batch, "Q": inputs.grad.shape[1], "S": tokens, "M": heads, "D": channels, "K": inputs.points},
        "spatial_shapes": inputs.spatial_shapes,
        "copy_bytes_per_second": speed,
        "contenders": rows,
    }


def ratio(of: float | None, to: float | None) -> float | None:
    """`of / to`; None if one was not measured, or is not positive, as a difference of noisy times can be."""
    return of / to if of is not None and to is not None and of > 0 and to > 0 else None
