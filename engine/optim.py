"""AdamW with the recipe's parameter groups; the learning rate is a pure function of the step."""

import math
from collections.abc import Sequence

from torch import nn
from torch.optim import AdamW

OFFSET_NAMES = ("sampling_offsets", "reference_points")


def adamw(
    model: nn.Module,
    lr: float,
    lr_backbone: float,
    lr_offset_factor: float,
    weight_decay: float,
    branch: nn.Module | None = None,
) -> AdamW:
    """AdamW over groups: backbone, sampling offsets and reference points, all else; and the backbone's own offsets.

    Each group keeps its undiminished rate as `base_lr`; see `set_lr`. What is in a group is decided by names alone.

    Args:
        model: a detector.
        lr: learning rate of all but the backbone.
        lr_backbone: learning rate of the backbone.
        lr_offset_factor: factor on both rates, for offsets and reference points.
        weight_decay: decay of all parameters.
        branch: trained beside it.
    """
    groups: dict[str, list[nn.Parameter]] = {"backbone": [], "backbone_offsets": [], "offsets": [], "rest": []}
    named = [*model.named_parameters(), *(branch.named_parameters() if branch is not None else [])]
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        offsets = any(part in name for part in OFFSET_NAMES)
        if name.startswith("backbone."):
            groups["backbone_offsets" if offsets else "backbone"].append(parameter)
        else:
            groups["offsets" if offsets else "rest"].append(parameter)
    # One kernel for all parameters, and no sync for the scaler.
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    rates = {"backbone": lr_backbone, "offsets": lr * lr_offset_factor, "rest": lr}
    rates["backbone_offsets"] = lr_backbone * lr_offset_factor
    return AdamW(
        [{"params": groups[n], "lr": rates[n], "base_lr": rates[n], "name": n} for n in groups if groups[n]],
        lr=lr,
        weight_decay=weight_decay,
        fused=fused,
    )


def lr_factor(
    step: int,
    steps_per_epoch: int,
    epochs: int,
    schedule: str = "step",
    drop_epochs: Sequence[int] = (40,),
    warmup_steps: int = 0,
) -> float:
    """The factor on all learning rates at an optimizer step.

    Args:
        step: steps done before this one.
        steps_per_epoch, epochs: length of the run.
        schedule: `step` is 0.1 for each drop epoch passed; `cosine` falls from 1 to 0.01 over the run.
        drop_epochs: epochs after which the step schedule multiplies by 0.1.
        warmup_steps: linear rise from zero, times the schedule.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    if schedule == "cosine":
        progress = min(1.0, step / max(1, steps_per_epoch * epochs))
        return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
    epoch = step // max(1, steps_per_epoch)
    return warmup * 0.1 ** sum(epoch >= drop for drop in drop_epochs)


def set_lr(optimizer: AdamW, factor: float) -> None:
    """Set each group's learning rate to `base_lr * factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
