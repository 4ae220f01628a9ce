"""What a model costs at several image sizes: every figure, counted and measured."""

from collections.abc import Sequence

import torch
from torch import nn

from util.costs import PartCost, Profile, SizeCost
from util.counting import count_flops, parameters_by_part
from util.devices import autocast
from util.errors import UserError
from util.measuring import is_out_of_memory, measure_peak, nbytes, require_memory, seconds

PROBE = (128, 128)  # pixels, of the image that tells what larger ones will need


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
