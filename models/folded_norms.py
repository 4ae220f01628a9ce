"""Batch norms as a scale of the weights of the convolution before them, so that no activation is multiplied.

A batch norm whose statistics stay as they are is y = s * x + t for each channel, with s = weight / sqrt(variance + eps)
and t = bias - mean * s. After a convolution W * x + b that is (s W) * x + (s b + t). The weights are scaled anew in
every pass, so the gradient of the convolution's own weights is exact, and whatever is loaded later counts. A copy that
is neither trained nor saved keeps the scaled weights instead: `fold_for_inference`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.ops.misc import FrozenBatchNorm2d

PROBE = 64  # side in pixels of the image that shows which norm follows which convolution


def is_fixed(norm: nn.Module) -> bool:
    """Whether a batch norm's statistics stay as they are: frozen for good, or in evaluation."""
    return not norm.training or isinstance(norm, FrozenBatchNorm2d | FrozenBatchNormAct2d)


class _NormedConvolution(nn.Conv2d):
    """A convolution that applies the norm after it, while that norm's statistics are fixed."""

    norm_after: tuple[Any]  # a tuple, so that the norm keeps its one name in the state dict

    def scaled(self) -> tuple[Tensor, Tensor | None]:
        """Weight `[O, I, kH, kW]` and bias `[O]`, with the norm's scale and shift in them if it is fixed."""
        (norm,) = self.norm_after
        if not is_fixed(norm):
            return self.weight, self.bias
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        mean = norm.running_mean if self.bias is None else norm.running_mean - self.bias
        return self.weight * scale[:, None, None, None], norm.bias - mean * scale


class NormedConv2d(_NormedConvolution):
    """The same for `nn.Conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, I, H, W]` -> `[B, O, H', W']`."""
        return self._conv_forward(x, *self.scaled())


class NormedConv2dSame(_NormedConvolution):
    """The same for timm's `Conv2dSame`, which pads as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, I, H, W]` -> `[B, O, H', W']`."""
        x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        return F.conv2d(x, *self.scaled(), self.stride, (0, 0), self.dilation, self.groups)


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that the convolution before it has applied, unless it is in training."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same."""
        return super().forward(x) if self.training else x


class FoldedBatchNormAct2d(BatchNormAct2d):
    """The same for timm's batch norm with an activation inside."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same."""
        return super().forward(x) if self.training else self.act(self.drop(x))


class FoldedFrozenBatchNorm2d(FrozenBatchNorm2d):
    """A frozen batch norm that the convolution before it has applied."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return x


class FoldedFrozenBatchNormAct2d(FrozenBatchNormAct2d):
    """The same for timm's frozen batch norm with an activation inside."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same."""
        return self.act(self.drop(x))


def weight_in_use(convolution: nn.Conv2d) -> Tensor:
    """The weight `[O, I, kH, kW]` that a convolution applies: with the scale of the norm after it, if it has that."""
    return convolution.scaled()[0] if isinstance(convolution, _NormedConvolution) else convolution.weight


CONVOLUTIONS: dict[type, type] = {nn.Conv2d: NormedConv2d, Conv2dSame: NormedConv2dSame}
NORMS: dict[type, type] = {
    nn.BatchNorm2d: FoldedBatchNorm2d,
    BatchNormAct2d: FoldedBatchNormAct2d,
    FrozenBatchNorm2d: FoldedFrozenBatchNorm2d,
    FrozenBatchNormAct2d: FoldedFrozenBatchNormAct2d,
}


