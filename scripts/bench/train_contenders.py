"""The training steps that the benchmark compares: ours, compiled or not, and a naive one."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from timm.utils import ModelEmaV3

from datasets.batch import Batch
from datasets.device import ToDevice
from engine.optim import adamw
from engine.state import TrainingState
from engine.step import TrainStep
from engine.train import train_one_epoch
from models.detector import DeformableDETR
from models.from_config import as_trained, build_criterion
from scripts.bench import naive_step
from scripts.bench.timing import forced_backend
from scripts.bench.train_clock import Clock, note_gradients
from util.config import Config
from util.signals import StopRequest
from util.syncs import SyncCount

ENDLESS = 10**9  # a number of steps that is never reached


@dataclass
class Contender:
    """A way to run a training step.

    Attributes:
        name: the name in tables.
        run: runs one step on a batch on the host.
        state: the model and its optimizer.
        clock: the clock of the step's parts.
        step_s, parts: seconds of a step and milliseconds of its parts, one entry for each round.
        loss, peak_bytes, syncs: loss, memory and host syncs of one step; NaN or None where not measured.
        failure: why it stopped early, or "".
    """

    name: str
    run: Callable[[Batch], None]
    state: TrainingState
    clock: Clock
    step_s: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    loss: float = math.nan
    peak_bytes: int | None = None
    syncs: SyncCount | None = None
    failure: str = ""


def make_contender(kind: str, precision: str, backend: str, config: Config, model: DeformableDETR, device) -> Contender:
    """Set up a training step for a copy of the model: `ours`, `ours, compiled` or `naive`."""
    cfg, model, naive = config.train, copy.deepcopy(model).to(device), kind == "naive"
    model.transformer.checkpointing = cfg.checkpoint_activations and not naive
    trained, branch = as_trained(config.loss, config.model, model)
    trained.to(device)
    optimizer = adamw(model, cfg.lr, cfg.lr_backbone, cfg.lr_offset_factor, cfg.weight_decay, branch)
    if naive:
        naive_step.make_ordinary(model)
        groups = [{k: g[k] for k in ("params", "lr", "weight_decay")} for g in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
    if kind.endswith("compiled"):
        model.compile_parts()
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    ema = ModelEmaV3(model, cfg.ema_decay, use_warmup=True) if cfg.ema_decay else None
    state, clock = TrainingState(model, optimizer, scaler, device, ema, ENDLESS, branch=branch), Clock(device)
    if branch:
        clock.wrap(branch, "forward", "mimicking")
    for owner, part in ((trained, "forward"), (model.neck, "neck"), (model.queries, "queries")):
        clock.wrap(owner, "forward", part)
    clock.wrap(model.backbone, "forward", "backbone", lambda maps: note_gradients(clock, maps))
    methods: list[tuple[object, str, str]] = [
        (model.transformer, "encode", "encoder"),
        (model.transformer, "decode", "decoder, heads"),
    ]
    methods += [(scaler, "unscale_", "unscale"), (scaler, "step", "optimizer")]
    if ema is not None:
        methods.append((ema, "update", "EMA"))
    for part_owner, method, part in methods:
        clock.wrap(part_owner, method, part)
    to_device = ToDevice(device, model.backbone.mean, model.backbone.std)
    prepare, criterion = clock.timed(to_device, "transfer, normalise"), build_criterion(config.loss)
    criterion.matcher = clock.timed(criterion.matcher, "matching")  # type: ignore[assignment]  # called in the same way
    losses_of, match = clock.timed(criterion, "criterion"), clock.timed(naive_step.match, "matching")
    naive_losses = clock.timed(lambda p, t: naive_step.losses_of(p, t, config.loss, match), "criterion")
    step = TrainStep(trained, losses_of, prepare, state, lambda _: None, clip_norm=cfg.clip_norm, precision=precision)

    def run(batch: Batch) -> None:
        with forced_backend(backend):
            if naive:
                naive_step.step(batch, prepare, naive_losses, state, cfg.clip_norm)
            else:
                train_one_epoch(step, [[batch]], StopRequest(), log_every=ENDLESS)

    return Contender(f"{kind}, {precision}, {backend}", run, state, clock)


@torch.no_grad()
def deviation(model: DeformableDETR, config: Config, batch: Batch) -> float:
    """The relative deviation of the naive sum of losses from ours on the same predictions."""
    predictions = model(batch.images, batch.padding_mask, batch.objects)
    zero = batch.images.new_zeros(())
    ours = sum(build_criterion(config.loss)(predictions, batch.objects).values(), zero)
    naive = sum(naive_step.losses_of(predictions, batch.objects, config.loss).values(), zero)
    return float((naive - ours).abs() / ours)
