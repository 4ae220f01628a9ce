"""COCO-format detection: annotations, categories, samples."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from datasets.coco_names import COCO_NAMES
from datasets.images import read_image
from util.errors import UserError
from util.objects import Objects


@dataclass
class Category:
    """A class: the model's label, the id in annotation files, and the name."""

    label: int
    id: int
    name: str


@dataclass
class Sample:
    """One image and its objects.

    Attributes:
        image: `[3, H, W]`, uint8.
        objects: of the image.
        original_size: (height, width) in pixels of the file.
    """

    image: torch.Tensor
    objects: Objects
    original_size: tuple[int, int]


class CocoDetection(Dataset):
    """Samples of a COCO annotation file.

    Crowds and degenerate boxes are left out of the samples; images without objects stay in.

    Args:
        image_folder: where the file names of the annotations are found.
        annotation_file: COCO JSON.
        transform: `(tv_tensors.Image, {"boxes", "labels"}) -> (tensor, {...})`.
        category_ids: `contiguous` labels 0..C-1 in the order of ids, or the file's `original` ids as labels.
        seed: with epoch and index it determines the augmentation of a sample.

    Attributes:
        annotations: the file's content.
        categories: classes in label order.
        images: the file's image entries.
        dropped: how many degenerate boxes were left out.

    Raises:
        UserError: files missing or malformed.
    """

    def __init__(
        self,
        image_folder: str | Path,
        annotation_file: str | Path,
        transform: Callable | None = None,
        category_ids: str = "contiguous",
        seed: int = 0,
    ):
        self.image_folder, self.annotation_file = Path(image_folder), Path(annotation_file)
        if not self.image_folder.is_dir():
            raise UserError(f"no image folder '{image_folder}'; check data.root or data.*_images")
        self.annotations = load_annotations(annotation_file)
        self.transform, self.seed = transform, seed
        self.categories = categories_of(self.annotations, category_ids)
        self.images = self.annotations["images"]
        if not self.images:
            raise UserError(f"'{annotation_file}' lists no images")
        self.boxes, self.labels, self.dropped = self._index()

    def _index(self) -> tuple[list[np.ndarray], list[np.ndarray], int]:
        label_of = {c.id: c.label for c in self.categories}
        position = {image["id"]: i for i, image in enumerate(self.images)}
        boxes, labels, dropped = defaultdict(list), defaultdict(list), 0
        for annotation in self.annotations["annotations"]:
            where = f"annotation {annotation['id']} in '{self.annotation_file}'"
            if annotation["image_id"] not in position:
                raise UserError(f"{where} is of image {annotation['image_id']}, which the file does not list")
            if annotation["category_id"] not in label_of:
                raise UserError(f"{where} has the unknown category {annotation['category_id']}")
            if annotation.get("iscrowd", 0):
                continue
            i = position[annotation["image_id"]]
            box = clip_box(annotation["bbox"], self.images[i])
            if box is None:
                dropped += 1
                continue
            boxes[i].append(box)
            labels[i].append(label_of[annotation["category_id"]])
        count = range(len(self.images))
        return (
            [np.array(boxes[i], dtype=np.float32).reshape(-1, 4) for i in count],
            [np.array(labels[i], dtype=np.int64) for i in count],
            dropped,
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        """The sample of `(index, epoch)`; a plain index is epoch 0."""
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        entry = self.images[index]
        annotated = (entry["width"], entry["height"]) if has_size(entry) else None
        picture = read_image(self.image_folder / entry["file_name"], annotated)
        if annotated is not None and picture.size != annotated:
            raise UserError(
                f"image '{entry['file_name']}' is {picture.width}x{picture.height} pixels, but "
                f"'{self.annotation_file}' says {annotated[0]}x{annotated[1]}; check-data lists all such images"
            )
        size = (picture.height, picture.width)
        image = TF.to_image(picture)
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(self.boxes[index]), format="XYXY", canvas_size=size)
        target = {"boxes": boxes, "labels": torch.from_numpy(self.labels[index])}
        if self.transform is not None:
            # The same image in the same epoch is augmented alike, whichever worker does it.
            state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(state[0]))  # torch.manual_seed would reseed GPUs too
                image, target = self.transform(image, target)
        height, width = image.shape[-2:]
        boxes = TF.convert_bounding_box_format(target["boxes"], new_format="CXCYWH").as_subclass(torch.Tensor)
        boxes = boxes.float() / torch.tensor([width, height, width, height])
        return Sample(image.as_subclass(torch.Tensor), Objects(boxes, target["labels"], entry["id"]), size)