def fold_norms(network: nn.Module) -> int:
    """Let each convolution apply the batch norm after it, where that norm alone reads what the convolution makes.

    Modules change their class and nothing else: names, parameters and buffers stay. What is computed is the same but
    for rounding, in training too; norms that train on the statistics of a batch go on as before.

    Args:
        network: takes images `[B, 3, H, W]`, on the CPU; changed in place.

    Returns:
        How many norms were folded.
    """
    if not any(type(module) in NORMS for module in network.modules()) or next(network.parameters()).is_meta:
        return 0  # on the meta device nothing is computed, and not every operator can run
    pairs = norms_after_convolutions(network)
    for convolution, norm in pairs:
        convolution.norm_after = (norm,)
        convolution.__class__ = CONVOLUTIONS[type(convolution)]
        norm.__class__ = NORMS[type(norm)]
    return len(pairs)


@torch.no_grad()
def fold_for_inference(network: nn.Module) -> int:
    """Scale the weights once and for all, where a convolution applies a norm whose statistics stay as they are.

    What is computed is the same to the bit. The network changes in place and must not be trained or saved any more: its
    convolutions have other weights, and a bias. Only what `fold_norms` has prepared is folded, and a second call
    changes nothing.

    Args:
        network: in evaluation mode, on any device.

    Returns:
        How many norms were folded.
    """
    plain = {normed: convolution for convolution, normed in CONVOLUTIONS.items()}
    count = 0
    for module in network.modules():
        if not isinstance(module, _NormedConvolution) or not is_fixed(module.norm_after[0]):
            continue
        trained = module.weight.requires_grad
        weight, bias = module.scaled()
        assert bias is not None  # a norm has a shift
        module.weight, module.bias = nn.Parameter(weight, trained), nn.Parameter(bias, trained)
        module.__class__ = plain[type(module)]
        count += 1
    return count


def norms_after_convolutions(network: nn.Module) -> list[tuple[Any, Any]]:
    """Pairs of a convolution and the norm that is alone in reading its output, found by running the network once.

    Args:
        network: see `fold_norms`.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    parameter = next(network.parameters())
    probe = torch.zeros(1, 3, PROBE, PROBE, dtype=parameter.dtype, device=parameter.device)
    watch = _Readers()
    hooks = [module.register_forward_hook(watch.ran) for module in modes if type(module) in CONVOLUTIONS]
    norms = [module for module in modes if type(module) in NORMS]
    hooks += [norm.register_forward_pre_hook(watch.enters) for norm in norms]
    hooks += [norm.register_forward_hook(watch.leaves) for norm in norms]
    try:
        with torch.no_grad(), watch:
            outputs = network(probe)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    handed_out = {id(output) for output in outputs}
    return [
        (convolution, readers[0])
        for key, (convolution, _) in watch.made.items()
        if len(readers := watch.readers[key]) == 1 and readers[0] is not None and key not in handed_out
        if watch.runs[convolution] == watch.runs[readers[0]] == 1
    ]


class _Readers(TorchFunctionMode):
    """While a network runs: who reads the outputs of its convolutions; None stands for whatever is no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[nn.Module, Tensor]] = {}  # by id; the tensor is kept, and its id with it
        self.readers: dict[int, list[nn.Module | None]] = {}
        self.runs: dict[nn.Module, int] = {}
        self.inside: nn.Module | None = None

    def ran(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Hook of a convolution."""
        self.made[id(output)], self.readers[id(output)] = (module, output), []
        self.runs[module] = self.runs.get(module, 0) + 1

    def enters(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Hook of a norm."""
        self.inside = norm
        self.runs[norm] = self.runs.get(norm, 0) + 1
        if id(inputs[0]) in self.readers:
            self.readers[id(inputs[0])].append(norm)

    def leaves(self, norm: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Hook of a norm."""
        self.inside = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Whatever else is called with the output of a convolution reads it, but for its shape and the like."""
        if self.inside is None:
            for argument in (*args, *(kwargs or {}).values()):
                for value in argument if isinstance(argument, list | tuple) else (argument,):
                    if id(value) in self.readers and getattr(func, "__name__", "") not in ("__get__", "dim", "size"):
                        self.readers[id(value)].append(None)
        return func(*args, **(kwargs or {}))
