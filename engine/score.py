"""What `main.py eval` does: score a checkpoint or saved detections, and write down the figures."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datasets.annotations import Annotations
from datasets.device import ToDevice
from datasets.evaluation import Scores, evaluate_detections
from datasets.image_folder import Pictures
from datasets.json_file import read_json
from datasets.loader import SampleLoader, eval_loader
from datasets.matching import Matching, match_categories
from datasets.paths import dataset_paths, root_layout
from datasets.protocol import COCO, MAX_DETECTIONS, check_scorer, protocol_for
from datasets.readers import read_annotations
from datasets.results import sound_results
from datasets.splits import build_dataset
from datasets.transforms import eval_transform
from datasets.truth import check_scorable, remarks_on_truth, without_objects
from engine.backend import selected_backend
from engine.check_files import check_files
from engine.evaluate import find, score_found
from engine.exported import ExportedDetector, load_exported
from engine.merge import merge_views
from engine.predict import load_model
from engine.tta import EverySize, MultiView, sizes_of, views_of
from models.detector import DeformableDETR
from models.folded_norms import fold_for_inference
from models.postprocess import postprocess
from util.command import required
from util.command_config import EvalConfig
from util.config import TTAConfig
from util.devices import pick_device
from util.distributed import World, check_gpus
from util.errors import UserError
from util.exported import is_exported
from util.files import make_folder
from util.remarks import say_once
from util.workers import prepare_workers


@dataclass
class Evaluation:
    """What was found, and how good it is.

    Attributes:
        scores: the figures; None if there is nothing to score.
        results: detections in COCO result format; empty but in rank 0.
        annotations: the truth.
        pictures: reads the pictures that the annotations list, if their folder is known.
        subject: what was evaluated and on which data, for a report.
        views: the detector with test-time augmentation, if there is any.
        protocol: whose figures they are, `coco` or `lvis`.
        max_detections: of an image, that were looked at.
    """

    scores: Scores | None
    results: list[dict]
    annotations: Annotations
    pictures: Pictures | None
    subject: dict[str, str]
    views: MultiView | None = None
    protocol: str = COCO
    max_detections: int = MAX_DETECTIONS[COCO]

    def write(self, output: Path) -> None:
        """Write `results.json`, and `detections.json` unless the detections came from a file.

        Without scores there is no `results.json`: one of an earlier evaluation is removed.
        """
        if "saved detections" not in self.subject:
            (output / "detections.json").write_text(json.dumps(self.results))
        more: dict[str, Any] = {"tta": self.views.to_dict()} if self.views else {}
        more |= {key: self.subject[key] for key in ("padding", "protocol") if key in self.subject}
        if self.scores:
            (output / "results.json").write_text(json.dumps(self.scores.to_dict() | more, indent=1))
        else:
            (output / "results.json").unlink(missing_ok=True)

    def text(self, output: Path) -> str:
        """The tables, and where the files are, to print."""
        cost = f"\n\n{self.views.cost_line()}" if self.views else ""
        if self.scores:
            return f"{self.scores.text()}{cost}\n\nfigures are in {output / 'results.json'}"
        return f"no score: {without_objects(self.annotations)}{cost}\n\ndetections are in {output / 'detections.json'}"


def score_detections(config: EvalConfig, world: World) -> Evaluation:
    """Score a file of detections; no model is needed.

    Raises:
        UserError: options that mean nothing without a model, or no truth to compare with.
    """
    if world.size > 1:
        raise UserError("saved detections are scored by one process; start it without torchrun")
    if config.checkpoint:
        raise UserError("give either --checkpoint or --detections, not both")
    if config.tta != TTAConfig():
        raise UserError("saved detections have no views; --tta.flip and all of --tta need a --checkpoint")
    if config.padding != "none":
        raise UserError("saved detections are scored as they are; --padding batch needs a --checkpoint")
    detections, data = required(config.detections, "detections"), config.data
    folder = data.val_images or (root_layout(data.root, "val")[0] if data.root else None)
    truth = data.val_annotations
    if not truth and data.root and (paths := dataset_paths(data, "val")):
        truth = str(paths[1])
    if not truth:
        raise UserError("to score saved detections, give their ground truth with --data.val_annotations FILE")
    annotations = read_annotations(truth, folder)
    check_scorable(annotations)
    results = sound_results(read_json(detections, "file of detections"), annotations, detections)
    for remark in remarks_on_truth(annotations) + results.remarks:
        say_once(remark)
    protocol, most = rules_of(config, annotations)
    scores = evaluate_detections(annotations, results.entries, most, scorer=config.scorer, protocol=protocol)
    subject = {"saved detections": detections, "data": str(truth)} | _named(protocol, most)
    pictures = Pictures(Path(folder), data.exif) if folder else None
    return Evaluation(scores, results.entries, annotations, pictures, subject, protocol=protocol, max_detections=most)


def rules_of(config: EvalConfig, annotations: Annotations) -> tuple[str, int]:
    """The protocol, and the most detections of an image.

    Raises:
        UserError: a truth or a scorer that the chosen protocol is not for.
    """
    protocol = protocol_for(annotations, config.data.protocol)
    check_scorer(config.scorer, protocol)
    return protocol, config.top_k or MAX_DETECTIONS[protocol]


def _named(protocol: str, most: int) -> dict[str, str]:
    """What a report says of a protocol that is not COCO's."""
    return {} if protocol == COCO else {"protocol": f"{protocol.upper()}, {most} detections of an image"}


