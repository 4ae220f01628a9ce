"""From a checkpoint, or a model, to a detector that takes pictures: `load_predictor`."""

from collections.abc import Callable, Sequence
from os import PathLike

import torch
from PIL import Image

from datasets.batch import Batch, pad_images
from datasets.categories import Category, assume_coco, foreign_categories, rename_by_id
from datasets.device import ToDevice
from datasets.images import to_rgb, upright
from datasets.readers import read_annotations
from datasets.transforms import eval_transform, to_image
from engine.backend import selected_backend
from engine.exported import ExportedDetector, load_exported
from engine.inputs import check_checkpoint, check_classes, check_size, check_tta, check_weights
from engine.merge import merge_views
from engine.predictor import Predictor
from engine.tta import MultiView, ViewBatch, sizes_of, views_of
from models.detector import DeformableDETR
from models.folded_norms import fold_for_inference
from models.from_config import build_model
from models.load import LoadedDetector, load_detector
from models.postprocess import postprocess
from util.config import EvalDataConfig, ModelConfig, TTAConfig
from util.devices import pick_device
from util.exported import is_exported
from util.options import from_dict
from util.remarks import say_once


def load_model(checkpoint: str, weights: str = "auto") -> tuple[DeformableDETR, list[Category], EvalDataConfig]:
    """A model in evaluation mode from any known checkpoint, its classes, and the data section it was trained with."""
    check_weights(weights)
    loaded = load_detector(checkpoint, weights)
    return loaded.model, categories_of(loaded), from_dict(EvalDataConfig, loaded.data)


def categories_of(loaded: LoadedDetector) -> list[Category]:
    """The classes of a detector: those that its checkpoint lists, else one for each label."""
    listed = [Category(**c) for c in loaded.categories]
    return listed or foreign_categories(loaded.model.num_classes, loaded.names, loaded.contiguous)


def load_predictor(
    checkpoint: str | PathLike,
    device: str | torch.device = "auto",
    size: int | None = None,
    weights: str = "auto",
    tta: TTAConfig | None = None,
    classes: str | PathLike | None = None,
) -> Predictor:
    """A detector that takes pictures, from any known checkpoint, at the image size it was evaluated with.

    Args:
        checkpoint: path; see `models.load.load_detector`; or model.onnx or model.pt2 as `export` writes them.
        device: `auto` takes a GPU if there is one; else `cpu`, `cuda`, `cuda:1`, `mps`.
        size: shorter side in pixels; None takes the checkpoint's. The longer side follows from the picture.
        weights: `ema` for the moving average, `model` for the weights themselves, `auto` for the former if it is there.
        tta: views of each picture, whose detections are merged; None looks once.
        classes: annotation file that names the classes by their ids; None takes the checkpoint's names, or, for 91
            classes without names, COCO's, which it says.

    Raises:
        UserError: no such checkpoint, device, weights or file of classes, or a value that an argument does not take.
    """
    checkpoint, classes = check_checkpoint(checkpoint), check_classes(classes)
    size, tta = check_size(size), check_tta(tta)
    if is_exported(checkpoint):
        check_weights(weights)
        return _exported_predictor(load_exported(checkpoint, device, weights, tta), size, classes)
    chosen = pick_device(device)  # before the checkpoint, which may take long to read
    model, categories, data = load_model(checkpoint, weights)
    return make_predictor(model, named(categories, checkpoint, classes), data, chosen, size, tta)


def named(categories: list[Category], checkpoint: str, classes: str | None) -> list[Category]:
    """Classes with names to show: those of an annotation file, the checkpoint's own, or COCO's; arguments as above.

    Raises:
        UserError: the file cannot be read, or has none of the classes.
    """
    if classes:
        return rename_by_id(categories, read_annotations(classes).categories, classes)
    if any(c.name for c in categories):
        return categories
    assumed = assume_coco(categories)
    shown = "they are assumed to be COCO's" if assumed != categories else "numbers stand for them"
    say_once(f"'{checkpoint}' keeps no class names: {shown}; --classes FILE.json takes them from an annotation file")
    return assumed


def make_predictor(
    model: DeformableDETR,
    categories: list[Category],
    data: EvalDataConfig,
    device: str | torch.device,
    size: int | None,
    tta: TTAConfig | None = None,
) -> Predictor:
    """Make a predictor of a model, which becomes its own: its norms are folded, so it cannot be trained any more.

    The arguments are those of `load_predictor`.
    """
    size, tta = check_size(size), check_tta(tta)
    views, chosen = views_of(tta, size or data.eval_size, data.max_size), pick_device(device)
    selected_backend(chosen)
    names = {c.label: c.name for c in categories if c.name}
    resizes, to_device = (
        [eval_transform(*s) for s in sizes_of(views)],
        ToDevice(chosen, model.backbone.mean, model.backbone.std),
    )
    model.to(chosen)
    fold_for_inference(model.eval())
    multi_view = MultiView(model, views, to_device, postprocess, merge_views, tta) if len(views) > 1 else None

    def batch_of(pictures: Sequence[Image.Image]) -> Batch | ViewBatch:
        images = [to_image(p) for p in pictures]
        batches = [Batch(*pad_images([resize(i) for i in images]), [], []) for resize in resizes]
        return multi_view.prepare(batches) if multi_view else to_device(batches[0])

    pick: Callable = multi_view.postprocess if multi_view else postprocess
    category_of = {c.label: c.id for c in categories}
    return Predictor(multi_view or model, lambda p: to_rgb(upright(p)), batch_of, pick, names, category_of)


def _exported_predictor(model: ExportedDetector, size: int | None, classes: str | None) -> Predictor:
    """A predictor of an exported file; the arguments are those of `load_predictor`."""
    resize = model.resize((size or model.said.size, model.said.max_size))
    names = {c.label: c.name for c in named(model.categories, model.path, classes) if c.name}
    category_of = {c.label: c.id for c in model.categories}

    def batch_of(pictures: Sequence[Image.Image]) -> Batch:
        return Batch(*pad_images([resize(to_image(p)) for p in pictures]), [], [])

    return Predictor(model, lambda p: to_rgb(upright(p)), batch_of, model.postprocess, names, category_of)


def untrained_predictor(
    config: ModelConfig, num_classes: int, device: str = "auto", size: int | None = None
) -> Predictor:
    """An untrained detector, the same every time, whose classes are numbers."""
    torch.manual_seed(0)
    model = build_model(config, num_classes, backbone_weights="none")
    names = [Category(i, i, f"class {i}") for i in range(num_classes)]
    return make_predictor(model, names, EvalDataConfig(), device, size)
