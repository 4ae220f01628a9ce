"""Times the operator, forward and backward, against its reference and the PyPI package torch_ms_deform_attn.

    python scripts/bench_op.py                                        # fp32 on the CPU, every backend there is
    python scripts/bench_op.py --device cuda --dtype float32 bfloat16 --batch 2 --json op.json --plot op.png
    python scripts/bench_op.py --quick                                # small maps: does it run, in seconds

Cases (8 heads of 32 channels, 4 levels with 4 points each, the maps of an image of 800x1333 pixels):
  encoder-local    every pixel of every level asks, points about 2.5 pixels around its place: a trained encoder
  encoder-uniform  the same with points anywhere: the worst for caches
  decoder          300 queries, points spread over the box of each
  overhead         four pixels and two queries: what a call costs before any work

Method: outputs and gradients are first compared with the reference in fp64; one that is off by more than rounding ends
the run with exit code 1. Then contenders take turns, in a fresh order every round, so that a busy machine hits all
alike; the figures are medians over rounds. A contender that is slower than --seconds for all rounds sits some out. The
backward is the difference between forward + backward and forward (without autograd) of the same turn. Short calls are
timed in bursts. On CUDA the clock is CUDA's events.

The floor is the time in which the machine copies as many bytes as the operator cannot avoid: every input read once (of
the value only the rows that are sampled), every output written once. Nothing is flushed between calls: what fits the
caches may be found there, so that small cases can be faster than the floor.

The package takes part where it can be imported: `pip install torch_ms_deform_attn==0.1.1`.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import ops
from util.errors import UserError

FULL_MAPS = ((100, 167), (50, 84), (25, 42), (13, 21))  # strides 8 to 64 of 800x1333
QUICK_MAPS = ((13, 21), (7, 11), (4, 6), (2, 3))
CASES = ("encoder-local", "encoder-uniform", "decoder", "overhead")
DTYPES = ("float32", "bfloat16", "float16", "float64")
PACKAGE = "torch_ms_deform_attn"
CONTENDERS = ("cuda", "cpu", "reference", "package")
COLOURS = {"cuda": "#2e7d32", "cpu": "#2166ac", "package": "#e08214", "reference": "#8c8c8c"}


class DisagreementError(Exception):
    """A contender computes something else than the reference."""


# ------------------------------------------------------------------------------------------------------------ inputs


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call.

    Attributes:
        value: `[B, S, M, D]`.
        spatial_shapes: `[(H, W), ...]` of the L levels.
        locations: `[B, Q, M, P, 2]`, (x, y) in [0, 1].
        weights: `[B, Q, M, P]`, a softmax over P.
        points: K, on every level.
        grad: `[B, Q, M*D]`, of the output.
    """

    value: Tensor
    spatial_shapes: tuple[tuple[int, int], ...]
    locations: Tensor
    weights: Tensor
    points: int
    grad: Tensor

    def to(self, device: torch.device, dtype: torch.dtype, compute: torch.dtype) -> "Inputs":
        """Value and gradient in `dtype`, locations and weights in `compute`."""
        return replace(
            self,
            value=self.value.to(device, dtype),
            locations=self.locations.to(device, compute),
            weights=self.weights.to(device, compute),
            grad=self.grad.to(device, dtype),
        )

    def sizes(self) -> Tensor:
        """`[P, 2]`, (W, H) of each point's map, fp64."""
        sizes = torch.tensor(self.spatial_shapes, dtype=torch.float64, device=self.locations.device)
        return sizes.flip(-1).repeat_interleave(self.points, 0)


