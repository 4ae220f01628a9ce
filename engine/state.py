"""Everything that changes while a run trains. A checkpoint holds it, and resuming restores it."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from util.checkpoint import RawCheckpoint
from util.code_version import code_version
from util.config import TrainConfig
from util.distributed import World
from util.errors import UserError
from util.weights import load_weights


class LossMeans:
    """Sums of losses on the device, which are brought to the host only to be logged."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.recent: Tensor | None = None
        self.total: Tensor | None = None
        self.counts = [0, 0]  # steps in recent, in total

    def add(self, names: Sequence[str], values: Tensor) -> None:
        """Add the values `[N]` of one step, for this process's images."""
        self.names = list(names)
        self.recent = values.clone() if self.recent is None else self.recent + values
        self.total = values.clone() if self.total is None else self.total + values
        self.counts = [count + 1 for count in self.counts]

    def take(self, world: World) -> dict[str, float]:
        """Means since the last call, over all processes; `loss` is the sum of the losses."""
        means = _named(self.names, self.recent, self.counts[0], world)
        self.recent, self.counts[0] = None, 0
        return means

    def take_total(self, world: World) -> dict[str, float]:
        """Means of the whole pass; begins a new one."""
        means = _named(self.names, self.total, self.counts[1], world)
        self.names, self.recent, self.total, self.counts = [], None, None, [0, 0]
        return means

    def state_dict(self, world: World) -> dict[str, Any]:
        """The sums over all processes."""
        sums = {
            k: None if v is None else world.sum(v).cpu() for k, v in (("recent", self.recent), ("total", self.total))
        }
        return {"names": self.names, "counts": list(self.counts), **sums}

    def load_state_dict(self, saved: dict[str, Any], device: torch.device, world: World) -> None:
        """Restore the sums. Rank 0 takes them all, for the sums of the processes are added later."""
        self.names, self.counts = saved["names"], list(saved["counts"])
        for k in ("recent", "total"):
            value = saved[k]
            if value is not None:
                value = value.to(device) if world.is_main else torch.zeros_like(value, device=device)
            setattr(self, k, value)


def _named(names: Sequence[str], sums: Tensor | None, steps: int, world: World) -> dict[str, float]:
    """Means over steps and processes, by name; `loss` is the sum of the losses."""
    if sums is None:
        raise ValueError("there is no step to take the mean of")
    means = dict(zip(names, (world.sum(sums) / steps).tolist()))
    return {"loss": sum(v for name, v in means.items() if name != "grad_norm"), **means}


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


def random_state(device: torch.device) -> dict[str, Any]:
    """Every generator's state, as plain data."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "cpu": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
    }
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_state` returned. Generators that the state does not mention stay as they are."""
    torch.set_rng_state(state["cpu"])
    if "python" in state:
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if device.type == "cuda" and isinstance(state.get("cuda"), Tensor):
        torch.cuda.set_rng_state(state["cuda"], device)


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
