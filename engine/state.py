"""Everything that changes while a run trains. A checkpoint holds it, and resuming restores it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from engine.loss_means import LossMeans
from engine.random_state import random_state, set_random_state
from util.checkpoint import RawCheckpoint
from util.code_version import code_version
from util.config import TrainConfig
from util.distributed import World
from util.errors import UserError
from util.weights import load_weights


@dataclass
class TrainingState:
    """A run between two steps.

    Attributes:
        model: without wrappers.
        optimizer: AdamW over the model's parameters.
        scaler: scales the loss in fp16; disabled, it does nothing.
        device: where they are.
        ema: moving average of the weights, if there is one.
        branch: a part that is trained beside the model and left behind, such as feature mimicking; or None.
        steps_per_epoch: steps in an epoch.
        order: numbers that the order of images follows from, beside the epoch.
        epoch: epochs that are complete, evaluation included.
        step: steps done in the epoch after those; all of them if only its evaluation is missing.
        best: best value so far of the figure that best.pth follows; -1 before any.
        best_metric: name of that figure.
        stale: evaluations since it last rose.
        log_bytes: length of metrics.jsonl.
        means: losses since the last log.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    ema: ModelEmaV3 | None
    steps_per_epoch: int
    order: list[int] = field(default_factory=list)
    epoch: int = 0
    step: int = 0
    best: float = -1.0
    log_bytes: int = 0
    means: LossMeans = field(default_factory=LossMeans)
    branch: nn.Module | None = None
    best_metric: str = "AP"
    stale: int = 0

    def __post_init__(self) -> None:
        trained = [self.model] if self.branch is None else [self.model, self.branch]
        self.parameters = [p for module in trained for p in module.parameters() if p.requires_grad]

    @property
    def global_step(self) -> int:
        """Steps done since the beginning."""
        return self.epoch * self.steps_per_epoch + self.step

    def to_checkpoint(self, config: Any, categories: Sequence[Any], world: World) -> dict[str, Any] | None:
        """Everything that `restore` needs, and the configuration. Every process calls it; rank 0 gets the content."""
        means = self.means.state_dict(world)
        rng = world.gather(random_state(self.device))
        if rng is None:
            return None
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "branch": self.branch.state_dict() if self.branch is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "schedule": {
                "step": self.global_step,
                "step_in_epoch": self.step,
                "steps_per_epoch": self.steps_per_epoch,
                "order": self.order,
            },
            "best": self.best,
            "stale": self.stale,
            "log_bytes": self.log_bytes,
            "means": means,
            "rng": rng,
            "config": asdict(config),
            "categories": [asdict(category) for category in categories],
            "code_version": code_version(),
        }

    def restore(self, raw: RawCheckpoint, world: World, position: bool = True) -> list[str]:
        """Fill everything from a checkpoint of this project.

        Args:
            raw: the checkpoint.
            world: the processes.
            position: also where the run was; if not, it begins at its first step.

        Returns:
            Remarks: what could not be restored, and what happens instead.

        Raises:
            UserError: no training state, or one that does not fit.
        """
        content, remarks = raw.content, []
        if raw.format != "native" or not {"optimizer", "schedule", "rng", "best"} <= set(content):
            raise UserError(
                f"train.resume: '{raw.path}' holds no training state; --model.init_from takes its weights alone"
            )
        if (content.get("branch") is None) != (self.branch is None):
            raise UserError(
                f"train.resume: '{raw.path}' was trained {'with' if self.branch is None else 'without'} feature "
                "mimicking; resume it so (loss.mimic_weight 0 or not), or take its weights alone, --model.init_from"
            )
        load_weights(self.model, content["model"], raw.path)
        if self.branch is not None:
            load_weights(self.branch, content["branch"], raw.path)
        _load_optimizer(self.optimizer, content["optimizer"], raw.path)
        if self.ema is not None:
            if content.get("ema") is None:
                remarks.append("the checkpoint has no EMA: it begins with the weights")
            load_weights(self.ema.module, content.get("ema") or content["model"], raw.path)
        if self.scaler.is_enabled() and content.get("scaler"):
            self.scaler.load_state_dict(content["scaler"])
        if position:
            remarks += self._restore_position(raw, world)
        states = content["rng"] if isinstance(content["rng"], list) else [content["rng"]]
        if len(states) == world.size:
            set_random_state(states[world.rank], self.device)
        else:
            remarks.append(
                f"saved by {len(states)} processes, resumed by {world.size}: dropout draws other numbers, "
                "all else goes on as it was"
            )
            torch.manual_seed(hash((self.global_step, world.rank)) % 2**32)
        return remarks

    def _restore_position(self, raw: RawCheckpoint, world: World) -> list[str]:
        content, at = raw.content, raw.content["schedule"]
        self.epoch, self.step, self.best = content["epoch"], at.get("step_in_epoch", 0), content["best"]
        self.log_bytes, self.stale = content.get("log_bytes", 0), content.get("stale", 0)
        before = at.get("steps_per_epoch", self.steps_per_epoch)
        if self.step and (before, at.get("order")) != (self.steps_per_epoch, self.order):
            raise UserError(
                f"train.resume: '{raw.path}' was saved at step {self.step} of an epoch of {before} steps; with "
                f"this data, batch and seed it has {self.steps_per_epoch}, of other images; resume with the same"
            )
        if content.get("means"):
            self.means.load_state_dict(content["means"], self.device, world)
        followed = content.get("config", {}).get("train", {}).get("best_metric", "AP")  # older ones say nothing
        if followed == self.best_metric:
            return []
        self.best, self.stale = -1.0, 0
        return [f"best.pth followed {followed} and now follows {self.best_metric}, whose best begins anew"]


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], path: Any) -> None:
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    # Fused or not is this run's choice, and decides on which device steps are counted.
    fused = optimizer.defaults["fused"]
    saved = {**saved, "param_groups": [{**group, "fused": fused} for group in saved["param_groups"]]}
    try:
        optimizer.load_state_dict(saved)
    except ValueError as error:
        raise UserError(f"train.resume: the optimizer state of '{path}' does not fit: {error}") from None
    for group, setting in zip(optimizer.param_groups, settings):
        group.update(setting)  # rates and decay are the configuration's, which may have been changed for resuming
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            # Fused kernels walk through memory: the moments must lie as the parameter does.
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)


def ended(state: TrainingState, config: TrainConfig, epochs: int) -> str:
    """How a run has ended, early or with its last epoch, and how it can go on; empty if it has not."""
    if state.epoch >= epochs:
        return f"it has finished its {state.epoch} epochs; to go on, give a larger --train.epochs"
    if config.early_stop and state.stale >= config.early_stop:
        return (
            f"it has ended early, after {state.epoch} of {epochs} epochs: {state.best_metric} has not risen in "
            f"{state.stale} evaluations; to go on, give a larger --train.early_stop, or null"
        )
    return ""
