"""The report's diagrams, as SVG for the HTML page."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from analysis.errors.precision_recall import GRID, ThresholdCurve

_FEW = 10  # classes that can be told apart by colour; if there are more, each is a thin grey line
_LABELS = 200  # names along a side of the confusion matrix; each costs time, and more could not be read
# Okabe and Ito's palette, which colour-blind readers can tell apart, and three more colours.
_PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"),
    *("#7f3c8d", "#80872d", "#8c564b"),
)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "analysis",  # the same numbers give the same file
    "font.family": ["sans-serif"],
    "font.size": 10,
    "text.color": "#1c2733",
    "axes.labelcolor": "#1c2733",
    "axes.edgecolor": "#9aa5b1",
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
}


def precision_recall_figure(precision: dict[str, np.ndarray], names: Sequence[str]) -> str:
    """Precision over recall for every class and for their mean, at IoU 0.5, at 0.75, and averaged over 0.5 to 0.95.

    Args:
        precision: the result of `precision_recall.precision_recall`.
        names: names of the classes.
    """
    with matplotlib.rc_context(_STYLE):
        figure = _wide_figure()
        panels = figure.subplots(1, 3, sharey=True)
        titles = {"AP50": "IoU 0.5", "AP75": "IoU 0.75", "AP": "mean over IoU 0.5 to 0.95"}
        recall = np.linspace(0, 1, 101)
        for axes, (figure_name, title) in zip(panels, titles.items()):
            _class_lines(axes, recall, precision[figure_name], names)
            axes.set(title=title, xlabel="recall")
        panels[0].set(ylabel="precision")
        _legend(figure, panels[0])
        return _svg(figure, "Precision over recall by class")


def threshold_figure(curves: Sequence[ThresholdCurve | None], overall: ThresholdCurve, names: Sequence[str]) -> str:
    """Over the score threshold: precision, recall and F1 of all classes together on the left, F1 by class on the right.

    Args:
        curves: the curve of each class; None for a class without objects.
        overall: the curve of all detections together.
        names: names of the classes.
    """
    with matplotlib.rc_context(_STYLE):
        figure = _wide_figure()
        left, right = figure.subplots(1, 2, sharey=True)
        for name, colour in (("precision", "#0072b2"), ("recall", "#d55e00"), ("f1", "#1c2733")):
            label = "F1" if name == "f1" else name
            left.plot(GRID, getattr(overall, name), color=colour, label=label, linewidth=2 if name == "f1" else 1.5)
        _axes(left)
        if overall.best:
            left.axvline(overall.best.threshold, color="#9aa5b1", linestyle=":")
        left.set(title="all classes together", xlabel="score threshold")
        left.legend(frameon=False, fontsize="small")
        nothing = np.full(len(GRID), np.nan)
        _class_lines(right, GRID, np.stack([nothing if c is None else c.f1 for c in curves]), names)
        right.set(title="F1 by class", xlabel="score threshold")
        _legend(figure, right)
        return _svg(figure, "Precision, recall and F1 over the score threshold")


def confusion_figure(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """A heat map of a large confusion matrix.

    Args:
        shares: `[R, C]` in [0, 1].
        rows: names of the objects' classes.
        columns: names of the classes that they were taken for. With more than 200 only one in so many is written.
    """
    with matplotlib.rc_context(_STYLE):
        side = float(np.clip(0.145 * max(shares.shape) + 2, 6, 14))
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        # Square roots make rare mistakes visible beside the diagonal.
        axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        size = 7 if max(shares.shape) <= 100 else 4
        across, down = (_labelled(len(names)) for names in (columns, rows))
        axes.set_xticks(across, [_plain(columns[k]) for k in across], rotation=90, fontsize=size)
        axes.set_yticks(down, [_plain(rows[k]) for k in down], fontsize=size)
        axes.set(xlabel="taken for", ylabel="object")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return _svg(figure, "Confusion matrix")


def _labelled(count: int) -> range:
    """Which of so many rows have their name beside them: every one, or one in n where they would lie on each other."""
    return range(0, count, -(-count // _LABELS))


def _wide_figure() -> Figure:
    # Without the space, the last tick of a panel touches the first one of the next.
    return Figure(figsize=(11, 3.8), layout=ConstrainedLayoutEngine(wspace=0.06))


def _class_lines(axes, x: np.ndarray, values: np.ndarray, names: Sequence[str]) -> None:
    present = [k for k in range(len(values)) if not np.isnan(values[k]).all()]
    for i, k in enumerate(present):
        if len(present) <= _FEW:
            axes.plot(x, values[k], color=_PALETTE[i], linewidth=1.5, label=_plain(names[k]))
        else:
            axes.plot(x, values[k], color="#9aa5b1", linewidth=0.6, alpha=0.6, label="each class" if i == 0 else None)
    if len(present) > 1:
        few = len(present) <= _FEW
        style = {"color": "#52606d", "linestyle": "--"} if few else {"color": "#0072b2", "linewidth": 2.5}
        axes.plot(x, values[present].mean(0), label="mean of classes", **style)
    _axes(axes)


def _axes(axes) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(color="#e4e7eb", linewidth=0.8)


def _legend(figure: Figure, axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize="small")


def _plain(name: str, longest: int = 30) -> str:
    """A name for a diagram. matplotlib reads dollars as formulas, and hides labels that begin with an underscore."""
    name = name if len(name) <= longest else name[: longest - 1] + "…"
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")


def _svg(figure: Figure, title: str) -> str:
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's browser has its own fonts
        FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    text = file.getvalue()
    opened = text.index("<svg")
    return f'<svg role="img" aria-label="{title}"' + text[opened + len("<svg") :]