def read_json(path: str | Path, what: str) -> Any:
    """Content of a JSON file; `what` says in errors what the file is.

    Raises:
        UserError: no such file, or no JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no {what} '{path}'")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{what} '{path}' is not JSON: {error}") from None


def read_coco(path: str | Path) -> dict[str, list]:
    """A COCO file with its three lists, whose entries are not looked at.

    Raises:
        UserError: no such file, no JSON, or a list is missing.
    """
    content = read_json(path, "annotation file")
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"annotation file '{path}' has no list '{part}'; it must be in COCO detection format")
    return content


def load_annotations(path: str | Path) -> dict[str, list]:
    """Read a COCO detection file and check that its entries have their parts.

    Raises:
        UserError: no such file, no JSON, or a part is missing; names the entry.
    """
    content = read_coco(path)
    required = {
        "images": ("id", "file_name"),
        "categories": ("id", "name"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
    }
    for part, keys in required.items():
        for i, entry in enumerate(content[part]):
            missing = [k for k in keys if not isinstance(entry, dict) or k not in entry]
            if missing:
                raise UserError(f"entry {i} of '{part}' in '{path}' has no '{missing[0]}'")
            for key in ("id", "image_id", "category_id"):
                if not is_id(entry.get(key, 0)):
                    raise UserError(
                        f"entry {i} of '{part}' in '{path}' has the {key} {entry[key]}; it must be a number"
                    )
    for part in ("images", "categories"):
        seen = set()
        for entry in content[part]:
            if entry["id"] in seen:
                raise UserError(f"'{path}' gives the id {entry['id']} to two {part}; check-data lists all such")
            seen.add(entry["id"])
    for image in content["images"]:
        if not isinstance(image["file_name"], str):
            raise UserError(f"image {image['id']} in '{path}' has the file_name {image['file_name']}; it must be text")
        if not has_size(image) and (image.get("width"), image.get("height")) != (None, None):
            raise UserError(
                f"image {image['id']} in '{path}' has the size {image.get('width')}x{image.get('height')}; "
                "width and height must be whole numbers of pixels"
            )
    for annotation in content["annotations"]:
        if not is_box(annotation["bbox"]):
            raise UserError(
                f"annotation {annotation['id']} in '{path}' has the bbox {annotation['bbox']}; "
                "it must be four numbers [x, y, width, height]"
            )
    if not content["categories"]:
        raise UserError(f"annotation file '{path}' lists no categories")
    return content


def is_box(box: object) -> bool:
    """Whether this is a list of four numbers (which may still make an impossible box)."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
    )


def is_id(value: object) -> bool:
    """Whether this can be an id: a whole number (also written 7.0), or text as some tools have it."""
    return isinstance(value, str) or _is_whole(value)


def has_size(image: dict) -> bool:
    """Whether an image entry says how large the image is."""
    return all(_is_whole(image.get(k)) and image[k] > 0 for k in ("width", "height"))


def _is_whole(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0


def clip_box(bbox: Sequence[float], image: dict) -> tuple[float, float, float, float] | None:
    """COCO `[x, y, w, h]` to `(x0, y0, x1, y1)` within the image; None if nothing finite and positive is left."""
    x, y, w, h = bbox
    if not all(math.isfinite(v) for v in bbox) or w <= 0 or h <= 0:
        return None
    x0, y0 = max(x, 0.0), max(y, 0.0)
    width, height = (image["width"], image["height"]) if has_size(image) else (math.inf, math.inf)
    x1, y1 = min(x + w, width), min(y + h, height)
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def categories_of(annotations: dict, category_ids: str = "contiguous") -> list[Category]:
    """The classes of a COCO file in label order; see `CocoDetection` for `category_ids`."""
    # Numbers before text, each in its own order.
    ordered = sorted(annotations["categories"], key=lambda c: (isinstance(c["id"], str), c["id"]))
    if category_ids == "original":
        unfit = [c["id"] for c in ordered if isinstance(c["id"], str) or c["id"] < 0]
        if unfit:
            raise UserError(f"category id {unfit[0]!r} cannot be a label; take data.category_ids contiguous")
        return [Category(int(c["id"]), c["id"], str(c["name"])) for c in ordered]
    return [Category(label, c["id"], str(c["name"])) for label, c in enumerate(ordered)]


def foreign_categories(num_classes: int, names: dict[int, str]) -> list[Category]:
    """The classes of a checkpoint that keeps none itself.

    Args:
        num_classes: classes C of its heads; 91 without names is COCO with its original ids.
        names: by label, if it has them.
    """
    if not names and num_classes == 91:
        return [Category(i, i, name) for i, name in COCO_NAMES.items()]
    return [Category(i, i, names.get(i, "")) for i in range(num_classes)]


def match_categories(
    of_model: Sequence[Category], of_data: Sequence[Category], whose: str = "checkpoint"
) -> dict[int, int]:
    """Which category id of a data set each of a model's labels means.

    By name, so that a data set whose ids were renumbered is still scored rightly; by id if the model has no names.
    `whose` says in an error where the model's classes come from.

    Raises:
        UserError: they have no class in common.
    """
    both = {(c.id, c.name) for c in of_data}
    if all((c.id, c.name) in both for c in of_model):  # the same file, or one like it; names may even be doubled
        return {c.label: c.id for c in of_model}
    by_name = {c.name: c.id for c in of_data}
    matched = {c.label: by_name[c.name] for c in of_model if c.name in by_name}
    if matched:
        return matched
    ids = {c.id for c in of_data}
    matched = {c.label: c.id for c in of_model if c.id in ids and not c.name}
    if matched:
        return matched
    raise UserError(
        f"the classes of the {whose} ({', '.join(c.name or str(c.id) for c in of_model[:5])}, ...) and of the data set "
        f"({', '.join(c.name for c in of_data[:5])}, ...) have none in common"
    )
