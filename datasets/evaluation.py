"""Detections to COCO average precision, computed by pycocotools."""

import contextlib
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.coco import is_id
from util.errors import UserError


@dataclass
class Scores:
    """COCO figures in [0, 1]; -1 (as pycocotools has it) where there is nothing to score.

    Attributes:
        figures: the 12 by name: AP, AP50, AP75, AP_small, AP_medium, AP_large, then AR likewise.
        per_class: for each class name its AP, AP50, AP75 and the number of objects.
    """

    figures: dict[str, float]
    per_class: dict[str, dict[str, float]]


def to_coco_results(image_id: int, boxes, scores, labels, category_of: dict[int, int]) -> list[dict]:
    """One image's detections in COCO result format.

    Args:
        image_id: of the annotation file.
        boxes: `[N, 4]`, xyxy in pixels.
        scores: `[N]`.
        labels: `[N]`; those that `category_of` does not know are left out.
        category_of: label to category id.
    """
    return [
        {
            "image_id": image_id,
            "category_id": category_of[label],
            "bbox": [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)],
            "score": round(score, 6),
        }
        for (x0, y0, x1, y1), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist())
        if label in category_of
    ]


def evaluate_detections(
    annotations: dict, results: list[dict], max_detections: int = 100, image_ids: Iterable[int] | None = None
) -> Scores:
    """Score COCO-format detections against COCO-format ground truth.

    Every image counts, also those without detections; finding a crowd is neither right nor wrong.

    Args:
        annotations: content of the annotation file.
        results: `[{"image_id", "category_id", "bbox": [x, y, w, h], "score"}, ...]`.
        max_detections: detections of an image that are looked at, best first.
        image_ids: score only these images; None scores all.

    Raises:
        UserError: a result lacks a key or names an unknown image, or none has a known category.
    """
    return summarize(run_cocoeval(annotations, results, max_detections, image_ids))


def run_cocoeval(
    annotations: dict, results: list[dict], max_detections: int = 100, image_ids: Iterable[int] | None = None
) -> COCOeval:
    """pycocotools' evaluation of boxes, matched and accumulated; arguments and errors as `evaluate_detections`.

    The annotations in it are copies, numbered from 1.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = _complete(annotations)
        truth.createIndex()
        found = COCO()
        found.dataset = {k: truth.dataset[k] for k in ("images", "categories")}
        found.dataset["annotations"] = _as_annotations(results, set(truth.imgs), set(truth.cats))
        found.createIndex()
        run = COCOeval(truth, found, "bbox")
        run.params.imgIds = sorted(truth.imgs if image_ids is None else image_ids)
        run.params.maxDets = [min(limit, max_detections) for limit in (1, 10, max_detections)]  # it sorts them
        run.evaluate()
        run.accumulate()
    return run


def _complete(annotations: dict) -> dict:
    """A copy with the optional fields that pycocotools insists on, and annotations numbered anew from 1.

    pycocotools takes an annotation id of 0 for "not matched", and loses annotations that share an id.
    """
    numbered = [
        {"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3]}
        | {k: v for k, v in a.items() if v is not None}
        | {"id": i + 1}
        for i, a in enumerate(annotations["annotations"])
    ]
    return {
        "info": {},
        "images": annotations["images"],
        "categories": annotations["categories"],
        "annotations": numbered,
    }


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
    truth = run.cocoGt
    precision, recall = (
        run.eval["precision"],
        run.eval["recall"],
    )  # [IoU, R, class, area, limit], [IoU, class, area, limit]

    def mean(values: np.ndarray) -> float:
        values = values[values > -1]
        return float(values.mean()) if values.size else -1.0

    limits = run.params.maxDets
    figures = {
        "AP": mean(precision[:, :, :, 0, 2]),
        "AP50": mean(precision[0, :, :, 0, 2]),
        "AP75": mean(precision[5, :, :, 0, 2]),
    }
    figures |= {f"AP_{size}": mean(precision[:, :, :, i + 1, 2]) for i, size in enumerate(("small", "medium", "large"))}
    figures |= {f"AR_{limit}": mean(recall[:, :, 0, i]) for i, limit in enumerate(limits)}
    figures |= {f"AR_{size}": mean(recall[:, :, i + 1, 2]) for i, size in enumerate(("small", "medium", "large"))}

    scored = set(run.params.imgIds)
    per_class = {}
    for k, category in enumerate(run.params.catIds):
        objects = [truth.anns[a] for a in truth.getAnnIds(catIds=[category])]
        name = str(truth.cats[category]["name"])
        per_class[f"{name} ({category})" if name in per_class else name] = {
            "AP": mean(precision[:, :, k, 0, 2]),
            "AP50": mean(precision[0, :, k, 0, 2]),
            "AP75": mean(precision[5, :, k, 0, 2]),
            "objects": sum(not o["iscrowd"] and o["image_id"] in scored for o in objects),
        }
    return Scores(figures, per_class)
