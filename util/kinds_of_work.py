"""Where the time of a forward pass goes, by kind of work, as torch's profiler sees its operators."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType

from util.devices import has_bf16_units
from util.measuring import quiet_profiler
from util.tables import table

ELEMENTWISE = "activations and elementwise"
# Words of the operators' names, by kind; the first that fits counts, and what fits none is elementwise.
KINDS = {
    "fused by torch.compile": ("CompiledFxGraph", "triton_"),  # its kernels are no operators; on a CPU: the whole graph
    ELEMENTWISE: ("clamp", "masked_fill"),  # relu is a clamp
    "deformable operator": ("deformable_detr::", "grid_sampler", "torchvision::deform"),
    "convolutions": ("conv",),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "matrix products": ("mm", "linear", "matmul", "dot", "einsum"),
    "norms": ("norm",),
    "softmax": ("softmax",),
    "copies": ("copy", "clone", "cat", "contiguous", "index", "gather", "fill", "zero", "empty", "stack", "pad", "to"),
    "pooling, resizing, sorting": ("pool", "upsample", "topk", "sort", "cumsum", "sum", "max", "min", "any", "all"),
}
PAST_ONEDNN = "aten::_slow_conv2d_forward"


@dataclass
class Work:
    """Seconds of one pass by operator.

    Attributes:
        seconds: of each operator by itself, by name; on CUDA those of its kernels.
        device: where.
        precision: of the pass.
        threads: of torch on the CPU.
    """

    seconds: Mapping[str, float]
    device: torch.device
    precision: str
    threads: int

    @property
    def by_kind(self) -> dict[str, float]:
        """Seconds by kind, the most first."""
        found: dict[str, float] = {}
        for name, spent in self.seconds.items():
            found[kind_of(name)] = found.get(kind_of(name), 0.0) + spent
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def share(self, spent: float) -> float:
        """Of the whole pass, in [0, 1]."""
        return spent / max(sum(self.seconds.values()), 1e-12)

    def advice(self) -> list[str]:
        """What is known to help with what was seen; often nothing."""
        lines, kinds = [], self.by_kind
        past = self.share(self.seconds.get(PAST_ONEDNN, 0.0))
        if past > 0.05 and self.threads == 1:
            lines.append(
                f"{past:.0%} are 1x1 convolutions that torch computes without oneDNN because there is one thread; "
                "with two (OMP_NUM_THREADS) oneDNN computes them"
            )
        products = self.share(kinds.get("matrix products", 0.0) + kinds.get("convolutions", 0.0))
        if self.device.type == "cpu" and self.precision == "fp32" and products > 0.5 and has_bf16_units(unknown=False):
            lines.append(
                f"{products:.0%} are matrix products and convolutions, and this CPU has instructions for bf16: "
                "--precision bf16 makes those two to three times as fast"
            )
        return lines

    def __str__(self) -> str:
        rows = [[kind, f"{1e3 * spent:,.1f}", f"{self.share(spent):.0%}"] for kind, spent in self.by_kind.items()]
        advice = self.advice()
        return "\n".join([table(["kind of work", "ms", "share"], rows), *([""] if advice else []), *advice])


def kind_of(operator: str) -> str:
    """The kind of an operator by its name, such as `aten::addmm`."""
    name = operator.removeprefix("aten::")
    return next((kind for kind, words in KINDS.items() if any(_fits(word, name) for word in words)), ELEMENTWISE)


def _fits(word: str, name: str) -> bool:
    if len(word) > 3:
        return word in name
    parts = name.replace("::", "_").split("_")
    return any(part == word or (word == "mm" and part.endswith("mm")) for part in parts)


def work_of(call: Callable[[], object], device: torch.device, precision: str) -> Work:
    """Profile one call, which has run before.

    Args:
        call: runs the pass.
        device: where it runs.
        precision: in which it runs, for the advice.
    """
    on_gpu = device.type == "cuda"
    with quiet_profiler(on_gpu) as profiler:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    return Work(seconds_of(profiler.key_averages(), on_gpu), device, precision, torch.get_num_threads())


def seconds_of(events: Iterable[Any], on_gpu: bool) -> dict[str, float]:
    """Seconds of each operator by itself, by name.

    Args:
        events: averages by name as torch's profiler gives them: operators and ranges on the CPU, kernels on a GPU.
        on_gpu: whether seconds of an operator's kernels count, not those of the CPU.
    """
    seconds = {}
    for event in events:
        if event.device_type != DeviceType.CPU:  # a kernel, whose time its operator has
            continue
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if spent and ("::" in event.key or any(word in event.key for word in KINDS["fused by torch.compile"])):
            seconds[event.key] = spent / 1e6
    return seconds
