"""The loops: one pass of training, one pass of evaluation."""

import math
import time
from collections.abc import Callable, Iterable
from itertools import islice

import torch
from torch import nn
from tqdm import tqdm

from util.errors import UserError


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name; `auto` is the first GPU, or else the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].split(". ")[0]
        raise UserError(f"device '{name}' cannot be used here ({reason[:120]}); try 'auto' or 'cpu'") from None
    return device


def train_one_epoch(
    model: nn.Module,
    criterion: Callable,
    steps: Iterable,
    num_steps: int,
    optimizer: torch.optim.Optimizer,
    set_lr: Callable[[int], None],
    device: torch.device,
    first_step: int = 0,
    clip_norm: float = 0.1,
    precision: str = "fp32",
    description: str = "train",
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    log_every: int = 50,
) -> dict[str, float]:
    """One pass over the training images.

    Args:
        model: batch to predictions.
        criterion: (predictions, targets, num_boxes) to a dictionary of weighted losses.
        steps: yields the micro-batches of each step.
        num_steps: how many steps to take.
        optimizer: steps once for all micro-batches of a step.
        set_lr: sets the learning rate of a global step.
        device: where the model is.
        first_step: global number of the first step.
        clip_norm: largest gradient norm; 0 does not clip.
        precision: `bf16` runs the model under autocast.
        description: of the progress bar.
        on_step: called with the step's number and mean losses every `log_every` steps.
        log_every: also how often the losses are brought to the host.

    Returns:
        Mean losses over the pass, `loss` their sum, and `seconds`.
    """
    model.train()
    started = time.perf_counter()
    total: dict[str, torch.Tensor] = {}
    recent: dict[str, torch.Tensor] = {}
    bar = tqdm(islice(steps, num_steps), total=num_steps, desc=description, disable=None, leave=False)
    done = 0
    for micro_batches in bar:
        set_lr(first_step + done)
        # Every micro-batch is divided by the objects of the whole step: accumulation is exact.
        num_boxes = max(1, sum(len(t.labels) for batch in micro_batches for t in batch.targets))
        step_losses: dict[str, torch.Tensor] = {}
        for batch in micro_batches:
            batch = batch.to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                predictions = model(batch.images, batch.padding_mask)
            losses = criterion(predictions, batch.targets, num_boxes)  # sync: the matcher's transfer, one a micro-batch
            sum(losses.values()).backward()
            for name, loss in losses.items():
                step_losses[name] = step_losses.get(name, 0) + loss.detach()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done += 1
        step_losses["grad_norm"] = norm.detach()
        for sums in (total, recent):
            for name, value in step_losses.items():
                sums[name] = sums.get(name, 0) + value
        if done % log_every == 0 or done == num_steps:
            count = log_every if done % log_every == 0 else done % log_every
            means = _to_host(recent, count)  # sync: every log_every steps
            recent = {}
            bar.set_postfix(loss=f"{means['loss']:.3f}")
            if on_step is not None:
                on_step(first_step + done, means)
    means = _to_host(total, max(done, 1))
    return {**means, "seconds": time.perf_counter() - started}


def _to_host(sums: dict[str, torch.Tensor], count: int) -> dict[str, float]:
    """Means of device scalars in one transfer, with their sum as `loss`."""
    values = (torch.stack(list(sums.values())) / count).tolist() if sums else []
    means = dict(zip(sums, values))
    return {"loss": sum(v for name, v in means.items() if name != "grad_norm"), **means}


@torch.inference_mode()
def detect(
    model: nn.Module,
    batches: Iterable,
    num_batches: int,
    postprocess: Callable,
    device: torch.device,
    precision: str = "fp32",
    description: str = "eval",
) -> list[tuple[int, object]]:
    """Run the model over batches.

    Args:
        model: batch to predictions.
        batches: of images.
        num_batches: how many to take.
        postprocess: (predictions, sizes) to detections of each image.
        device: where the model is.
        precision: `bf16` runs the model under autocast.
        description: of the progress bar.

    Returns:
        (image id, detections) of every image, in order.
    """
    model.eval()
    found = []
    for batch in tqdm(islice(batches, num_batches), total=num_batches, desc=description, disable=None, leave=False):
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            predictions = model(batch.images, batch.padding_mask)
        detections = postprocess(predictions, [t.original_size for t in batch.targets])
        found += [(t.image_id, d) for t, d in zip(batch.targets, detections)]
    return found