def make_inputs(case: str, batch: int, quick: bool = False) -> Inputs:
    """Random inputs of a case, fp32 on the CPU, the same in every run.

    Args:
        case: one of `CASES`.
        batch: B; of the overhead always 1.
        quick: small maps.
    """
    rng = torch.Generator().manual_seed(0)
    maps, heads, channels, points = QUICK_MAPS if quick else FULL_MAPS, 8, 32, 4
    if case == "overhead":
        batch, maps, heads, channels, points = 1, ((2, 2),), 2, 4, 2
    tokens, levels = sum(h * w for h, w in maps), len(maps)
    queries = {"decoder": 30 if quick else 300, "overhead": 2}.get(case, tokens)

    sampled = (batch, queries, heads, levels, points, 2)
    if case == "encoder-local":
        sizes = torch.tensor(maps).flip(-1)[:, None]  # [L, 1, 2], (W, H)
        locations = _centres(maps)[:, None, None, None] + torch.randn(sampled, generator=rng) * (2.5 / sizes)
    elif case == "decoder":
        centre = torch.rand((batch, queries, 1, 1, 1, 2), generator=rng)
        extent = torch.empty_like(centre).uniform_(0.05, 0.5, generator=rng)
        locations = centre + torch.randn(sampled, generator=rng) * extent / 4  # 2 standard deviations: the box
    else:
        locations = torch.rand(sampled, generator=rng)
    return Inputs(
        value=torch.randn((batch, tokens, heads, channels), generator=rng),
        spatial_shapes=maps,
        locations=locations.flatten(3, 4),
        weights=torch.randn((batch, queries, heads, levels * points), generator=rng).softmax(-1),
        points=points,
        grad=torch.randn((batch, queries, heads * channels), generator=rng),
    )


def _centres(maps: Sequence[tuple[int, int]]) -> Tensor:
    """`[S, 2]`, where each pixel of each level is, (x, y) in [0, 1]."""
    of_level = []
    for height, width in maps:
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        of_level.append(torch.stack([x, y], -1).flatten(0, 1))
    return torch.cat(of_level)


def compulsory_bytes(inputs: Inputs) -> tuple[int, int]:
    """What forward and backward must move at least: every argument read once, every result written once, in bytes.

    Of the value only the rows of D channels that a sample touches are read; its gradient is written whole.
    """
    row = inputs.value.shape[3] * inputs.value.element_size()
    read = sampled_rows(inputs) * row + inputs.locations.nbytes + inputs.weights.nbytes
    written_back = inputs.value.nbytes + inputs.locations.nbytes + inputs.weights.nbytes
    return read + inputs.grad.nbytes, read + inputs.grad.nbytes + written_back


