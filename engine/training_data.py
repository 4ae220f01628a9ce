"""The data of a run: read, checked, and as this process's batches."""

import torch

from datasets.categories import distinct_names
from datasets.dataset import CocoDetection
from datasets.loader import SampleLoader, TrainLoader, eval_loader, train_loader
from datasets.metrics import check_figure
from datasets.protocol import protocol_for
from datasets.splits import build_dataset
from datasets.truth import check_learnable, check_scorable
from engine.check_files import check_files
from engine.resuming import check_resumable
from util.checkpoint import RawCheckpoint
from util.config import Config
from util.distributed import World
from util.errors import UserError
from util.workers import prepare_workers


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
    protocol = protocol_for(val_dataset.annotations, config.data.protocol)
    names = distinct_names(val_dataset.categories)
    check_figure(cfg.best_metric, "train.best_metric", names, protocol=protocol)
    order = check_resumable(resumed, cfg, dataset) if resumed else None
    checked = check_files({"train": dataset, "val": val_dataset}, config.data, world)
    return checked["train"], checked["val"], order


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
