"""AdamW with the recipe's parameter groups; the learning rate is a pure function of the step."""

import math
from collections.abc import Sequence

from torch import nn
from torch.optim import AdamW

from models.backbone import Backbone
from models.backbone_depths import parameter_depths

OFFSET_NAMES = ("sampling_offsets", "reference_points")
LAST = 0.01  # share of the rate that cosine schedules end with


def adamw(
    model: nn.Module,
    lr: float,
    lr_backbone: float,
    lr_offset_factor: float,
    weight_decay: float,
    branch: nn.Module | None = None,
    layer_decay: float | None = None,
) -> AdamW:
    """AdamW over groups: backbone, sampling offsets and reference points, all else; and the backbone's own offsets.

    Each group keeps its undiminished rate as `base_lr`; see `set_lr`. What is in a group is decided by names alone.
    A pyramid on top of the backbone starts anew, whatever weights that has, and learns as all else does.

    Args:
        model: a detector.
        lr: learning rate of all but the backbone.
        lr_backbone: learning rate of the backbone.
        lr_offset_factor: factor on both rates, for offsets and reference points.
        weight_decay: decay of all parameters.
        branch: trained beside it.
        layer_decay: factor on the backbone's rates for each layer below its last, as BEiT has it (arXiv 2106.08254,
            appendix); each depth is a group. None: all layers learn alike.

    Raises:
        UserError: a layer decay for a backbone whose layers timm does not group.
    """
    depths: dict[str, int] = {}
    if layer_decay is not None:
        backbone = model.get_submodule("backbone")
        assert isinstance(backbone, Backbone)
        depths = parameter_depths(backbone)
    rates: dict[str, float] = {}
    for depth in range(max(depths.values(), default=0) + 1):
        rate, of_depth = lr_backbone * (layer_decay or 1) ** depth, f".{depth}" if depth else ""
        rates |= {f"backbone{of_depth}": rate, f"backbone_offsets{of_depth}": rate * lr_offset_factor}
    rates |= {"offsets": lr * lr_offset_factor, "rest": lr}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    named = [*model.named_parameters(), *(branch.named_parameters() if branch is not None else [])]
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        offsets = any(part in name for part in OFFSET_NAMES)
        if name.startswith("backbone.") and not name.startswith("backbone.pyramid."):
            depth = depths.get(name.removeprefix("backbone.body."), 0)
            groups[("backbone_offsets" if offsets else "backbone") + (f".{depth}" if depth else "")].append(parameter)
        else:
            groups["offsets" if offsets else "rest"].append(parameter)
    # One kernel for all parameters, and no sync for the scaler.
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
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
    flat_share: float = 0.5,
) -> float:
    """The factor on all learning rates at an optimizer step.

    Args:
        step: steps done before this one.
        steps_per_epoch, epochs: length of the run.
        schedule: `step` is 0.1 for each drop epoch passed; `cosine` falls from 1 to 0.01 over the run;
            `flat_cosine` is 1 at first, and then falls so over the rest of it (RTMDet, arXiv 2212.07784, section 4.1).
        drop_epochs: epochs after which the step schedule multiplies by 0.1.
        warmup_steps: linear rise from zero, times the schedule.
        flat_share: share of the run, warm-up included, for which `flat_cosine` is 1.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    if schedule in ("cosine", "flat_cosine"):
        flat = flat_share * steps_per_epoch * epochs if schedule == "flat_cosine" else 0
        progress = min(1.0, max(0.0, step - flat) / max(1, steps_per_epoch * epochs - flat))
        return warmup * (LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * progress)))
    epoch = step // max(1, steps_per_epoch)
    return warmup * 0.1 ** sum(epoch >= drop for drop in drop_epochs)


def set_lr(optimizer: AdamW, factor: float) -> None:
    """Set each group's learning rate to `base_lr * factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
