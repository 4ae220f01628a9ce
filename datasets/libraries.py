"""Precision and recall by the libraries that others use: the referees of our own, and an option for users."""

import contextlib
import io
from collections.abc import Sequence

from datasets.accumulate import Tables
from datasets.columns import Boxes, Columns


def tables_by(library: str, columns: Columns, limits: Sequence[int]) -> Tables:
    """The tables of `datasets.accumulate.accumulate`, all images, by another's hand.

    Args:
        library: `pycocotools`, or `faster-coco-eval`, which differs in the last digit: it does not add the smallest
            step of floats to the denominators of precision.
        columns: objects and detections.
        limits: three largest numbers of detections in an image, rising.
    """
    if library == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth, found = COCO(), COCO()
        # Ids count from 1: an annotation's 0 means "not matched".
        listed = {
            "info": {},
            "images": [{"id": i} for i in range(1, len(columns.images) + 1)],
            "categories": [{"id": k, "name": c.name} for k, c in enumerate(columns.categories, 1)],
        }
        crowds = [{"iscrowd": crowd} for crowd in columns.crowds.astype(int).tolist()]
        scores = [{"iscrowd": 0, "score": score} for score in columns.scores.tolist()]
        truth.dataset = listed | {"annotations": _entries(columns.truth, crowds)}
        found.dataset = listed | {"annotations": _entries(columns.found, scores)}
        truth.createIndex()
        found.createIndex()
        run = COCOeval(truth, found, iouType="bbox")
        run.params.maxDets = list(limits)
        run.evaluate()
        run.accumulate()
    return Tables(run.eval["precision"], run.eval["recall"], list(limits))


def _entries(boxes: Boxes, more: list[dict]) -> list[dict]:
    images, classes = (boxes.images + 1).tolist(), (boxes.classes + 1).tolist()
    rows = zip(images, classes, boxes.boxes.tolist(), boxes.areas.tolist(), more)
    return [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, **rest}
        for number, (image, category, box, area, rest) in enumerate(rows, 1)
    ]
