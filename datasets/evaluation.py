"""Detections to COCO average precision, computed by pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert

from datasets.annotations import Annotations, CategoryEntry, Id
from datasets.categories import distinct_names
from datasets.coco import is_id, to_coco
from datasets.metrics import figures_of, figures_of_class, limits_of, tables_of
from util.errors import UserError
from util.tables import table


@dataclass
class Scores:
    """COCO figures in [0, 1]; -1 (as pycocotools has it) where there is nothing to score.

    Attributes:
        figures: the figures of `datasets.metrics` by name, in their order: AP, AP50, ..., then AR likewise.
        per_class: the figures of each class by its name, and its number of `objects`.
        tables: names of the figures that are printed in one table each.
    """

    figures: dict[str, float]
    per_class: dict[str, dict[str, float]]
    tables: list[list[str]]

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

    Every image counts, also those without detections; finding a crowd is neither right nor wrong.

    Args:
        annotations: the truth.
        results: `[{"image_id", "category_id", "bbox": [x, y, w, h], "score"}, ...]`.
        max_detections: detections of an image that are looked at, best first.
        image_ids: score only these images; None scores all.

    Raises:
        UserError: a result lacks a key or names an unknown image, or none has a known category.
    """
    return summarize(run_cocoeval(annotations, results, max_detections, image_ids))


def run_cocoeval(
    annotations: Annotations, results: list[dict], max_detections: int = 100, image_ids: Iterable[Id] | None = None
) -> COCOeval:
    """pycocotools' evaluation of boxes, matched and accumulated; arguments and errors as `evaluate_detections`.

    The annotations in it are copies, numbered from 1.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = _numbered(annotations)
        truth.createIndex()
        found = COCO()
        found.dataset = {k: truth.dataset[k] for k in ("images", "categories")}
        found.dataset["annotations"] = _as_annotations(results, set(truth.imgs), set(truth.cats))
        found.createIndex()
        run = COCOeval(truth, found, "bbox")
        run.params.imgIds = sorted(truth.imgs if image_ids is None else image_ids)
        run.params.maxDets = limits_of(max_detections)
        run.evaluate()
        run.accumulate()
    return run


def _numbered(annotations: Annotations) -> dict:
    """What pycocotools takes, with annotations numbered anew from 1.

    pycocotools takes an annotation id of 0 for "not matched", and loses annotations that share an id.
    """
    content = to_coco(annotations)
    for number, entry in enumerate(content["annotations"], 1):
        entry["id"] = number
    return {"info": {}, **content}


def _as_annotations(results: list[dict], image_ids: set, category_ids: set) -> list[dict]:
    if not isinstance(results, list):
        raise UserError("detections must be a list of COCO results, [{image_id, category_id, bbox, score}, ...]")
    entries = []
    for i, result in enumerate(results):
        missing = [
            k for k in ("image_id", "category_id", "bbox", "score") if not isinstance(result, dict) or k not in result
        ]
        if missing:
            raise UserError(f"detection {i} has no '{missing[0]}'; each needs image_id, category_id, bbox and score")
        if not is_id(result["image_id"]) or result["image_id"] not in image_ids:
            raise UserError(f"detection {i} is of image {result['image_id']}, which the annotation file does not list")
        if not is_id(result["category_id"]):
            raise UserError(f"detection {i} has the category {result['category_id']}, which must be a number")
        try:
            x, y, w, h = (float(v) for v in result["bbox"])
            score = float(result["score"])
        except (TypeError, ValueError):
            raise UserError(f"detection {i} must have a bbox of four numbers and a numeric score") from None
        entries.append(
            {
                "id": i + 1,
                "image_id": result["image_id"],
                "category_id": result["category_id"],
                "bbox": [x, y, w, h],
                "score": score,
                "area": w * h,
                "iscrowd": 0,
            }
        )
    if entries and not any(entry["category_id"] in category_ids for entry in entries):
        raise UserError(
            f"no detection has a category of the annotation file: the first has {entries[0]['category_id']}, "
            f"the file lists {sorted(category_ids, key=str)[:5]}"
        )
    return entries


def summarize(run: COCOeval) -> Scores:
    """Means over pycocotools' accumulated tables; its own summary has no AP for a limit other than 100."""
    truth, scored = run.cocoGt, set(run.params.imgIds)
    names = distinct_names(CategoryEntry(k, truth.cats[k]["name"]) for k in run.params.catIds)
    per_class = {}
    for k, (name, category) in enumerate(zip(names, run.params.catIds)):
        objects = [truth.anns[a] for a in truth.getAnnIds(catIds=[category])]
        counted = sum(not o["iscrowd"] and o["image_id"] in scored for o in objects)
        per_class[name] = {**figures_of_class(run, k), "objects": counted}
    return Scores(figures_of(run), per_class, tables_of(run.params.maxDets))