def score_checkpoint(config: EvalConfig, world: World) -> Evaluation:
    """Detect with a checkpoint in the validation images, and score what it finds.

    Raises:
        UserError: a checkpoint, data set or device that cannot be used.
    """
    check_gpus(world, config.device)
    device = pick_device(config.device, world.local_rank)
    backend = selected_backend(device)
    views = views_of(config.tta, config.data.eval_size, config.data.max_size)
    sizes, padded = sizes_of(views), config.padding == "batch"
    if padded and len(views) > 1:
        raise UserError("--padding batch would lie on the left of mirrored views; leave out --tta, or the padding")
    checkpoint = required(config.checkpoint, "checkpoint")
    model: DeformableDETR | ExportedDetector
    if is_exported(checkpoint):
        model = load_exported(checkpoint, config.device, config.weights, config.tta)
        if padded or world.size > 1:
            raise UserError(f"'{checkpoint}' takes no padding, in one process; leave out --padding and torchrun")
        categories, device, backend = model.categories, torch.device("cpu"), f"of '{Path(checkpoint).name}'"
    else:
        model, categories, _ = load_model(checkpoint, config.weights)
    prepare_workers(config.data.workers, SampleLoader.__module__)
    with world.one_a_machine_first():
        dataset = build_dataset(config.data, "val")
    dataset = check_files({"val": dataset}, config.data, world)["val"]
    if dataset.annotations.annotated or dataset.categories:
        matching = match_categories(categories, dataset.categories, how=config.match)
    else:  # a list of images alone
        matching = Matching({c.label: c.id for c in categories}, [])
    category_of = matching.category_of
    unscored = without_objects(dataset.annotations)
    protocol, most = rules_of(config, dataset.annotations)
    if config.analyse:
        check_scorable(dataset.annotations)
    workers, loaders = -(-config.data.workers // len(sizes)), []  # the loaders of all sizes run at once
    for size in sizes:
        resize = model.resize(size) if isinstance(model, ExportedDetector) else eval_transform(*size)
        sized = dataset.transformed(resize)
        share = (world.rank, world.size)
        pin = device.type == "cuda"
        loaders.append(eval_loader(sized, config.batch_size, workers, pin, share, padding=config.padding))
    make_folder(config.output, "output")
    several = f", {world.size} processes" if world.size > 1 else ""
    how = f", padded in batches of {config.batch_size}" if padded else ""
    by = "".join(f", {name} {text}" for name, text in _named(protocol, most).items())
    score = f"{by}; there will be no score: {unscored}" if unscored else by
    classes = f"{len(category_of)} classes"
    print(
        f"{len(dataset)} images{how}, {classes}, operator {backend} on {device}{several}{score}",
        *matching.remarks,
        "",
        sep="\n",
    )

    evaluated: nn.Module = model.to(device)
    fold_for_inference(model)
    loader: SampleLoader | EverySize = loaders[0]
    prepare: Callable
    pick: Callable
    if isinstance(model, ExportedDetector):  # it normalises by itself, and gives pixels
        prepare, pick = (lambda batch: batch), model.postprocess
    else:
        prepare, pick = ToDevice(device, model.backbone.mean, model.backbone.std), postprocess
    subject = {"checkpoint": checkpoint, "data": str(dataset.annotations.source)} | _named(protocol, most)
    if padded:
        subject["padding"] = f"to the largest of {config.batch_size} images, neighbours by id"
    multi_view = None
    if len(views) > 1:
        assert isinstance(model, DeformableDETR)
        evaluated = multi_view = MultiView(model, views, prepare, pick, merge_views, config.tta)
        loader, prepare, pick = EverySize(loaders), multi_view.prepare, multi_view.postprocess
        print(f"{multi_view.describe()}\n")
        subject["views"] = multi_view.describe()
    found = find(evaluated, loader, category_of, prepare, device, world, most, pick=pick)
    scores = None
    if unscored is None:
        scores = score_found(found, dataset.annotations, world, most, config.scorer, protocol)
    return Evaluation(scores, found.results, dataset.annotations, dataset.pictures, subject, multi_view, protocol, most)
