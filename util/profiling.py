"""What a model costs: parameters and operations by part, latency, throughput and memory at several image sizes."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import torchvision.ops  # noqa: F401, registers the operators that are counted
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from util.devices import autocast
from util.errors import UserError
from util.tables import table

MIB = 2**20
PROBE = (128, 128)  # pixels, of the image that tells what larger ones will need
CONVENTION = (
    "Operations are those of one forward pass for one image, a multiplication and an addition counted as two (GFLOPs); "
    "papers on detectors count such a pair once, and call GMACs GFLOPs. Convolutions, matrix products, attention and "
    "bilinear sampling are counted; norms, activations, softmax, masks and resizing are not."
)


@dataclass
class PartCost:
    """A part of the model.

    Attributes:
        name: name of the part.
        trainable, frozen: numbers of parameters.
        flops: operations for one image at the first size that was counted; None before.
    """

    name: str
    trainable: int = 0
    frozen: int = 0
    flops: float | None = None


@dataclass
class SizeCost:
    """The model at one image size.

    Attributes:
        height, width: size of the images in pixels.
        batch_size: images at once.
        flops: operations for one image; None if they were not counted.
        seconds: seconds for one batch, an entry for each repeat.
        peak_bytes: most memory of tensors at any moment, weights and images included.
        failure: why there are no figures, or "".
    """

    height: int
    width: int
    batch_size: int
    flops: float | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    failure: str = ""

    @property
    def latency(self) -> float | None:
        """Median seconds of one batch."""
        return median(self.seconds) if self.seconds else None

    @property
    def images_per_second(self) -> float | None:
        """At the median."""
        return self.batch_size / self.latency if self.latency else None


@dataclass
class Profile:
    """All figures; `str()` makes them text.

    Attributes:
        parts: figures by part.
        sizes: figures by image size.
        machine: the machine, and how it was measured.
    """

    parts: list[PartCost]
    sizes: list[SizeCost]
    machine: str

    def __str__(self) -> str:
        counted = next((s for s in self.sizes if s.flops is not None), None)
        share = f"GFLOPs at {counted.height}x{counted.width}" if counted else "GFLOPs"
        totals = PartCost("all", *(sum(getattr(p, k) for p in self.parts) for k in ("trainable", "frozen")))
        totals.flops = counted.flops if counted else None
        rows = [[p.name, f"{p.trainable:,}", f"{p.frozen:,}", _figure(p.flops, 1e-9)] for p in [*self.parts, totals]]
        lines = [self.machine, "", table(["part", "trainable", "frozen", share], rows), ""]
        rows = []
        for s in self.sizes:
            cells = [_figure(s.flops, 1e-9), _figure(s.flops, 0.5e-9), s.failure or _figure(s.latency, 1e3)]
            cells += [_figure(s.images_per_second), _figure(s.peak_bytes, 1 / MIB, 0)]
            rows.append([f"{s.batch_size} x {s.height}x{s.width}", *cells])
        header = ["images", "GFLOPs/image", "GMACs/image", "latency ms", "images/s", "peak MiB"]
        return "\n".join([*lines, table(header, rows), "", CONVENTION])


def profile_model(
    model: nn.Module,
    sizes: Sequence[tuple[int, int]],
    batch_size: int = 1,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    repeats: int = 10,
) -> Profile:
    """Count and measure a detector's forward pass in evaluation mode, on random images without padding.

    Args:
        model: takes images `[B, 3, H, W]` and a padding mask `[B, H, W]`; moved to the device. If parts of it are
            compiled, operations are counted before the compiled code runs.
        sizes: (height, width) in pixels. One for which memory does not suffice is reported and left out.
        batch_size: images at once.
        precision: precision, as in training: `bf16` and `fp16` run under autocast.
        device: where.
        repeats: timed passes; two more go before them.
    """
    device = torch.device(device)
    model = model.to(device).eval()
    parts = {p.name: p for p in parameters_by_part(model)}
    found, bytes_per_pixel = [], 0.0
    if device.type == "cpu":  # where Linux grants what it does not have, and then ends some process for it
        probe = ForwardPass(model, PROBE, 1, precision, device)
        probe()
        rise = measure_peak(probe, device, probe.resident) - nbytes(probe.resident)
        bytes_per_pixel = rise / (PROBE[0] * PROBE[1])
    for height, width in sizes:
        cost = SizeCost(height, width, batch_size)
        found.append(cost)
        try:
            if device.type == "cpu":
                require_memory(int(bytes_per_pixel * height * width * batch_size))
            by_part = _fill(cost, ForwardPass(model, (height, width), batch_size, precision, device), device, repeats)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            cost.failure = "out of memory"
            continue
        if all(p.flops is None for p in parts.values()):
            for name, flops in by_part.items():
                parts.setdefault(name, PartCost(name)).flops = flops
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    machine = f"{name}{threads}, {precision}, torch {torch.__version__}, median of {repeats} passes"
    return Profile(list(parts.values()), found, machine)


def image_size(text: str) -> tuple[int, int]:
    """(height, width) from `HxW`, as in 480x640.

    Raises:
        UserError: it is something else.
    """
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise UserError(f"sizes: '{text}' is no image size; write HEIGHTxWIDTH in pixels, like 480x640")
    return int(height), int(width)


class ForwardPass:
    """One forward pass, ready to run; the images are made at once."""

    def __init__(self, model: nn.Module, size: tuple[int, int], batch_size: int, precision: str, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        images = torch.randn((batch_size, 3, *size), generator=generator).to(device, dtype)
        self.inputs = (images, torch.zeros((batch_size, *size), dtype=torch.bool, device=device))
        self.model, self.precision, self.device = model, precision, device
        self.resident = [*model.parameters(), *model.buffers(), *self.inputs]

    def __call__(self) -> None:
        """Run it."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            self.model(*self.inputs)


