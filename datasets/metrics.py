"""The figures that detections are given: a line each, in the order in which tables and files have them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

import numpy as np

from datasets.accumulate import Tables
from datasets.greedy import IOUS, SIZES
from datasets.protocol import COCO, LVIS, MAX_DETECTIONS
from util.errors import UserError

# Which classes count: a slice of them, or their indices.
Classes: TypeAlias = slice | np.ndarray
# Accumulated precision and recall, and the classes that count -> a figure in [0, 1]; -1 where there is nothing to
# score.
Value: TypeAlias = Callable[[Tables, Classes], float]
EVERY_CLASS = slice(None)


@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation.

    Attributes:
        name: the name in tables, files and options; `{0}` and `{1}` stand for the smaller limits of detections in an
            image, `{last}` for the largest.
        table: figures with the same word here are printed in one table.
        value: computes it.
        of_class: whether it is also given for each class alone.
        protocol: the one of `datasets.protocol` that has it; None for all.
        frequency: classes that count, as LVIS groups them: `r`, `c` or `f`; None for all.
    """

    name: str
    table: str
    value: Value
    of_class: bool = False
    protocol: str | None = None
    frequency: str | None = None

    def name_at(self, limits: Sequence[int]) -> str:
        """The name with these limits of detections."""
        return self.name.format(*limits, last=limits[-1])


def average_precision(iou: float | None = None, size: str = "all") -> Value:
    """AP: the mean precision over 101 recalls and over classes.

    Args:
        iou: overlap from which on a detection is right; None takes the mean over 0.5, 0.55, ..., 0.95.
        size: size of the objects that count: `all`, `small`, `medium` or `large`.
    """

    def value(tables: Tables, classes: Classes) -> float:
        precision = tables.precision  # [IoU, recall, class, size, limit]
        return _mean(precision[_ious(iou), :, classes, list(SIZES).index(size), -1])

    return value


def average_recall(limit: int = -1, size: str = "all") -> Value:
    """AR: the largest recall, as a mean over ten IoUs and over classes.

    Args:
        limit: index of one of the limits of detections in an image.
        size: size of the objects that count, as in `average_precision`.
    """

    def value(tables: Tables, classes: Classes) -> float:
        recall = tables.recall  # [IoU, class, size, limit]
        return _mean(recall[:, classes, list(SIZES).index(size), limit])

    return value


def _ious(iou: float | None) -> slice:
    if iou is None:
        return slice(None)
    at = int(np.argmin(np.abs(IOUS - iou)))
    return slice(at, at + 1)


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]  # -1 is what is not there
    return float(values.mean()) if values.size else -1.0


METRICS = (
    Metric("AP", "precision", average_precision(), of_class=True),
    Metric("AP50", "precision", average_precision(iou=0.5), of_class=True),
    Metric("AP75", "precision", average_precision(iou=0.75), of_class=True),
    Metric("AP_small", "precision", average_precision(size="small")),
    Metric("AP_medium", "precision", average_precision(size="medium")),
    Metric("AP_large", "precision", average_precision(size="large")),
    Metric("APr", "precision", average_precision(), protocol=LVIS, frequency="r"),
    Metric("APc", "precision", average_precision(), protocol=LVIS, frequency="c"),
    Metric("APf", "precision", average_precision(), protocol=LVIS, frequency="f"),
    Metric("AR_{0}", "recall", average_recall(limit=0), protocol=COCO),
    Metric("AR_{1}", "recall", average_recall(limit=1), protocol=COCO),
    Metric("AR_{last}", "recall", average_recall()),
    Metric("AR_small", "recall", average_recall(size="small")),
    Metric("AR_medium", "recall", average_recall(size="medium")),
    Metric("AR_large", "recall", average_recall(size="large")),
)


def metrics_of(protocol: str) -> list[Metric]:
    """The figures of a protocol."""
    return [metric for metric in METRICS if metric.protocol in (None, protocol)]


def limits_of(max_detections: int, protocol: str = COCO) -> list[int]:
    """The limits of detections in an image that figures are given at, rising: 1, 10 and the largest; LVIS has that."""
    return [max_detections] if protocol == LVIS else [min(limit, max_detections) for limit in (1, 10, max_detections)]


def figures_of(tables: Tables, protocol: str = COCO, frequencies: np.ndarray | None = None) -> dict[str, float]:
    """Every figure of the tables, by name.

    Args:
        tables: precision and recall.
        protocol: whose figures.
        frequencies: `[C]`, that of each class: `r`, `c`, `f`, or "" where it is not known; None if no class's is.
    """

    def classes(metric: Metric) -> Classes:
        if metric.frequency is None:
            return EVERY_CLASS
        return np.zeros(0, dtype=int) if frequencies is None else np.flatnonzero(frequencies == metric.frequency)

    return {metric.name_at(tables.limits): metric.value(tables, classes(metric)) for metric in metrics_of(protocol)}


def figures_of_class(tables: Tables, k: int) -> dict[str, float]:
    """The figures of one class alone, the k-th of the evaluation, by name."""
    limits, alone = tables.limits, slice(k, k + 1)
    return {metric.name_at(limits): metric.value(tables, alone) for metric in METRICS if metric.of_class}


def tables_of(limits: Sequence[int], protocol: str = COCO) -> list[list[str]]:
    """Names of the figures that are printed in one table each, for these limits of detections."""
    tables: dict[str, dict[str, None]] = {}
    for metric in metrics_of(protocol):
        tables.setdefault(metric.table, {})[metric.name_at(limits)] = None
    return [list(names) for names in tables.values()]


def check_figure(
    name: str, option: str, classes: Sequence[str], max_detections: int | None = None, protocol: str = COCO
) -> None:
    """Refuse the name of a figure that an evaluation will not have.

    Args:
        name: name of a figure (`AP50`), or of a class's figure (`AP50/person`).
        option: the option that gives the name.
        classes: names of the classes that are scored.
        max_detections: the evaluation's limit of detections in an image; None takes the protocol's.
        protocol: whose figures there will be.

    Raises:
        UserError: no such figure; says which is like it and which there are.
    """
    limits = limits_of(max_detections or MAX_DETECTIONS[protocol], protocol)
    figures = list(dict.fromkeys(metric.name_at(limits) for metric in metrics_of(protocol)))
    of_class = [metric.name_at(limits) for metric in METRICS if metric.of_class]
    names = figures + [f"{figure}/{of}" for figure in of_class for of in classes]
    if name in names:
        return
    by_small_letters = {n.lower(): n for n in reversed(names)}
    near = get_close_matches(name.lower(), by_small_letters, n=1)
    hint = f"did you mean '{by_small_letters[near[0]]}'? there" if near else "there"
    some = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
    alone = ", ".join(f"{figure}/{classes[0]}" for figure in of_class)
    raise UserError(
        f"{option} is '{name}'; {hint} are {', '.join(figures)}, and for each class ({some}) figures like {alone}"
    )
