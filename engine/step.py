"""One optimiser step: micro-batches, clipping, the step, its losses. Every wait for the device is marked `sync`."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from datasets.batch import Batch
from engine.nonfinite import Culprit, dump_and_raise
from engine.random_state import random_state
from engine.state import TrainingState
from models.criterion import total_loss
from util.devices import autocast
from util.distributed import ALONE, World
from util.errors import NonFinite
from util.signals import StopRequest


@dataclass(frozen=True)
class StepPlan:
    """What all processes know of a step before they start it.

    Attributes:
        num_boxes: objects in the whole effective batch.
        size: (H, W) of the largest image in it.
        stop: whether any process was asked to stop.
    """

    num_boxes: int
    size: tuple[int, int]
    stop: bool


def plan_step(micro_batches: Sequence[Batch], world: World, stop: StopRequest) -> StepPlan:
    """Agree on a step: one exchange of four numbers between hosts, which no GPU waits for."""
    boxes = sum(len(o.labels) for batch in micro_batches for o in batch.objects)
    height, width = (max(batch.images.shape[d] for batch in micro_batches) for d in (2, 3))
    rows = world.exchange([boxes, height, width, int(stop.requested)])
    all_boxes, heights, widths, stops = zip(*rows)
    return StepPlan(sum(all_boxes), (max(heights), max(widths)), any(stops))


@dataclass
class TrainStep:
    """Makes optimiser steps.

    The result does not depend on how a batch is spread over processes and micro-batches: each loss is divided by the
    objects of the whole batch, and gradients are summed. Dropout and the choice of mimicked regions differ between
    processes.

    Attributes:
        model: batch to predictions; with several processes, wrapped in DistributedDataParallel.
        criterion: (predictions, objects, num_boxes) to a dictionary of weighted losses.
        prepare: (batch, size) to a batch on the device.
        state: optimizer, scaler, EMA and position; advanced with every step.
        set_lr: sets the learning rate of a global step.
        world: the processes.
        clip_norm: largest gradient norm; 0 does not clip.
        precision: `bf16` and `fp16` run the model under autocast.
        same_padding: pad every micro-batch to the size of the whole batch's largest image, not of its own.
        dump: writes down a step that is not finite; gives the file's name.
        culprit: the step that is made, as it would be written down.
    """

    model: nn.Module
    criterion: Callable[..., dict[str, Tensor]]
    prepare: Callable[..., Batch]
    state: TrainingState
    set_lr: Callable[[int], None]
    world: World = ALONE
    clip_norm: float = 0.1
    precision: str = "fp32"
    same_padding: bool = True
    dump: Callable[[Culprit], str] | None = None
    culprit: Culprit = field(init=False)

    def __call__(self, micro_batches: Sequence[Batch], plan: StepPlan) -> None:
        """Make one step, and add its losses to the state's means.

        Raises:
            NonFinite: losses or gradients are not; the weights have not changed.
        """
        state, scaler, optimizer = self.state, self.state.scaler, self.state.optimizer
        losses: dict[str, Tensor] = {}
        sums: list[Tensor] = []
        norm = None
        self.set_lr(state.global_step)
        before = random_state(state.device)  # for the dump; it lives on the host, so nothing waits
        self.culprit = Culprit(
            micro_batches, sums, before, plan.num_boxes, plan.size, self.world.size, state.global_step + 1
        )
        try:
            for i, loaded in enumerate(micro_batches):
                batch = self.prepare(loaded, plan.size if self.same_padding else None)
                with self._gradients_exchanged(last=i == len(micro_batches) - 1):
                    with autocast(state.device, self.precision):
                        predictions = self.model(batch.images, batch.padding_mask, batch.objects)
                    losses = self.criterion(predictions, batch.objects, plan.num_boxes)  # sync: the matcher's transfer
                    # DistributedDataParallel averages over processes, but a batch's losses add up.
                    scaler.scale(total_loss(losses) * self.world.size).backward()
                sums.append(torch.stack([loss.detach() for loss in losses.values()]))
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(state.parameters, self.clip_norm or math.inf)
            values = torch.stack([*torch.stack(sums).sum(0), norm / self.world.size])  # the norm is alike everywhere
            # sync: not to step on NaN. fp16 gradients may overflow: the scaler then leaves the step out.
            if not torch.isfinite(values[:-1] if scaler.is_enabled() else values).all().item():
                raise NonFinite("losses or gradients are not finite; lower train.lr, or keep train.clip_norm above 0")
        except NonFinite as error:
            self.give_up(str(error), norm is not None and not scaler.is_enabled() and not math.isfinite(norm))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if state.ema is not None:
            state.ema.update(state.model, step=state.global_step + 1)
        state.step += 1
        state.means.add([*losses, "grad_norm"], values)

    def means(self) -> dict[str, float]:
        """Mean losses since the last call, over all processes.

        Raises:
            NonFinite: fp16 gradients overflow at every scale, so that every step was left out for a long time.
        """
        means, scaler = self.state.means.take(self.world), self.state.scaler  # sync: every log_every steps
        if scaler.is_enabled():
            means["scale"] = scaler.get_scale()
            if means["scale"] < 1:
                self.give_up("fp16 gradients are not finite at any scale; take bf16 or fp32, or lower train.lr", True)
        return means

    def give_up(self, reason: str, together: bool) -> NoReturn:
        """Write down the step and raise `NonFinite`; `together` says whether every process does so."""
        dump_and_raise(replace(self.culprit, reason=reason), self.world, together, self.dump)

    def _gradients_exchanged(self, last: bool) -> Any:
        """A context in which processes exchange gradients only for the last micro-batch, which has the sum of all."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()
