"""A trained detector that takes pictures: `load_predictor` makes one from a checkpoint."""

import sys
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import nn

from datasets.annotations import Id
from datasets.categories import Category, assume_coco, foreign_categories, rename_by_id
from datasets.device import ToDevice
from datasets.images import to_rgb, upright
from datasets.loader import Batch, pad_images
from datasets.pictures import read_each
from datasets.readers import read_annotations
from datasets.transforms import eval_transform, to_image
from engine.backend import selected_backend
from engine.exported import ExportedDetector, load_exported
from engine.inputs import (
    Picture,
    check_checkpoint,
    check_classes,
    check_detections,
    check_size,
    check_threshold,
    check_top_k,
    check_tta,
    check_weights,
    is_one,
    to_picture,
)
from engine.merge import merge_views
from engine.results import NamedDetections
from engine.tta import MultiView, ViewBatch, sizes_of, views_of
from models.detector import DeformableDETR
from models.folded_norms import fold_for_inference
from models.from_config import build_model
from models.load import LoadedDetector, load_detector
from models.postprocess import Detections, postprocess
from util.config import EvalDataConfig, ModelConfig, TTAConfig, from_dict
from util.devices import pick_device
from util.drawing import draw_detections
from util.errors import UserError
from util.exported import is_exported
from util.files import unused_name
from util.fonts import legend_of
from util.remarks import say_once


class Predictor:
    """Takes pictures and returns detections.

    Args:
        model: batch to predictions.
        prepare: PIL image of any mode to an upright RGB one, which is what is looked at and drawn on.
        batch_of: RGB images to a batch on the model's device, images `[B, 3, H, W]` and padding_mask `[B, H, W]`.
        postprocess: (predictions, sizes, top_k) to detections.
        names: class names by label.
        category_of: ids of classes in annotation files by label, as far as they are known.
    """

    def __init__(
        self,
        model: nn.Module,
        prepare: Callable,
        batch_of: Callable,
        postprocess: Callable,
        names: dict[int, str],
        category_of: Mapping[int, Id] | None = None,
    ):
        self.model, self.batch_of, self.postprocess = model.eval(), batch_of, postprocess
        self.prepare, self.names, self.category_of = prepare, names, dict(category_of or {})

    def __repr__(self) -> str:
        named, kind = list(self.names.values()), type(self.model).__name__
        count = sum(weight.numel() for weight in self.model.parameters()) / 1e6
        classes = ", ".join(named[:10] + ["..."] * (len(named) > 10))
        return f"Predictor({kind}, {count:.1f} M parameters, {len(named)} classes: {classes}); call it with a picture"

    @torch.inference_mode()
    def __call__(self, pictures: Picture | Sequence[Picture], threshold: float = 0.0, top_k: int = 100):
        """Detect in one picture, or in several at once.

        Args:
            pictures: one, or a list of them. Each is a path; a PIL image of any mode; a uint8 array `[H, W, 3]` in RGB
                (`cv2.imread` gives BGR: hand over `array[..., ::-1]`), or `[H, W]` in grey; or a tensor `[3, H, W]` in
                RGB or `[1, H, W]` in grey, of uint8 or of floats in [0, 1], as torchvision has them. Of several frames
                the first is taken, or the one that a PIL image stands at.
            threshold: smallest score to keep, between 0 and 1.
            top_k: most detections for each picture.

        Returns:
            Detections (boxes xyxy in pixels of the upright picture, scores, labels, names), or a list of them.

        Raises:
            UserError: anything else, or a picture that cannot be read.
        """
        threshold, top_k = check_threshold(threshold), check_top_k(top_k)
        if is_one(pictures):
            return self._detect([self._upright(pictures, "picture")], threshold, top_k)[0]
        several = [self._upright(p, f"pictures[{i}]") for i, p in enumerate(cast(Sequence[Picture], pictures))]
        return self._detect(several, threshold, top_k)

    def _upright(self, given: Any, name: str) -> Image.Image:
        picture = to_picture(given, name)
        return picture if picture is not given and picture.mode == "RGB" else self.prepare(picture)

    def _detect(self, several: list[Image.Image], threshold: float, top_k: int) -> list[NamedDetections]:
        sizes = [(p.height, p.width) for p in several]
        # Pictures of unequal sizes go one by one: padding would change what is found in them.
        step = len(several) if len(set(sizes)) == 1 else 1
        found = []
        for i in range(0, len(several), step):
            batch = self.batch_of(several[i : i + step])
            predictions = self.model(batch.images, batch.padding_mask)
            detections = self.postprocess(predictions, sizes[i : i + step], top_k)
            found += [NamedDetections.of(d.above(threshold), self.names) for d in detections]
        return found

    def draw(self, picture: Picture, detections: Detections) -> Image.Image:
        """An upright RGB copy of the picture with the detections drawn on it."""
        check_detections(detections)
        picture = self._upright(picture, "picture")
        return draw_detections(picture, detections.boxes, detections.labels, detections.scores, self.names)

    def describe(self, detections: Detections) -> list[dict]:
        """Plain dictionaries of the detections, for JSON."""
        check_detections(detections)
        columns = (detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist())
        return [
            {"label": label, "name": self.names.get(label, str(label)), "score": score, "box_xyxy": box}
            for label, score, box in zip(*columns)
        ]


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


def predict_pictures(
    predictor: Predictor, pictures: Sequence[Path], output: Path, threshold: float, top_k: int
) -> list[dict[str, Any]]:
    """Draw what is found in every picture that can be read.

    Args:
        predictor: a detector.
        pictures: files; those that cannot be read, or that the detector does not take, are named on stderr and left
            out.
        output: folder for the drawn ones, which is there.
        threshold: smallest score to keep.
        top_k: most detections for each picture.

    Returns:
        For each picture its drawn file, itself, its width and height, and its detections, as plain data.

    Raises:
        UserError: the pictures lie in `output`, and could be overwritten; or nothing could be looked at.
    """
    if any(path.resolve().parent == output.resolve() for path in pictures):
        raise UserError(f"output '{output}' is the folder of the pictures, which the drawn ones could overwrite")
    listed: list[dict[str, Any]] = []
    names = {"classes"}  # --save_txt writes labels/classes.txt beside a text of each drawn picture
    refused: UserError | None = None
    for path, picture in read_each(pictures, "predict"):
        try:
            found = predictor(picture, threshold, top_k)
        except UserError as error:  # too small for an exported file, say: no reason to lose the others
            refused = error
            print(f"left out: '{path}': {error}", file=sys.stderr)
            continue
        drawn = unused_name(path.stem, names) + ".png"
        predictor.draw(picture, found).save(output / drawn)
        size = {"width": picture.width, "height": picture.height}
        listed.append({"drawn": drawn, "file": str(path), **size, "detections": predictor.describe(found)})
    if refused and not listed:
        raise refused
    found_labels = {d["label"] for entry in listed for d in entry["detections"]}
    if legend := legend_of({k: name for k, name in predictor.names.items() if k in found_labels}):
        print(legend, file=sys.stderr)
    return listed