def _fill(cost: SizeCost, call: ForwardPass, device: torch.device, repeats: int) -> dict[str, float]:
    """Every figure of a size; returns the operations by part, of one image."""
    by_part = {name: flops / cost.batch_size for name, flops in count_flops(call.model, call).items()}
    call()
    cost.flops = sum(by_part.values())
    cost.peak_bytes = measure_peak(call, device, call.resident)
    cost.seconds = [seconds(call, device) for _ in range(repeats)]
    return by_part


def part_of(name: str) -> str:
    """The part that a module or parameter belongs to: the first word of its name, of a transformer the second."""
    words = name.split(".")
    return words[1] if words[0] == "transformer" and len(words) > 1 else words[0]


def parameters_by_part(model: nn.Module) -> list[PartCost]:
    """Parameters of each part, in the order of the model; the frozen are those without gradient.

    Frozen batch norms hold their numbers in buffers, which are not counted.
    """
    parts: dict[str, PartCost] = {}
    for name, parameter in model.named_parameters():
        part = parts.setdefault(part_of(name), PartCost(part_of(name)))
        if parameter.requires_grad:
            part.trainable += parameter.numel()
        else:
            part.frozen += parameter.numel()
    return list(parts.values())


def _deform_conv_flops(x_shape, weight_shape, offset_shape, *args, out_shape=None, **kwargs) -> int:
    """Four corners of each sample of each channel, then the convolution's products."""
    positions = offset_shape[0] * math.prod(offset_shape[2:])
    return positions * (8 * x_shape[1] * math.prod(weight_shape[2:]) + 2 * math.prod(weight_shape))


def count_flops(model: nn.Module, call: Callable[[], object]) -> dict[str, float]:
    """Operations of a call by part of the model, by torch's FlopCounterMode: a multiply-add is two.

    The operator is counted by its own formula, and its fallback, made of `grid_sample`, alike: four corners, each with
    a multiplication and an addition, for every sample and channel.

    Args:
        model: the model whose modules are the parts; `other` is what runs outside of them.
        call: runs it. Compiled parts run as they were before.
    """
    formulas = {
        torch.ops.aten.grid_sampler_2d: lambda *_, out_shape=None, **__: 8 * torch.Size(out_shape).numel(),
        torch.ops.torchvision.deform_conv2d: _deform_conv_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:  # the counter hangs hooks on them, which without a graph it cannot
            parameter.requires_grad_(False)
        with torch.compiler.set_stance("force_eager"), counter:
            call()
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    root = type(model).__name__
    counts = {
        name.removeprefix(f"{root}."): sum(ops.values())
        for name, ops in counter.get_flop_counts().items()
        if name not in (root, "Global")
    }
    by_part: Counter[str] = Counter()
    for name, flops in counts.items():
        words = name.split(".")
        if not any(".".join(words[:i]) in counts for i in range(1, len(words))):  # else its module has counted it
            by_part[part_of(name)] += flops
    if other := counter.get_total_flops() - by_part.total():
        by_part["other"] = other
    return {name: float(flops) for name, flops in by_part.items() if flops}


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


def _figure(number: float | None, factor: float = 1.0, digits: int = 1) -> str:
    return "-" if number is None else f"{number * factor:,.{digits}f}"