def sampled_rows(inputs: Inputs) -> int:
    """How many of the B*S*M rows of the value are a corner of a sample."""
    batch, tokens, heads, _ = inputs.value.shape
    seen = torch.zeros(batch * tokens * heads, dtype=torch.bool, device=inputs.value.device)
    image = torch.arange(batch, device=seen.device)[:, None, None, None] * tokens
    head = torch.arange(heads, device=seen.device)[:, None]
    first, k = 0, inputs.points
    for level, (height, width) in enumerate(inputs.spatial_shapes):
        x, y = inputs.locations[..., level * k : (level + 1) * k, :].float().unbind(-1)
        left, top = (x * width - 0.5).floor().long(), (y * height - 0.5).floor().long()
        for column, row in ((left + dx, top + dy) for dx in (0, 1) for dy in (0, 1)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            token = image + first + row * width + column
            seen[(token * heads + head)[inside]] = True
        first += height * width
    return int(seen.sum())


# -------------------------------------------------------------------------------------------------------- contenders


@dataclass
class Contender:
    """One implementation on one case.

    Attributes:
        name: one of `CONTENDERS`.
        inputs: in the dtypes that it takes.
        call: from value, locations and weights, laid out as in `leaves`, to the output `[B, Q, M*D]`.
        leaves: value, locations and weights, all requiring gradients.
        bytes: compulsory, of forward and backward.
        error: largest deviation of output and gradients, of the largest entry.
        failure: what kept it from being measured, or "".
        forward_s, both_s: seconds of a call, one entry a turn; `both_s` is empty where the backward failed.
    """

    name: str
    inputs: Inputs
    call: Callable[[Tensor, Tensor, Tensor], Tensor]
    leaves: tuple[Tensor, Tensor, Tensor]
    bytes: tuple[int, int]
    error: float | None = None
    failure: str = ""
    forward_s: list[float] = field(default_factory=list)
    both_s: list[float] = field(default_factory=list)

    @torch.no_grad()
    def forward(self) -> Tensor:
        """The output, nothing kept for a backward."""
        return self.call(*self.leaves)

    def both(self) -> tuple[Tensor, ...]:
        """The output and the gradients of value, locations and weights."""
        out = self.call(*self.leaves)
        return out.detach(), *torch.autograd.grad(out, self.leaves, self.inputs.grad)

    def seconds(self, direction: str) -> list[float]:
        """Of `forward`, `backward` or `both`, one entry a turn."""
        if direction == "backward":
            return [both - forward for both, forward in zip(self.both_s, self.forward_s)]
        return self.forward_s if direction == "forward" else self.both_s


def make_contender(name: str, inputs: Inputs) -> Contender:
    """Set up an implementation; what it wants converted is converted here, not on the clock."""
    locations, weights = inputs.locations, inputs.weights
    shapes, num_points = inputs.spatial_shapes, [inputs.points] * len(inputs.spatial_shapes)
    if name == "package":
        from torch_ms_deform_attn import ms_deform_attn

        dtype = inputs.value.dtype  # the package takes one dtype for all
        inputs = replace(inputs, locations=locations.to(dtype), weights=weights.to(dtype))
        levels = (len(shapes), inputs.points)
        locations, weights = inputs.locations.unflatten(3, levels), inputs.weights.unflatten(3, levels)
        sizes = torch.tensor(shapes, device=locations.device)
        areas = sizes.prod(1)
        starts = areas.cumsum(0) - areas

        def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return ms_deform_attn(value, sizes, starts, locations, weights)
    else:

        def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return ops.ms_deform_attn(value, shapes, locations, weights, num_points, backend=name)

    leaves = tuple(t.detach().requires_grad_() for t in (inputs.value, locations, weights))
    return Contender(name, inputs, call, leaves, compulsory_bytes(inputs))


def available(device: torch.device, asked: Sequence[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """Names of the contenders that can run, and of the others why they cannot.

    Args:
        device: where.
        asked: names that must be among them; None takes all there are.

    Raises:
        UserError: one that is asked for cannot run.
    """
    found, missing = [], {}
    for name in CONTENDERS:
        try:
            if name == "package":
                import torch_ms_deform_attn  # noqa: F401
            else:
                ops.selected_backend(device.type, name)
        except ImportError as error:
            missing[name] = f"{PACKAGE} cannot be imported ({error}): pip install {PACKAGE}==0.1.1"
        except RuntimeError as error:
            missing[name] = str(error)
        else:
            found.append(name)
    for name in asked or []:
        if name in missing:
            raise UserError(f"--backends {name}: {missing[name]}")
    return [name for name in found if not asked or name in asked], missing


# --------------------------------------------------------------------------------------------------------- agreement


def truth(inputs: Inputs) -> tuple[Tensor, ...]:
    """Output and three gradients by the reference in fp64, one image at a time, on the CPU."""
    parts = []
    for i in range(len(inputs.value)):
        cut = [t[i : i + 1].double() for t in (inputs.value, inputs.locations, inputs.weights, inputs.grad)]
        leaves = [t.requires_grad_() for t in cut[:3]]
        num_points = [inputs.points] * len(inputs.spatial_shapes)
        out = ops.ms_deform_attn(leaves[0], inputs.spatial_shapes, *leaves[1:], num_points, backend="reference")
        parts.append([t.cpu() for t in (out.detach(), *torch.autograd.grad(out, leaves, cut[3]))])
    return tuple(torch.cat(p) for p in zip(*parts))


def check(contender: Contender, expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> float:
    """The largest deviation of output and gradients, each as a part of its largest entry.

    Args:
        contender: whose they are.
        expected: from `truth`, on the contender's inputs.
        found: output, and gradients or nothing.

    Raises:
        DisagreementError: it is more than rounding.
    """
    inputs, largest = contender.inputs, 0.0
    side = max(max(shape) for shape in inputs.spatial_shapes)
    compute = torch.float64 if inputs.value.dtype is torch.float64 else torch.float32
    # The result is rounded to its dtype; a coordinate is computed to an ulp or so of the map's side, in pixels.
    allowed = 2 * torch.finfo(inputs.value.dtype).eps + 8 * side * torch.finfo(compute).eps
    names = ("output", "gradient of the value", "gradient of the locations", "gradient of the weights")
    for name, exact, tensor in zip(names, expected, found):
        difference = (tensor.detach().cpu().double().reshape(exact.shape) - exact).abs()
        if name == "gradient of the locations":
            # It jumps where a sample crosses a pixel's centre: on which side of it a sample is, is rounding.
            pixel = (inputs.locations.double() * inputs.sizes() - 0.5).cpu()
            difference[(pixel - pixel.round()).abs() < 1e-3] = 0
        error = float(difference.max() / exact.abs().max())
        if not error <= allowed:
            raise DisagreementError(
                f"{label(contender.name)} disagrees with the reference: its {name} is off by {error:.1e} of the "
                f"largest entry, rounding in {str(inputs.value.dtype).removeprefix('torch.')} allows {allowed:.1e}"
            )
        largest = max(largest, error)
    return largest


def within_memory(call: Callable[[], object]) -> object | None:
    """What `call` returns, or None where memory runs out; any other error is raised."""
    try:
        return call()
    except (MemoryError, RuntimeError) as error:
        words = ("out of memory", "allocate memory", "not enough memory", "bad_alloc")
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(w in str(error) for w in words):
            raise
    # Outside of the handler: the error's traceback kept the tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def require_memory(image: Inputs, batch: int) -> None:
    """Refuse a batch that the machine cannot hold: Linux grants the memory, and then ends some process for it.

    Args:
        image: inputs of one image, fp32.
        batch: images.

    Raises:
        MemoryError: inputs, results and what they are compared with, in fp64, are more than is available.
    """
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), math.inf)
    needed = 8 * batch * sum(t.nbytes for t in (image.value, image.locations, image.weights, image.grad))
    if needed > available:
        raise MemoryError(f"a batch of {batch} needs {needed:.1e} bytes of memory, there are {available:.1e}")


# -------------------------------------------------------------------------------------------------------- the clock


def burst_seconds(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of one of `count` calls made in a row, the device's queue emptied before and after."""
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


class Copy:
    """The yardstick: a large tensor copied to another, which takes turns with the contenders."""

    def __init__(self, device: torch.device, quick: bool):
        size = 2**22 if quick else 2**28 if device.type == "cuda" else 2**26  # fp32: 16 MiB, 1 GiB, 256 MiB
        self.source, self.target = torch.ones(size, device=device), torch.zeros(size, device=device)
        self.forward_s: list[float] = []

    def run(self) -> Tensor:
        """One copy."""
        return self.target.copy_(self.source)

    def bytes_per_second(self) -> float:
        """Read and written, median."""
        return 2 * self.source.nbytes / median(self.forward_s)


def take_turns(contenders: Sequence[Contender], copy: Copy | None, options: argparse.Namespace) -> None:
    """Fill in the contenders' `forward_s` and `both_s`, and the copy's time.

    Every round each contender has a turn: forward, then forward + backward. Those too slow for the time allowed
    have at least three turns (or all), spread over the rounds. One that runs out of memory leaves, with a `failure`.
    """
    device, rounds = options.device, options.repeats
    plans = []
    if copy is not None:
        copy.run()
        plans.append((copy, rounds, [(copy.run, 1, copy.forward_s)]))
    for contender in contenders:
        planned = within_memory(lambda contender=contender: _plan(contender, options))
        if planned is None:
            contender.failure = "out of memory"
        else:
            plans.append((contender, *planned))

    order, left = random.Random(0), set()
    for i in range(rounds):
        for j in order.sample(range(len(plans)), len(plans)):
            who, turns, calls = plans[j]
            if j in left or (i + 1) * turns // rounds == i * turns // rounds:
                continue
            for run, count, seconds in calls:
                found = within_memory(lambda run=run, count=count: burst_seconds(run, count, device))
                if found is None:
                    left.add(j)
                    who.failure = "out of memory"
                    break
                seconds.append(found)


def _plan(contender: Contender, options: argparse.Namespace) -> tuple[int, list]:
    """Warm up; the number of turns, and for each direction what to call, how often in a burst, and where to note it."""
    directions = [(contender.forward, contender.forward_s)]
    if not contender.failure:
        directions.append((contender.both, contender.both_s))
    calls, slowest = [], 0.0
    for run, seconds in directions:
        burst_seconds(run, 1, options.device)
        once = burst_seconds(run, 3 if options.device.type == "cuda" else 1, options.device)
        count = max(1, min(2000, round(options.burst / max(once, 1e-7))))
        calls.append((run, count, seconds))
        slowest = max(slowest, count * once)
    return min(options.repeats, max(3, int(options.seconds / slowest))), calls


def measure(case: str, dtype: str, names: Sequence[str], options: argparse.Namespace) -> dict:
    """Check and time all contenders on a case.

    Returns:
        What goes into the JSON; see `summary`.

    Raises:
        DisagreementError: a contender computes something else than the reference.
    """
    kind = getattr(torch, dtype)
    compute = torch.float64 if kind is torch.float64 else torch.float32

    def set_up() -> tuple[list[Contender], dict[bool, tuple[Tensor, ...]], Copy | None]:
        require_memory(make_inputs(case, 1, options.quick), options.batch)
        inputs = make_inputs(case, options.batch, options.quick).to(options.device, kind, compute)
        contenders = [make_contender(name, inputs) for name in names]
        # In half precision the package is given rounded locations: what is right for those is another thing.
        expected = {c.inputs.locations.dtype: None for c in contenders}
        for contender in contenders:
            key = contender.inputs.locations.dtype
            if expected[key] is None:
                expected[key] = truth(contender.inputs)
        return contenders, expected, Copy(options.device, options.quick) if case != "overhead" else None

    progress(f"{case}, {dtype}: inputs and reference in fp64")
    ready = within_memory(set_up)
    if ready is None:
        failure = "out of memory for the inputs and the check"
        failed = [{"contender": name, "label": label(name), "failure": failure} for name in names]
        return {"case": case, "dtype": dtype, "contenders": failed}
    contenders, expected, copy = ready
    for contender in contenders:
        found = within_memory(contender.both)
        if found is None:
            found = within_memory(lambda contender=contender: (contender.forward(),))
            contender.failure = "out of memory" if found is None else "backward out of memory"
        if found is not None:
            contender.error = check(contender, expected[contender.inputs.locations.dtype], found)
            progress(f"  {label(contender.name)} agrees, largest deviation {contender.error:.1e}")
        del found
    progress(f"  timing, {options.repeats} rounds")
    take_turns([c for c in contenders if c.failure != "out of memory"], copy, options)
    return summary(case, dtype, contenders, copy)


# ----------------------------------------------------------------------------------------------------------- results


def label(name: str) -> str:
    """A contender's name as tables show it."""
    return PACKAGE if name == "package" else f"ours, {name}" if name != "reference" else "reference"


def ratio(of: float | None, to: float | None) -> float | None:
    """`of / to`, None where one was not measured or, as a difference can, drowned in noise."""
    return of / to if of is not None and to is not None and of > 0 and to > 0 else None


def summary(case: str, dtype: str, contenders: Sequence[Contender], copy: Copy | None) -> dict:
    """Medians, ratios and traffic of a case, in plain numbers: seconds, bytes, bytes per second.

    Under "contenders", for each and for `forward`, `backward` and `both` in it: `seconds`, `quartiles` of them,
    `reference_ratio` and `package_ratio` (theirs over this one's, more than 1 where this one is faster), and for the
    first two `bytes`, `bytes_per_second`, `floor_seconds` and `of_floor` (1: as fast as the copy).
    """
    inputs = contenders[0].inputs
    batch, tokens, heads, channels = inputs.value.shape
    medians = {
        c.name: {d: median(c.seconds(d)) for d in ("forward", "backward", "both") if c.seconds(d)} for c in contenders
    }
    speed = copy.bytes_per_second() if copy is not None else None
    rows = []
    for c in contenders:
        row = {"contender": c.name, "label": label(c.name), "failure": c.failure, "largest_error": c.error}
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


def machine(device: torch.device, names: Sequence[str]) -> dict:
    """What was measured on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    try:
        backends = {name: text for name, text in ops.backend_info().items() if name in names}
    except RuntimeError as error:  # the environment variable asks for one that cannot run
        raise UserError(str(error)) from error
    if "package" in names:
        backends["package"] = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    return {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cpu": cpu,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # Windows has none
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "backends": backends,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
    }


def figure(number: float | None) -> str:
    """A number to three digits, or a dash."""
    if number is None or not math.isfinite(number):
        return "-"
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2 if abs(number) >= 1 else 3
    return f"{number:.{digits}f}"


def markdown(report: dict) -> str:
    """The report as text and tables in Markdown."""
    m, s = report["machine"], report["settings"]
    lines = [
        f"{m['name']}, {m['threads']} CPU threads, torch {m['torch']}"
        + (f", CUDA {m['cuda']}" if m["cuda"] else "")
        + (f", load {m['load_before']:.1f} before" if m["load_before"] is not None else "")
        + f", {m['date'][:10]}. Batch {s['batch']}, medians of {s['repeats']} rounds"
        + (", **small maps (--quick)**." if s["quick"] else "."),
        "",
        *(f"- {label(name)}: {text}" for name, text in m["backends"].items()),
    ]
    main_cases = [c for c in report["cases"] if c["case"] != "overhead"]
    tiny_cases = [c for c in report["cases"] if c["case"] == "overhead"]

    def table(heading: str, columns: Sequence[str], cases: Sequence[dict], cells: Callable[[dict, dict], list]) -> None:
        lines.extend(["", heading, "", f"| {' | '.join(columns)} |", "|---|---|---|" + "--:|" * (len(columns) - 3)])
        for case in cases:
            for row in case["contenders"]:
                given = [figure(c) if not isinstance(c, str) else c for c in cells(case, row)]
                name = row["label"] + (f" ({row['failure']})" if row["failure"] else "")
                lines.append(f"| {' | '.join([case['case'], case['dtype'], name, *given])} |")

    def get(row: dict, direction: str, key: str, factor: float = 1) -> float | None:
        number = row.get(direction, {}).get(key)
        return None if number is None else number * factor

    def times(case: dict, row: dict) -> list:
        found = [get(row, d, "seconds", 1e3) for d in ("forward", "backward")]
        found += [get(row, d, f"{who}_ratio") for who in ("reference", "package") for d in ("forward", "backward")]
        error = row.get("largest_error")
        return [*found, "-" if error is None else f"{error:.1e}"]

    def traffic(case: dict, row: dict) -> list:
        found = []
        for d in ("forward", "backward"):
            found += [get(row, d, "bytes", 1e-6), get(row, d, "floor_seconds", 1e3)]
            found += [get(row, d, "bytes_per_second", 1e-9), get(row, d, "of_floor")]
        return [get({"copy": case}, "copy", "copy_bytes_per_second", 1e-9), *found]

    def overhead(case: dict, row: dict) -> list:
        found = [get(row, d, "seconds", 1e6) for d in ("forward", "both")]
        return found + [get(row, d, f"{who}_ratio") for who in ("reference", "package") for d in ("forward", "both")]

    first = ["case", "dtype", "contender"]
    if main_cases:
        both = [f"{who} / this, {d}" for who in ("reference", "package") for d in ("forward", "backward")]
        columns = [*first, "forward ms", "backward ms", *both, "largest error"]
        table("Time; ratios above 1 say that this one is faster.", columns, main_cases, times)
        columns = [*first, "copy GB/s"]
        columns += [f"{d} {what}" for d in ("forward", "backward") for what in ("MB", "floor ms", "GB/s", "of floor")]
        heading = "Compulsory traffic, beside a copy (read + write) measured in the same rounds; 1 is the copy's speed."
        table(heading, columns, main_cases, traffic)
    if tiny_cases:
        columns = [*first, "forward µs", "forward + backward µs"]
        columns += [f"{w} / this, {d}" for w in ("reference", "package") for d in ("forward", "forward + backward")]
        table("A call's overhead: one map of 2x2, 2 queries, 2 heads of 4 channels.", columns, tiny_cases, overhead)
    if report["notes"]:
        lines += ["", *(f"- {note}" for note in report["notes"])]
    return "\n".join(lines)


def plot(report: dict, path: Path) -> None:
    """Draw forward and backward times as bars, a row of axes for each case, with the floor as a line.

    Args:
        report: of `main`; the overhead is left out unless it is all there is.
        path: `.png` to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    cases = [c for c in report["cases"] if c["case"] != "overhead"] or report["cases"]
    names = [n for n in ("cuda", "cpu", "package", "reference") if n in report["machine"]["backends"]]
    directions = ("forward", "backward")
    picture = Figure(figsize=(11, 1.1 + len(cases) * (0.65 + 0.36 * len(names))), layout="constrained")
    FigureCanvasAgg(picture)
    grid = picture.subplots(len(cases), 2, squeeze=False, sharex="col")
    for case, axes_of_case in zip(cases, grid):
        rows = {row["contender"]: row for row in case["contenders"]}
        for direction, axes in zip(directions, axes_of_case):
            for i, name in enumerate(names):
                numbers = rows[name].get(direction)
                if numbers and numbers["seconds"] > 0:
                    ms, times = numbers["seconds"] * 1e3, numbers["reference_ratio"]
                    axes.barh(i, ms, color=COLOURS[name], height=0.72)
                    beside = f"  ({times:.1f}x)" if times and name != "reference" else ""
                    axes.annotate(
                        f"{figure(ms)} ms{beside}", (ms, i), (4, 0), textcoords="offset points", va="center", fontsize=9
                    )
                else:
                    axes.text(0.02, i, rows[name]["failure"] or "within noise", va="center", fontsize=9,
                              transform=axes.get_yaxis_transform())  # fmt: skip
            floors = [n["floor_seconds"] for r in rows.values() if "floor_seconds" in (n := r.get(direction, {}))]
            if floors:
                axes.axvline(max(floors) * 1e3, color="black", linestyle="--", linewidth=1.2)
            axes.set_yticks(range(len(names)), [label(n) if direction == "forward" else "" for n in names])
            axes.set_ylim(len(names) - 0.45, -0.55)
            axes.set_title(f"{case['case']}, {case['dtype']}: {direction}", fontsize=10, loc="left")
            axes.grid(axis="x", which="major", alpha=0.3)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
            axes.spines[["top", "right"]].set_visible(False)
    # One kind of axis for all: bars of different panels are compared.
    for column, direction in enumerate(directions):
        drawn = [r[direction] for c in cases for r in c["contenders"] if r.get(direction, {}).get("seconds", 0) > 0]
        ms = [v * 1e3 for n in drawn for v in (n["seconds"], n.get("floor_seconds", n["seconds"]))]
        for axes in grid[:, column]:
            if ms and max(ms) > 20 * min(ms):
                axes.set_xscale("log")
                axes.set_xlim(10 ** math.floor(math.log10(min(ms) * 0.8)), max(ms) * (max(ms) / min(ms)) ** 0.35)
            elif ms:
                axes.set_xlim(0, max(ms) * 1.35)
        scale = "ms, log scale" if grid[-1, column].get_xscale() == "log" else "ms"
        grid[-1, column].set_xlabel(scale + "; in brackets: times as fast as the reference")
    m, settings = report["machine"], report["settings"]
    threads = f", {m['threads']} threads" if m["device"] == "cpu" else ""
    small = ", small maps (--quick)" if settings["quick"] else ""
    picture.suptitle(
        f"ms_deform_attn on {m['name']}{threads}, torch {m['torch']}, batch {settings['batch']}{small}", fontsize=11
    )
    handles = [Patch(color=COLOURS[n], label=label(n)) for n in names]
    floor_text = "floor: compulsory bytes, copied"
    handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1.2, label=floor_text))
    picture.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    picture.savefig(path, dpi=120)


# ------------------------------------------------------------------------------------------------------ command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message} (--help explains)\n")


def _positive(kind: type) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = 0
        if not 0 < number < math.inf:
            words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {words} above 0, got '{text}'")
        return number

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bench_op.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    add(
        "--dtype", nargs="+", choices=DTYPES, default=["float32"], metavar="DTYPE",
        help=f"of the value: {', '.join(DTYPES)}; several are measured one after another (default: float32). With "
        "bfloat16 and float16 our locations and weights stay fp32, as under autocast; the package's are rounded",
    )  # fmt: skip
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=f"{', '.join(CASES)} (all)")
    add("--backends", nargs="+", choices=CONTENDERS, metavar="NAME",
        help=f"{', '.join(CONTENDERS)} (default: all that can run on the device); without 'reference' or 'package' "
        "the ratios to it are dashes")  # fmt: skip
    add("--batch", type=_positive(int), default=1, metavar="B", help="images in a call (default: 1)")
    add("--repeats", type=_positive(int), metavar="N", help="rounds (default: 20, with --quick 5)")
    add("--seconds", type=_positive(float), metavar="T",
        help="for one contender and direction in a case; who is slower has fewer turns, at least three "
        "(default: 5, with --quick 0.2)")  # fmt: skip
    add("--threads", type=_positive(int), metavar="N", help="of torch on the CPU (default: torch's own choice)")
    add("--quick", action="store_true", help="small maps, few rounds: to try the script, not to quote")
    add("--json", type=Path, metavar="FILE", help="write all numbers, with quartiles; seconds and bytes")
    add("--plot", type=Path, metavar="FILE.png", help="draw the times as bars")
    return parser


