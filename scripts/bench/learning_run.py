"""A training run of `learning.py`: the project's own steps, with gradient norms, step times and looks written down."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from statistics import median

import torch
from torch import Tensor, nn

from engine.optim import lr_factor, set_lr
from engine.set_up import Training
from engine.state import TrainingState
from engine.train import train_one_epoch
from scripts.bench.learning_looks import MatchingWatch, errors_of, look_at_detector, subset_batches
from util.signals import StopRequest


class GradientNorms:
    """Gradient norms of a detector's parts, before clipping. They stay on the device until they are asked for.

    Args:
        state: its scaler is told to measure after it has unscaled the gradients, which is just before they are clipped.
        due: whether the step that is made is to be measured.
    """

    def __init__(self, state: TrainingState, due: Callable[[], bool]):
        self.parts: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in state.model.named_parameters():
            if parameter.requires_grad:
                self.parts[part_of(name)].append(parameter)
        self.norms: Tensor | None = None
        unscale = state.scaler.unscale_

        def unscale_and_measure(optimizer: torch.optim.Optimizer) -> None:
            unscale(optimizer)
            if due():
                self.norms = torch.stack([norm_of(parameters) for parameters in self.parts.values()])

        state.scaler.unscale_ = unscale_and_measure  # type: ignore[method-assign]

    def take(self) -> dict[str, float | None]:
        """The norms that were measured last, by part; None where not finite, which happens in fp16."""
        norms, self.norms = self.norms, None
        values = [] if norms is None else norms.tolist()  # sync: as often as losses are logged
        return {part: finite(value) for part, value in zip(self.parts, values)}


def finite(value: float) -> float | None:
    """The number, or None if it is none: JSON has no infinity."""
    return value if math.isfinite(value) else None


def part_of(name: str) -> str:
    """The part of a detector that a parameter belongs to: `encoder` and `decoder`, else the first word of its name."""
    first, second, *_ = name.split(".")
    return second if first == "transformer" else first


def norm_of(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, a scalar on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return nn.utils.get_total_norm(gradients).to(parameters[0].device)


@dataclass
class StepTimes:
    """Seconds from the end of one step to the end of the next; what lies between two passes is not counted.

    Attributes:
        device: where steps are made. Each of them waits for the device, so the host's clock will do.
        steps: seconds of each step.
        total: seconds of all of them.
        cpu_total: seconds of a processor in this process, by all its threads, in all of them. On a busy machine this is
            the clock that tells what the work costs.
        peak_bytes: most memory of tensors while steps were made; None on a CPU.
    """

    device: torch.device
    steps: list[float] = field(default_factory=list)
    total: float = 0.0
    cpu_total: float = 0.0
    peak_bytes: int | None = None
    _last: float = 0.0
    _last_cpu: float = 0.0

    def begin(self) -> None:
        """A pass begins."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._last, self._last_cpu = time.perf_counter(), time.process_time()

    def step(self) -> None:
        """A step has ended."""
        now, cpu = time.perf_counter(), time.process_time()
        self.steps.append(now - self._last)
        self.total, self._last = self.total + now - self._last, now
        self.cpu_total, self._last_cpu = self.cpu_total + cpu - self._last_cpu, cpu

    def end(self) -> None:
        """A pass has ended."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.total += time.perf_counter() - self._last
            self.peak_bytes = max(self.peak_bytes or 0, torch.cuda.max_memory_allocated(self.device))

    def to_dict(self) -> dict:
        """For JSON."""
        return {
            "seconds": round(self.total, 3),
            "cpu_seconds": round(self.cpu_total, 3),
            "ms_per_step": round(1e3 * median(self.steps), 3) if self.steps else None,
            "peak_bytes": self.peak_bytes,
        }


class LearningRun:
    """Trains a run that is set up, and keeps a record of it.

    Args:
        training: what `set_up` returns, for a single process.
        steps: optimiser steps; None makes those of `train.epochs`. A cosine then ends at the last of them.
        every: epochs between looks; None looks about six times.
        subset: training images on which the matching is watched.
        record: filled: `logs`, `looks`, `final`, and the figures of the whole run.
        on_look: called after every look, to keep what there is.
    """

    def __init__(
        self,
        training: Training,
        steps: int | None,
        every: int | None,
        subset: int,
        record: dict,
        on_look: Callable[[], None],
    ):
        self.training, self.record, self.on_look = training, record, on_look
        self.step, self.state = training.step, training.step.state
        self.cfg, data = training.run.config.train, training.run.config.data
        per_epoch = self.state.steps_per_epoch
        self.steps = steps or per_epoch * training.epochs
        self.epochs = -(-self.steps // per_epoch)
        self.every = every or max(1, self.epochs // 6)
        if steps and self.cfg.schedule == "cosine":
            self.step.set_lr = lambda n: set_lr(
                self.state.optimizer,  # type: ignore[arg-type]  # it is AdamW
                lr_factor(n, self.steps, 1, "cosine", (), self.cfg.warmup_steps),
            )
        self.norms = GradientNorms(self.state, self.log_due)
        self.times = StepTimes(self.state.device)
        batches = subset_batches(training.loader.dataset, subset, data.eval_size, data.max_size)
        self.watch = MatchingWatch(batches, self.step.criterion.matcher, self.step.prepare)  # type: ignore[attr-defined]
        record |= {
            "steps": self.steps,
            "epochs": self.epochs,
            "images": self.steps * training.loader.batches.batch_size,
        }
        record |= {"logs": [], "looks": []}

    def log_due(self) -> bool:
        """Whether `train_one_epoch` logs after the step that is being made, or this run does, after its last one."""
        state = self.state
        ends = state.step + 1 == state.steps_per_epoch or state.global_step + 1 == self.steps
        return ends or (state.step + 1) % self.cfg.log_every == 0

    def log(self, losses: dict[str, float]) -> None:
        """Mean losses since the last log, with the norms of this step."""
        total_norm = finite(losses.pop("grad_norm"))
        entry = {"step": self.state.global_step, "grad_norm": total_norm, "losses": losses}
        self.record["logs"].append({**entry, "grad_norms": self.norms.take()})

    def run(self, stop: StopRequest) -> None:
        """Train, look, and look once more at the weights that would be used."""
        state, results = self.state, []
        for epoch in range(1, self.epochs + 1):
            self.train_epoch(stop)
            if epoch % self.every == 0 or epoch == self.epochs:
                results = self.look(epoch)
        final = {"weights": "trained", **self.record["looks"][-1]}
        if state.ema is not None:
            figures, results = self._score(state.ema.module)
            final = {"weights": "EMA", **figures, "instability": final["instability"]}
        final["errors"] = errors_of(self.training.val_loader.dataset.annotations, results)
        self.record["final"] = final

    def train_epoch(self, stop: StopRequest) -> None:
        """One pass over the training images, or what is left of the steps."""
        state, loader = self.state, self.training.loader
        left = min(state.steps_per_epoch, self.steps - state.global_step)
        loader.batches.set_epoch(state.epoch)
        name = f"{self.record['name']}: step {state.global_step + left} of {self.steps}"
        self.times.begin()
        train_one_epoch(
            self.step, islice(loader, left), stop, self.cfg.log_every, name, self.log, on_step=self.times.step
        )
        self.times.end()
        if state.step < state.steps_per_epoch:
            if state.means.recent is not None:  # train_one_epoch has not logged the last steps
                self.log(self.step.means())
        else:
            state.epoch, state.step = state.epoch + 1, 0
        self.record |= self.times.to_dict()

    def look(self, epoch: int) -> list[dict]:
        """Write down what there is to see after an epoch; returns the detections in COCO result format."""
        figures, results = self._score(self.state.model)  # type: ignore[arg-type]  # it is a detector
        instability = self.watch.look(self.state.model, self.state.device, self.cfg.precision)  # type: ignore[arg-type]
        entry = {"step": self.state.global_step, "epoch": epoch, **figures, "instability": asdict(instability)}
        self.record["looks"].append(entry)
        self.on_look()
        return results

    def _score(self, weights) -> tuple[dict, list[dict]]:
        training = self.training
        return look_at_detector(
            weights,
            training.val_loader,
            training.category_of,
            self.step.prepare,
            self.state.device,
            self.cfg.precision,
        )
