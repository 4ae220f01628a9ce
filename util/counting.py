"""Parameters and operations, by part of a model."""

import math
from collections import Counter
from collections.abc import Callable

import torch
import torchvision.ops  # noqa: F401, registers the operators that are counted
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from util.costs import PartCost


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