def _resolve(options: argparse.Namespace) -> None:
    """Fill in defaults and refuse, before anything is measured, what cannot be done."""
    try:
        options.device = torch.device(options.device)
    except RuntimeError as error:
        raise UserError(f"--device {options.device} is no device; take cpu, cuda or cuda:N") from error
    if options.device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {options.device} cannot be timed here; take cpu, cuda or cuda:N")
    if options.device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (options.device.index or 0) >= count:
            raise UserError(f"--device {options.device}: torch {torch.__version__} sees {count} CUDA devices here")
        torch.cuda.set_device(options.device.index or 0)
    for name, path in (("--json", options.json), ("--plot", options.plot)):
        if path is not None and path.is_dir():
            raise UserError(f"{name} {path} is a folder; name a file in it")
        if path is not None and not path.resolve().parent.is_dir():
            raise UserError(f"{name} {path}: there is no folder '{path.resolve().parent}'; make it first")
        if path is not None and not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
            raise UserError(f"{name} {path} cannot be written to; name another file")
    if options.plot is not None and options.plot.suffix != ".png":
        raise UserError(f"--plot {options.plot} must end in .png")
    options.repeats = options.repeats or (5 if options.quick else 20)
    options.seconds = options.seconds or (0.2 if options.quick else 5.0)
    options.burst = 0.001 if options.quick else 0.01  # seconds


