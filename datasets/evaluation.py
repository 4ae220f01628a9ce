"""Detections to COCO average precision, computed by pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert

from datasets.annotations import Annotations, CategoryEntry, Id
from datasets.categories import distinct_names
from datasets.coco import to_coco
from datasets.ids import id_order
from datasets.metrics import figures_of, figures_of_class, limits_of, tables_of
from datasets.results import sound_results
from datasets.truth import possible_objects
from util.tables import table

LARGEST_AREA = 1e10  # of an object in square pixels: pycocotools ignores larger ones


@dataclass
class Scores:
    """COCO figures in [0, 1]; -1 (as pycocotools has it) where there is nothing to score.

    Attributes:
        figures: the figures of `datasets.metrics` by name, in their order: AP, AP50, ..., then AR likewise.
        per_class: the figures of each class by its name, and its number of `objects`.
        tables: names of the figures that are printed in one table each.
        remarks: sentences on detections that were left out, or read as something else than they say.
    """

    figures: dict[str, float]
    per_class: dict[str, dict[str, float]]
    tables: list[list[str]]
    remarks: list[str] = field(default_factory=list)

    def value(self, name: str) -> float:
        """A figure by its name, or as `AP/NAME` that of a class."""
        if name in self.figures:
            return self.figures[name]
        figure, _, of_class = name.partition("/")
        return self.per_class[of_class][figure]

    def to_dict(self) -> dict[str, dict]:
        """All figures, for JSON."""
        return {"figures": self.figures, "per_class": self.per_class}

    def text(self) -> str:
        """Tables of the figures and of every class, to print."""
        coco = "\n".join(table(names, [[self.figures[name] for name in names]]) for names in self.tables)
        columns = list(next(iter(self.per_class.values()), {}))
        rows = [[name, *figures.values()] for name, figures in self.per_class.items()]
        return f"{coco}\n\n" + table(["class", *columns], rows)


def to_coco_results(image_id: Id, boxes, scores, labels, category_of: Mapping[int, Id]) -> list[dict]:
    """One image's detections in COCO result format, every digit kept: rounded scores tie, and ties change AP.

    Args:
        image_id: id of the image in the annotation file.
        boxes: `[N, 4]`, xyxy in pixels.
        scores: `[N]`.
        labels: `[N]`; those that `category_of` does not know are left out.
        category_of: label to category id.
    """
    return [
        {
            "image_id": image_id,
            "category_id": category_of[label],
            "bbox": bbox,
            "score": score,
        }
        for bbox, score, label in zip(box_convert(boxes, "xyxy", "xywh").tolist(), scores.tolist(), labels.tolist())
        if label in category_of
    ]


def evaluate_detections(
    annotations: Annotations, results: list[dict], max_detections: int = 100, image_ids: Iterable[Id] | None = None
) -> Scores:
    """Score COCO-format detections.

    Every image counts, also those without detections; finding a crowd is neither right nor wrong. Objects that are not
    finite, have no width or height, or lie outside their image are left out, and so are detections that are not finite
    or of negative size. A detection of no width or height is a wrong one.

    Args:
        annotations: the truth.
        results: `[{"image_id", "category_id", "bbox": [x, y, w, h], "score"}, ...]`.
        max_detections: detections of an image that are looked at, best first.
        image_ids: score only these images; None scores all.

    Raises:
        UserError: a result lacks a key or names an unknown image, or none has a known category.
    """
    sound = sound_results(results, annotations)
    scores = summarize(_cocoeval(annotations, sound.entries, max_detections, image_ids))
    scores.remarks = sound.remarks
    return scores


def run_cocoeval(annotations: Annotations, results: list[dict], max_detections: int = 100) -> COCOeval:
    """pycocotools' evaluation of boxes, matched and accumulated; arguments and errors as `evaluate_detections`.

    Images, classes and annotations in it are numbered from 1; images and classes say their `original_id`.
    """
    return _cocoeval(annotations, sound_results(results, annotations).entries, max_detections)


def _cocoeval(
    annotations: Annotations, results: list[dict], max_detections: int, image_ids: Iterable[Id] | None = None
) -> COCOeval:
    images = _numbers(image.id for image in annotations.images)
    categories = _numbers(category.id for category in annotations.categories)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = _truth(annotations, images, categories)
        truth.createIndex()
        found = COCO()
        found.dataset = {k: truth.dataset[k] for k in ("images", "categories")}
        found.dataset["annotations"] = [
            {
                "id": i,
                "image_id": images[r["image_id"]],
                "category_id": categories.get(r["category_id"], 0),
                "bbox": r["bbox"],
                "score": r["score"],
                "area": min(r["bbox"][2] * r["bbox"][3], LARGEST_AREA),
                "iscrowd": 0,
            }
            for i, r in enumerate(results, 1)
        ]
        found.createIndex()
        run = COCOeval(truth, found, "bbox")
        run.params.imgIds = sorted(truth.imgs if image_ids is None else (images[i] for i in image_ids))
        run.params.maxDets = limits_of(max_detections)
        run.evaluate()
        run.accumulate()
    return run


def _numbers(ids: Iterable[Id]) -> dict[Id, int]:
    """1, 2, ... in the order of ids, for pycocotools, which cannot have text beside numbers, or very large numbers."""
    return {value: number for number, value in enumerate(sorted(ids, key=id_order), 1)}


def _truth(annotations: Annotations, images: Mapping[Id, int], categories: Mapping[Id, int]) -> dict:
    """What pycocotools takes, with all ids numbered anew from 1, and without what is no object.

    pycocotools takes an annotation id of 0 for "not matched", and loses annotations that share an id.
    """
    content = to_coco(annotations)
    objects = [a for a, kept in zip(content.get("annotations", []), possible_objects(annotations)) if kept]
    listed = [a for a in objects if a["image_id"] in images and a["category_id"] in categories]
    return {
        "info": {},
        "images": [{"id": images[i["id"]], "original_id": i["id"]} for i in content["images"]],
        "categories": [
            {"id": categories[c["id"]], "original_id": c["id"], "name": c["name"]} for c in content["categories"]
        ],
        "annotations": [
            a
            | {"id": number, "image_id": images[a["image_id"]], "category_id": categories[a["category_id"]]}
            | {"area": min(a["area"], LARGEST_AREA)}
            for number, a in enumerate(listed, 1)
        ],
    }


def summarize(run: COCOeval) -> Scores:
    """Means over pycocotools' accumulated tables; its own summary has no AP for a limit other than 100."""
    truth, scored = run.cocoGt, set(run.params.imgIds)
    of_run = (truth.cats[k] for k in run.params.catIds)
    names = distinct_names(CategoryEntry(c["original_id"], c["name"]) for c in of_run)
    per_class = {}
    for k, (name, category) in enumerate(zip(names, run.params.catIds)):
        objects = [truth.anns[a] for a in truth.getAnnIds(catIds=[category])]
        counted = sum(not o["iscrowd"] and o["image_id"] in scored for o in objects)
        per_class[name] = {**figures_of_class(run, k), "objects": counted}
    return Scores(figures_of(run), per_class, tables_of(run.params.maxDets))
