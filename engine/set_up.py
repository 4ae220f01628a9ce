"""Sets a training up: data, model, optimiser, state, loaders; or goes on where a checkpoint was."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets.categories import distinct_names
from datasets.dataset import CocoDetection
from datasets.device import ToDevice
from datasets.loader import SampleLoader, TrainLoader, eval_loader, train_loader
from datasets.matching import match_categories
from datasets.metrics import check_figure
from datasets.protocol import protocol_for
from datasets.splits import build_dataset
from datasets.truth import check_learnable, check_scorable
from engine.backend import selected_backend
from engine.check_files import check_files
from engine.class_rows import changed_order, reorder_classes, start_from
from engine.fit import images_at_once
from engine.header import train_header
from engine.optim import adamw, lr_factor, set_lr
from engine.run import Run, checkpoint_to_resume
from engine.state import TrainingState, ended
from engine.step import TrainStep
from engine.sync_norm import synchronise_batch_norms
from models.backbone_tags import architecture, name_weights
from models.detector import DeformableDETR
from models.from_config import as_trained, build_criterion, build_model, with_normalisation
from models.load import LoadedDetector, load_detector
from util import cli
from util.checkpoint import RawCheckpoint
from util.config import Config, TrainConfig
from util.devices import pick_device, remark_on_precision
from util.distributed import World, check_gpus
from util.errors import UserError
from util.workers import prepare_workers


@dataclass
class Training:
    """A run that is set up.

    Attributes:
        step: makes optimiser steps; holds the state.
        run: the folder.
        loader: yields this process's micro-batches of each step.
        val_loader: this process's share of the validation images.
        category_of: label to category id of the validation images.
        epochs: passes over the training images.
        world: the processes.
    """

    step: TrainStep
    run: Run
    loader: TrainLoader
    val_loader: SampleLoader
    category_of: Mapping[int, int | float | str]
    epochs: int
    world: World


def set_up(config: Config, world: World) -> Training | None:
    """Build everything, and go on where a checkpoint was; None if the run has finished already.

    Raises:
        UserError: options, data, a checkpoint or a folder that cannot be used.
    """
    cfg = config.train
    check_gpus(world, cfg.device)
    device = pick_device(cfg.device, world.local_rank)
    remark_on_precision(device, cfg.precision)
    backend = selected_backend(device)
    output = Path(cfg.output) / ("fast_dev_run" if cfg.fast_dev_run else "")
    resumed = checkpoint_to_resume(None if cfg.fast_dev_run and cfg.resume == "auto" else cfg.resume, output)
    torch.manual_seed(cfg.seed)
    dataset, val_dataset, order = read_data(config, resumed, world)
    with world.one_a_machine_first():  # which fetches weights
        source = load_detector(config.model.init_from) if config.model.init_from and not resumed else None
        name_weights(config.model.backbone, backbone_brought(resumed, source))
        model = build_detector(config, dataset, resumed, source)
        config.model.backbone = with_normalisation(config.model.backbone, model.backbone)
        trained, branch = as_trained(config.loss, config.model, model)
    matching = match_categories(dataset.categories, val_dataset.categories, "training images", "validation images")
    print(*(f"{remark}\n" for remark in matching.remarks), sep="", end="")
    dtype = torch.float64 if cfg.precision == "fp64" else torch.float32
    trained.to(device, dtype)
    most = images_per_process(config, len(dataset), world)
    cfg.max_images_per_device = images_at_once(config, trained, dataset, device, world, most, resumed)
    loader, val_loader = make_loaders(config, dataset, val_dataset, device, world)
    epochs, num_steps = (1, min(2, len(loader))) if cfg.fast_dev_run else (cfg.epochs, len(loader))

    rates = cfg.lr, cfg.lr_backbone, cfg.lr_offset_factor
    optimizer = adamw(model, *rates, cfg.weight_decay, branch, cfg.layer_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
    if source and config.model.init_from:
        print(*start_from(model, source, dataset.categories, config.model.init_from), sep="\n  ")
    ema = ModelEmaV3(model, cfg.ema_decay, use_warmup=True) if cfg.ema_decay else None
    images = [len(dataset), loader.batches.batch_size, cfg.seed, int(config.data.group_by_aspect)]
    state = TrainingState(
        model, optimizer, scaler, device, ema, num_steps, images, branch=branch, best_metric=cfg.best_metric
    )
    if world.rank:
        torch.manual_seed(cfg.seed + world.rank)  # dropout in each process its own
    same_folder = restore(state, resumed, output, world, not cfg.fast_dev_run, order)
    if resumed and (how := ended(state, cfg, epochs)):
        print(f"'{resumed.path}':", how)
        return None
    state.best = state.best if (output / "best.pth").exists() else -1.0

    print(train_header(config, model, dataset, val_dataset, state, epochs, backend, world))
    cfg.resume = None  # what is kept describes the run, not how it was last started
    schedule = cfg.schedule, cfg.drop_epochs, cfg.warmup_steps, cfg.flat_share
    run = Run(output, state, config, cli.to_yaml(config), dataset.categories, world, same_folder)
    step = TrainStep(
        distribute(config, model, trained, device, world),
        build_criterion(config.loss),
        ToDevice(device, model.backbone.mean, model.backbone.std, dtype),
        state,
        lambda n: set_lr(optimizer, lr_factor(n, num_steps, epochs, *schedule)),
        world,
        cfg.clip_norm,
        cfg.precision,
        cfg.padding == "batch",
        run.dump,
    )
    return Training(step, run, loader, val_loader, matching.category_of, epochs, world)


def read_data(
    config: Config, resumed: RawCheckpoint | None, world: World
) -> tuple[CocoDetection, CocoDetection, list[int] | None]:
    """The training and the validation images; all that can be wrong with them is looked at here, before anything else.

    Returns:
        Both, and the row of the checkpoint's class heads that each label has now, if that has changed.

    Raises:
        UserError: annotations or image files that cannot be used, or classes that are not the checkpoint's.
    """
    cfg = config.train
    prepare_workers(config.data.workers, SampleLoader.__module__)
    with world.one_a_machine_first():  # which generates shapes
        dataset = build_dataset(config.data, "train", cfg.seed, cfg.epochs)
        val_dataset = build_dataset(config.data, "val")
        check_learnable(dataset.annotations)
        check_scorable(val_dataset.annotations)
        if config.loss.federated:
            dataset = dataset.with_exhaustive()
    protocol, names = (
        protocol_for(val_dataset.annotations, config.data.protocol),
        distinct_names(val_dataset.categories),
    )
    check_figure(cfg.best_metric, "train.best_metric", names, protocol=protocol)
    order = check_resumable(resumed, cfg, dataset) if resumed else None
    checked = check_files({"train": dataset, "val": val_dataset}, config.data, world)
    return checked["train"], checked["val"], order


def check_resumable(resumed: RawCheckpoint, config: TrainConfig, dataset: CocoDetection) -> list[int] | None:
    """The row of the checkpoint's class heads that each label has now, if that has changed.

    Raises:
        UserError: other classes, other frozen parts, or other groups of the optimizer.
    """
    if resumed.format != "native":  # refused when it is restored
        return None
    train = resumed.content["config"].get("train", {})
    before, decay = train.get("freeze", []), train.get("layer_decay")
    if sorted(before) != sorted(config.freeze):
        raise UserError(
            f"train.resume: '{resumed.path}' was trained with train.freeze [{','.join(before)}], which decides what "
            "the optimizer holds; resume it so, or take its weights alone, --model.init_from"
        )
    if (decay is None) != (config.layer_decay is None):
        raise UserError(
            f"train.resume: '{resumed.path}' was trained with train.layer_decay {'null' if decay is None else decay}, "
            "and with or without one the optimizer has other groups; resume it so, or take its weights alone, "
            "--model.init_from"
        )
    return changed_order(resumed.content["categories"], dataset.categories, resumed.path)


def build_detector(
    config: Config, dataset: CocoDetection, resumed: RawCheckpoint | None, source: LoadedDetector | None
) -> DeformableDETR:
    """Build the detector for a data set's classes. The backbone loads no weights if a checkpoint will bring them.

    Images are then normalised as they were for the checkpoint's backbone, unless the configuration says otherwise.
    """
    model = config.model
    same = source and architecture(source.config.backbone.name) == architecture(model.backbone.name)
    if source and same and model.backbone.mean is None and model.backbone.std is None:
        model = replace(model, backbone=with_normalisation(model.backbone, source.model.backbone))
    brings = resumed or same
    num_classes = 1 + max(c.label for c in dataset.categories)
    detector = build_model(model, num_classes, config.loss, "none" if brings else None)
    detector.freeze(config.train.freeze)
    detector.transformer.checkpointing = config.train.checkpoint_activations
    return detector


def backbone_brought(resumed: RawCheckpoint | None, source: LoadedDetector | None) -> str | None:
    """Name of the backbone in the checkpoint that a run starts from, if there is one that says it."""
    if resumed:  # one of another layout is refused when the state is restored
        return resumed.content["config"]["model"]["backbone"]["name"] if resumed.format == "native" else None
    return source.config.backbone.name if source else None


def restore(
    state: TrainingState,
    resumed: RawCheckpoint | None,
    output: Path,
    world: World,
    position: bool,
    order: list[int] | None,
) -> bool:
    """Fill the state from a checkpoint, if there is one; `order` says which row of its class heads each label takes.

    Returns:
        Whether the checkpoint lies in the run's own folder.

    Raises:
        UserError: the processes do not find the same checkpoint.
    """
    if resumed:
        for remark in state.restore(resumed, world, position):
            print(remark)
        if order:
            reorder_classes(state, order)
            print("the classes are in another order than in the checkpoint: class heads and their moments go with them")
    if len(set(map(tuple, world.exchange([state.epoch, state.step, int(resumed is not None)])))) > 1:
        raise UserError(
            f"the processes do not find the same checkpoint; '{output}' must be a folder that all machines see"
        )
    return resumed is not None and resumed.path.resolve().parent == output.resolve()


def make_loaders(
    config: Config, dataset: CocoDetection, val_dataset: CocoDetection, device: torch.device, world: World
) -> tuple[TrainLoader, SampleLoader]:
    """This process's training batches and validation batches."""
    cfg, data = config.train, config.data
    share, pin = (world.rank, world.size), device.type == "cuda"
    per_process, at_once = images_per_process(config, len(dataset), world), cfg.max_images_per_device
    assert at_once != "auto", "it is found before"
    micro = min(at_once or per_process, per_process)
    loader = train_loader(dataset, cfg.batch_size, micro, data.workers, cfg.seed, pin, share, data.group_by_aspect)
    eval_batch = cfg.eval_batch_size or min(8, at_once or cfg.batch_size)
    return loader, eval_loader(val_dataset, eval_batch, data.workers, pin, share, 2 if cfg.fast_dev_run else None)


def images_per_process(config: Config, images: int, world: World) -> int:
    """Images of a step that one process takes at most; refuses batches that cannot be shared."""
    batch = min(config.train.batch_size, images)
    if batch < world.size:
        raise UserError(f"a batch of {batch} images cannot be shared by {world.size} processes; raise train.batch_size")
    if batch % world.size and config.model.backbone.norm == "trainable":
        raise UserError(
            f"a batch of {batch} images is no multiple of {world.size} processes, which trained batch norms need: they "
            "take the statistics of all; change train.batch_size, or --model.backbone.norm frozen"
        )
    return -(-batch // world.size)


def distribute(
    config: Config, model: DeformableDETR, trained: nn.Module, device: torch.device, world: World
) -> nn.Module:
    """What training runs, with the options of memory and speed; gradients are exchanged between processes."""
    if world.size > 1 and config.model.backbone.norm == "trainable":
        synchronise_batch_norms(model)
    if config.train.compile:
        model.compile_parts()
    if world.size == 1:
        return trained
    devices = [device] if device.type == "cuda" else None
    # Buffers are the same everywhere already; torch renamed the option that says so.
    renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    still: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(trained, devices, gradient_as_bucket_view=True, **still)
