"""Batch norms whose statistics are those of all processes."""

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from models.folded_norms import FoldedBatchNorm2d, FoldedBatchNormAct2d


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """The sum of the gradients of all processes."""
        return SumOverProcesses.apply(gradient)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that takes mean and variance over the images of all processes.

    `nn.SyncBatchNorm` is for GPUs alone, and makes the host wait for the device three times in every layer.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`; in training, mean and variance are those of the images of all processes."""
        return super().forward(x) if not self.training else self._normalise(x)

    def _normalise(self, x: Tensor) -> Tensor:
        half, x = x.dtype, x.to(self.running_mean.dtype)  # sums over pixels do not fit half precision
        count = SumOverProcesses.apply(x.new_tensor([x.numel() / x.shape[1]]))
        mean = SumOverProcesses.apply(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), share)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(half)


class SyncedBatchNormAct2d(SyncedBatchNorm2d):
    """The same for timm's batch norm with an activation inside."""

    act: nn.Module
    drop: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return self.act(self.drop(super().forward(x)))


class SyncedFoldedBatchNorm2d(SyncedBatchNorm2d, FoldedBatchNorm2d):
    """The same for a norm that the convolution before it applies in evaluation."""


class SyncedFoldedBatchNormAct2d(SyncedBatchNormAct2d, FoldedBatchNorm2d):
    """The same, with an activation inside."""


SYNCED: dict[type, type] = {
    nn.BatchNorm2d: SyncedBatchNorm2d,
    BatchNormAct2d: SyncedBatchNormAct2d,
    FoldedBatchNorm2d: SyncedFoldedBatchNorm2d,
    FoldedBatchNormAct2d: SyncedFoldedBatchNormAct2d,
}


def synchronise_batch_norms(model: nn.Module) -> None:
    """Let every batch norm of a model that is trained take the statistics of all processes; in place.

    Modules change their class and nothing else, so that whoever holds one, or its name, still does.

    Args:
        model: with `nn.BatchNorm2d` or timm's `BatchNormAct2d`; other norms do not depend on the batch.
    """
    if not dist.is_initialized():
        raise RuntimeError("batch norms can only be synchronised between processes of a process group")
    for module in model.modules():
        if type(module) in SYNCED:
            module.__class__ = SYNCED[type(module)]
