"""The loops: one pass of training, one pass of evaluation."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.nonfinite import Culprit, dump_and_raise
from engine.state import TrainingState, random_state
from util.devices import autocast
from util.distributed import ALONE, World
from util.errors import Interrupted, NonFinite
from util.progress import progress
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


def plan_step(micro_batches: Sequence[Any], world: World, stop: StopRequest) -> StepPlan:
    """Agree on a step: one exchange of four numbers between hosts, which no GPU waits for."""
    boxes = sum(len(t.labels) for batch in micro_batches for t in batch.targets)
    height, width = (max(batch.images.shape[d] for batch in micro_batches) for d in (2, 3))
    rows = world.exchange([boxes, height, width, int(stop.requested)])
    boxes, heights, widths, stops = zip(*rows)
    return StepPlan(sum(boxes), (max(heights), max(widths)), any(stops))


def train_one_epoch(
    model: nn.Module,
    criterion: Callable,
    steps: Iterable,
    state: TrainingState,
    prepare: Callable,
    set_lr: Callable[[int], None],
    world: World,
    stop: StopRequest,
    clip_norm: float = 0.1,
    precision: str = "fp32",
    same_padding: bool = True,
    with_targets: bool = False,
    log_every: int = 50,
    description: str = "train",
    on_log: Callable[[dict[str, float]], None] | None = None,
    on_step: Callable[[], None] | None = None,
    dump: Callable[[Culprit], str] | None = None,
) -> None:
    """One pass over the training images, or what is left of it.

    The result does not depend on how a batch is spread over processes and micro-batches: each loss is divided by the
    objects of the whole batch, and gradients are summed. (What is drawn at random, dropout and the regions that are
    mimicked of an image with more than fit, each process draws for itself.)

    Args:
        model: batch to predictions; of several processes, wrapped in DistributedDataParallel.
        criterion: (predictions, targets, num_boxes) to a dictionary of weighted losses.
        steps: yields this process's micro-batches of each step, from `state.step` on.
        state: optimizer, scaler, EMA and position; advanced with every step.
        prepare: (batch, size) to a batch on the device.
        set_lr: sets the learning rate of a global step.
        world: the processes.
        stop: looked at before each step.
        clip_norm: largest gradient norm; 0 does not clip.
        precision: `bf16` and `fp16` run the model under autocast.
        same_padding: pad every micro-batch to the size of the whole batch's largest image, not of its own.
        with_targets: hand the model the targets, too.
        log_every: steps between logs, which is how often losses are brought to the host.
        description: of the progress bar.
        on_log: called with mean losses.
        on_step: called after each step.
        dump: writes down a step that is not finite; gives the file's name.

    Raises:
        Interrupted: a process was asked to stop, after the step before this one.
        NonFinite: losses or gradients are.
    """
    model.train()
    device, optimizer, scaler = state.device, state.optimizer, state.scaler
    num_steps, done = state.steps_per_epoch, state.step
    bar = progress(islice(steps, num_steps - done), description, world, total=num_steps, initial=done)
    for micro_batches in bar:
        plan = plan_step(micro_batches, world, stop)
        if plan.stop:
            raise Interrupted
        set_lr(state.global_step)
        before = random_state(device)  # for the dump; lives on the host, so nothing waits
        losses, sums, norm = {}, [], None
        culprit = partial(
            Culprit, micro_batches, sums, before, plan.num_boxes, plan.size, world.size, state.global_step + 1
        )
        try:
            for i, batch in enumerate(micro_batches):
                batch = prepare(batch, plan.size if same_padding else None)
                # Gradients of the earlier micro-batches stay here until those of the last are exchanged.
                alone = isinstance(model, DistributedDataParallel) and i < len(micro_batches) - 1
                with model.no_sync() if alone else nullcontext():
                    more = (batch.targets,) if with_targets else ()
                    with autocast(device, precision):
                        predictions = model(batch.images, batch.padding_mask, *more)
                    losses = criterion(predictions, batch.targets, plan.num_boxes)  # sync: the matcher's transfer
                    # DistributedDataParallel averages over processes, but a batch's losses add up.
                    scaler.scale(sum(losses.values()) * world.size).backward()
                sums.append(torch.stack([loss.detach() for loss in losses.values()]))
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(state.parameters, clip_norm or math.inf)
            values = torch.stack([*torch.stack(sums).sum(0), norm / world.size])  # norm: the same in every process
            # sync: not to step on NaN. fp16 gradients may overflow: the scaler then leaves the step out.
            if not torch.isfinite(values[:-1] if scaler.is_enabled() else values).all().item():
                raise NonFinite("losses or gradients are not finite; lower train.lr, or keep train.clip_norm above 0")
        except NonFinite as error:
            together = norm is not None and not scaler.is_enabled() and not math.isfinite(norm)
            dump_and_raise(culprit(str(error)), world, together, dump)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if state.ema is not None:
            state.ema.update(state.model, step=state.global_step + 1)

        state.step += 1
        state.means.add([*losses, "grad_norm"], values)
        if state.step % log_every == 0 or state.step == num_steps:
            means = state.means.take(world)  # sync: every log_every steps
            if scaler.is_enabled():
                means["scale"] = scaler.get_scale()
                if means["scale"] < 1:  # every step was left out for a long time
                    reason = "fp16 gradients are not finite at any scale; take bf16 or fp32, or lower train.lr"
                    dump_and_raise(culprit(reason), world, True, dump)
            bar.set_postfix(loss=f"{means['loss']:.3f}")
            if on_log is not None:
                on_log(means)
        if on_step is not None:
            on_step()


@torch.inference_mode()
def detect(
    model: nn.Module,
    batches: Iterable,
    postprocess: Callable,
    prepare: Callable,
    device: torch.device,
    precision: str = "fp32",
    description: str = "eval",
    world: World = ALONE,
    stop: StopRequest | None = None,
) -> list[tuple[int, object]] | None:
    """Run the model over every process's share of the batches.

    Args:
        model: batch to predictions.
        batches: of images, the share of this process.
        postprocess: (predictions, sizes) to detections of each image.
        prepare: batch to a batch on the device.
        device: where the model is.
        precision: `bf16` and `fp16` run the model under autocast.
        description: of the progress bar.
        world: the processes.
        stop: looked at before each batch.

    Returns:
        (image id, detections) of every image, in the order of ids, in rank 0; None elsewhere.

    Raises:
        Interrupted: a process was asked to stop.
    """
    model.eval()
    found = []
    for batch in progress(batches, description, world=world):
        if stop is not None and stop.requested:
            break
        batch = prepare(batch)
        with autocast(device, precision):
            predictions = model(batch.images, batch.padding_mask)
        detections = postprocess(predictions, [t.original_size for t in batch.targets])  # sync: what was found
        found += [(t.image_id, d) for t, d in zip(batch.targets, detections)]
    stopped = world.all_gather(stop is not None and stop.requested)
    if any(stopped):
        raise Interrupted
    gathered = world.gather(found)
    return None if gathered is None else sorted((pair for part in gathered for pair in part), key=lambda p: p[0])