def progress(line: str) -> None:
    """Tell whoever waits; the tables on stdout stay clean."""
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Measure, print tables in Markdown, write what is asked for.

    Returns:
        The exit code: 0, 1 where a contender disagrees with the reference, 2 for options that cannot be followed.
    """
    options = _parser().parse_args(argv)
    threads = torch.get_num_threads()
    try:
        _resolve(options)
        names, missing = available(options.device, options.backends)
        if options.threads:
            torch.set_num_threads(options.threads)
        report = {"machine": machine(options.device, names), "settings": _settings(options)}
        order = [(case, dtype) for dtype in dict.fromkeys(options.dtype) for case in dict.fromkeys(options.cases)]
        report["cases"] = [measure(*both, names, options) for both in order]
        report["notes"] = _notes(report, names, missing)
    except UserError as error:
        print(f"bench_op.py: {error}", file=sys.stderr)
        return 2
    except DisagreementError as error:
        print(f"bench_op.py: {error}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
    print(markdown(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if options.plot is not None:
        plot(report, options.plot)
    return 0


def _settings(options: argparse.Namespace) -> dict:
    names = ("batch", "repeats", "seconds", "quick", "cases", "dtype", "backends")
    return {name: getattr(options, name) for name in names}


def _notes(report: dict, names: Sequence[str], missing: dict[str, str]) -> list[str]:
    """What a reader of the tables must know, in sentences."""
    settings, device = report["settings"], report["machine"]["device"]
    notes = ["Caches are not flushed between calls: small cases may be read from there, and exceed 1 of the floor."]
    if "package" in names and {"bfloat16", "float16"} & set(settings["dtype"]):
        notes.append(
            f"In half precision {PACKAGE} takes locations and weights in the value's dtype, so they are rounded for it "
            "(and are fewer bytes); ours and the reference take them in fp32."
        )
    absent = [name for name in missing if not settings["backends"] and name in (device.split(":")[0], "package")]
    notes += [f"Not measured: {missing[name]}." for name in absent]
    noisy = []
    for case in report["cases"]:
        for row in case["contenders"]:
            for direction, words in (("forward", "forward"), ("both", "forward + backward")):
                low, _, high = row.get(direction, {}).get("quartiles", (1, 1, 1))
                if high > 1.3 * low:
                    noisy.append(f"{case['case']} {case['dtype']} {row['label']} {words} {high / low:.1f}")
    if noisy:
        notes.append(f"Noisy, measure again on a quieter machine (upper over lower quartile): {'; '.join(noisy)}.")
    return notes


if __name__ == "__main__":
    sys.exit(main())
