"""Detections to average precision: COCO's, or LVIS's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torchvision.ops import box_convert

from datasets.accumulate import Tables, accumulate
from datasets.annotations import Annotations, Id
from datasets.categories import distinct_names
from datasets.columns import Columns, to_columns
from datasets.greedy import Matched, match
from datasets.metrics import figures_of, figures_of_class, limits_of, tables_of
from datasets.protocol import MAX_DETECTIONS, check_scorer, protocol_for
from datasets.results import sound_results
from util.tables import table


@dataclass
class Scores:
    """Figures in [0, 1]; -1 (as pycocotools has it) where there is nothing to score.

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
    annotations: Annotations,
    results: list[dict],
    max_detections: int | None = None,
    image_ids: Iterable[Id] | None = None,
    scorer: str = "own",
    protocol: str = "auto",
) -> Scores:
    """Score COCO-format detections, by COCO's protocol or by LVIS's.

    Every image counts, also those without detections; finding a crowd is neither right nor wrong. Objects that are not
    finite, have no width or height, or lie outside their image are left out, and so are detections that are not finite
    or of negative size. A detection of no width or height is a wrong one.

    Args:
        annotations: the truth.
        results: `[{"image_id", "category_id", "bbox": [x, y, w, h], "score"}, ...]`.
        max_detections: detections of an image that are looked at, best first; COCO counts them class by class, LVIS
            together. None takes the protocol's, 100 or 300.
        image_ids: score only these images; None scores all.
        scorer: `own`, or the library that computes precision and recall instead: `pycocotools`, `faster-coco-eval`.
        protocol: `coco`, `lvis`, or `auto`: as the truth has it, see `datasets.protocol`.

    Raises:
        UserError: a result lacks a key or names an unknown image, or none has a known category; or a truth or a library
            that LVIS's protocol is not for.
    """
    protocol = protocol_for(annotations, protocol)
    check_scorer(scorer, protocol)
    sound = sound_results(results, annotations)
    most = max_detections or MAX_DETECTIONS[protocol]
    columns, limits = to_columns(annotations, sound, image_ids, protocol, most), limits_of(most, protocol)
    if scorer == "own":
        tables = accumulate(match(columns, most), limits)
    else:
        from datasets.libraries import tables_by  # which few ask for

        tables = tables_by(scorer, columns, limits)
    return summarize(columns, tables, sound.remarks)


def match_detections(
    annotations: Annotations, results: list[dict], max_detections: int | None = None, protocol: str = "auto"
) -> Matched:
    """Which detection of all images found which object; arguments and errors as `evaluate_detections`."""
    protocol = protocol_for(annotations, protocol)
    most, sound = max_detections or MAX_DETECTIONS[protocol], sound_results(results, annotations)
    return match(to_columns(annotations, sound, None, protocol, most), most)


def summarize(columns: Columns, tables: Tables, remarks: Iterable[str] = ()) -> Scores:
    """Means over the tables of precision and recall, and the number of objects of each class."""
    objects = np.bincount(columns.truth.classes[~columns.crowds], minlength=len(columns.categories))
    names = distinct_names(columns.categories)
    per_class = {
        name: {**figures_of_class(tables, k), "objects": count}
        for k, (name, count) in enumerate(zip(names, objects.tolist()))
    }
    figures = figures_of(tables, columns.protocol, columns.frequencies)
    return Scores(figures, per_class, tables_of(tables.limits, columns.protocol), list(remarks))
