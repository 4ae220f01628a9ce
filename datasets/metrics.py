"""The figures that detections are given: a line each, in the order in which tables and files have them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

import numpy as np

from datasets.accumulate import Tables
from datasets.greedy import IOUS, SIZES
from util.errors import UserError

# Accumulated precision and recall, and the classes that count, as a slice of them -> a figure in [0, 1]; -1 where there
# is nothing to score.
Value: TypeAlias = Callable[[Tables, slice], float]
EVERY_CLASS = slice(None)


@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation.

    Attributes:
        name: the name in tables, files and options; `{0}`, `{1}`, `{2}` stand for the three limits of detections in an
            image.
        table: figures with the same word here are printed in one table.
        value: computes it.
        of_class: whether it is also given for each class alone.
    """

    name: str
    table: str
    value: Value
    of_class: bool = False

    def name_at(self, limits: Sequence[int]) -> str:
        """The name with these limits of detections."""
        return self.name.format(*limits)


def average_precision(iou: float | None = None, size: str = "all") -> Value:
    """AP: the mean precision over 101 recalls and over classes.

    Args:
        iou: overlap from which on a detection is right; None takes the mean over 0.5, 0.55, ..., 0.95.
        size: size of the objects that count: `all`, `small`, `medium` or `large`.
    """

    def value(tables: Tables, classes: slice) -> float:
        precision = tables.precision  # [IoU, recall, class, size, limit]
        return _mean(precision[_ious(iou), :, classes, list(SIZES).index(size), -1])

    return value


def average_recall(limit: int = -1, size: str = "all") -> Value:
    """AR: the largest recall, as a mean over ten IoUs and over classes.

    Args:
        limit: index of one of the three limits of detections in an image.
        size: size of the objects that count, as in `average_precision`.
    """

    def value(tables: Tables, classes: slice) -> float:
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
    Metric("AR_{0}", "recall", average_recall(limit=0)),
    Metric("AR_{1}", "recall", average_recall(limit=1)),
    Metric("AR_{2}", "recall", average_recall(limit=2)),
    Metric("AR_small", "recall", average_recall(size="small")),
    Metric("AR_medium", "recall", average_recall(size="medium")),
    Metric("AR_large", "recall", average_recall(size="large")),
)


def limits_of(max_detections: int) -> list[int]:
    """The three limits of detections in an image that figures are given at, rising: 1, 10 and the largest."""
    return [min(limit, max_detections) for limit in (1, 10, max_detections)]


def figures_of(tables: Tables) -> dict[str, float]:
    """Every figure of the tables, by name."""
    return {metric.name_at(tables.limits): metric.value(tables, EVERY_CLASS) for metric in METRICS}


def figures_of_class(tables: Tables, k: int) -> dict[str, float]:
    """The figures of one class alone, the k-th of the evaluation, by name."""
    limits, alone = tables.limits, slice(k, k + 1)
    return {metric.name_at(limits): metric.value(tables, alone) for metric in METRICS if metric.of_class}


def tables_of(limits: Sequence[int]) -> list[list[str]]:
    """Names of the figures that are printed in one table each, for these limits of detections."""
    tables: dict[str, dict[str, None]] = {}
    for metric in METRICS:
        tables.setdefault(metric.table, {})[metric.name_at(limits)] = None
    return [list(names) for names in tables.values()]


def check_figure(name: str, option: str, classes: Sequence[str], max_detections: int = 100) -> None:
    """Refuse the name of a figure that an evaluation will not have.

    Args:
        name: name of a figure (`AP50`), or of a class's figure (`AP50/person`).
        option: the option that gives the name.
        classes: names of the classes that are scored.
        max_detections: the evaluation's limit of detections in an image.

    Raises:
        UserError: no such figure; says which is like it and which there are.
    """
    limits = limits_of(max_detections)
    figures = list(dict.fromkeys(metric.name_at(limits) for metric in METRICS))
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
