"""The sweep that trains nothing: a checkpoint evaluated with less at inference."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ablation.costs import Cost, count_cost, image_sizes, measure_side_by_side, typical_size
from ablation.grid import cells_of, variants_of
from ablation.processes import locked
from ablation.records import Record, check_folder
from ablation.sweep import Sweep
from datasets.categories import Category
from datasets.dataset import CocoDetection
from datasets.device import ToDevice
from datasets.loader import eval_loader
from datasets.matching import match_categories
from datasets.splits import build_dataset
from datasets.transforms import eval_transform
from engine.backend import selected_backend
from engine.check_files import check_files
from engine.evaluate import run_evaluation
from engine.predict import load_model
from models.detector import DeformableDETR
from models.reduce import reduce_model
from util.command import required
from util.command_config import AblateConfig
from util.config import Config, LossConfig, ModelConfig
from util.config_files import to_yaml
from util.described import checkpoints_of
from util.devices import pick_device
from util.distributed import ALONE
from util.errors import UserError
from util.files import make_folder
from util.options import from_dict
from util.remarks import say_once

OF_MODEL = tuple(
    f"model.{k}" for k in ("num_points", "encoder_points", "decoder_points", "decoder_layers", "num_queries")
)
OF_DATA = ("data.eval_size", "data.max_size")


def check_reducible(keys: Sequence[str]) -> None:
    """Refuse options that mean nothing for a model that is trained already."""
    for key in keys:
        if key not in OF_MODEL + OF_DATA:
            raise UserError(
                f"{key} cannot change without training; with eval_only there are {', '.join(OF_MODEL + OF_DATA)}"
            )


def reduced(model: DeformableDETR, values: Mapping[str, Any]) -> DeformableDETR:
    """A copy of the model, reduced as a variant's `model.` options say."""
    return reduce_model(model, **{k.removeprefix("model."): v for k, v in values.items() if k in OF_MODEL})


def identity(checkpoint: str, values: Mapping[str, Any], data: Mapping[str, Any], match: str) -> dict[str, Any]:
    """What an evaluation was made of, for its record: that file as it was, and what was changed."""
    file = Path(checkpoint)
    written = [p.stat().st_mtime_ns for p in ([file] if file.is_file() else sorted(file.glob("*")))]
    of_model = {k.removeprefix("model."): v for k, v in values.items() if k in OF_MODEL}
    matched = {} if match == "auto" else {"match": match}  # older records do not have it
    return {
        "model": of_model,
        "data": dict(data),
        "train": {"checkpoint": str(file.resolve()), "written": max(written, default=0)} | matched,
    }


def ablate_trained(config: AblateConfig) -> int:
    """Evaluate checkpoints with less at inference, and compare; several stand for seeds, on the data of the first.

    Returns:
        0.

    Raises:
        UserError: options that mean nothing without training, no checkpoint, or a folder of trained runs.
    """
    cells = cells_of(from_dict(Config, asdict(config)), variants_of(config.grid, config.variants), config.seeds)
    device = pick_device(config.train.device)
    backend = selected_backend(device)
    pattern = required(config.checkpoint, "checkpoint")
    check_reducible([key for cell in cells for key in cell.variant.values])
    checkpoints = checkpoints_of(pattern)
    if (config.model, config.loss) != (ModelConfig(), LossConfig()):
        raise UserError(
            "with eval_only the checkpoint brings its model: give --grid model.num_points=4,2, say, and no other "
            "options of model or loss"
        )
    if config.seeds > 1:
        raise UserError("with eval_only there are no seeds; name several checkpoints by a pattern instead")
    output = Path(config.output)
    check_folder(output, eval_only=True)
    several = "s" if len(checkpoints) > 1 else ""
    print(f"{len(cells)} variants of {len(checkpoints)} checkpoint{several}, operator {backend} on {device}\n")
    every = [[replace(cell, seed=i) for cell in cells] for i in range(len(checkpoints))]
    if config.dry_run:
        return 0
    images = check_files({"val": build_dataset(config.data, "val")}, config.data, ALONE)["val"]
    make_folder(output, "output")
    models: dict[str, DeformableDETR] = {}
    costs: dict[str, Cost] = {}
    records: dict[str, Record] = {}
    sweep = Sweep(output, [cell for some in every for cell in some], list(config.grid), records, costs, trained=False)
    with locked(output):
        (output / "sweep.yaml").write_text(to_yaml(config))
        for checkpoint, of_checkpoint in zip(checkpoints, every):
            model, categories, _ = load_model(checkpoint)
            for cell in of_checkpoint:
                less, data = reduced(model, cell.variant.values), cell.config.data
                dataset = images.transformed(eval_transform(data.eval_size, data.max_size))
                folder = make_folder(output / cell.name, "output")
                if cell.variant.name not in models:
                    models[cell.variant.name] = less
                    size = typical_size(image_sizes(dataset), data.eval_size, data.max_size)
                    costs[cell.variant.name] = count_cost(less, size, device)
                made_of = identity(checkpoint, cell.variant.values, asdict(data), config.match)
                record = Record.read(folder)
                if record is None or record.status != "done" or record.config != made_of:
                    begun = time.time()
                    figures = score(less, categories, dataset, config, device)
                    record = Record("done", made_of, figures, "", [(begun, time.time() - begun)])
                    record.write(folder)
                records[cell.name] = record
                print(f"{cell.variant.name}  {checkpoint}  AP {record.figures['AP']:.3f}", flush=True)
                sweep.write()
    measure_side_by_side(models, costs, device, config.repeats)
    print(sweep.summary())
    return 0


def score(
    model: DeformableDETR,
    categories: list[Category],
    dataset: CocoDetection,
    config: AblateConfig,
    device: torch.device,
) -> dict[str, float]:
    """COCO figures of a model on a data set, by name."""
    matching = match_categories(categories, dataset.categories, how=config.match)
    for remark in matching.remarks:
        say_once(remark)
    batch, workers = config.train.eval_batch_size or 4, config.data.workers
    loader = eval_loader(dataset, batch, workers, device.type == "cuda")
    prepare = ToDevice(device, model.backbone.mean, model.backbone.std)
    scores, _ = run_evaluation(
        model.to(device), loader, matching.category_of, prepare, device, protocol=config.data.protocol
    )
    return scores.figures
