"""Plots of a sweep: AP over one option, heat maps over two, bars for named variants, curves of every run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ablation.grid import Cell, short_names
from ablation.records import read_log
from ablation.results import Row, show
from util.fonts import can_draw, save_figure

MOST_PANELS = 12
NAMED_CURVES = 20  # a legend with more names would cover the curves


def plot_scores(rows: Sequence[Row], grid: Sequence[str], file: Path, score: str = "AP") -> Path | None:
    """Draw a score: a curve over one swept option, heat maps over two or more, and bars without a grid.

    Args:
        rows: the table's rows; those without a finished run are left out.
        grid: the swept options.
        file: the file to write.
        score: the name of the score.

    Returns:
        The file; None if no run is finished.
    """
    if not any(score in row.figures for row in rows):
        return None
    named = len({row.variant.name for row in rows}) > len({_key(row, grid) for row in rows})
    if named or not grid:
        figure = _bars(rows, score)
    elif len(grid) == 1:
        figure = _curve(rows, grid[0], score)
    else:
        figure = _heat_maps(rows, list(grid), score)
    save_figure(figure, file, dpi=130)
    return file


def _key(row: Row, grid: Sequence[str]) -> str:
    return repr([row.variant.values.get(key) for key in grid])


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _runs(rows: Sequence[Row], score: str) -> str:
    counts = {row.figures[score].count for row in rows if score in row.figures}
    least, most = min(counts), max(counts)
    several = f"{least}" if least == most else f"{least} to {most}"
    return f"{several} run{'s' if most > 1 else ''} each" + (", ± sample deviation" if most > 1 else "")


def _curve(rows: Sequence[Row], key: str, score: str) -> Figure:
    """Numbers lie at their place on the axis; other values stand side by side."""
    found = [row for row in rows if score in row.figures]
    values = [row.variant.values[key] for row in found]
    numeric = _all_numbers(values)
    xs = values if numeric else list(range(len(values)))
    if numeric:
        pairs = sorted(zip(found, xs), key=lambda pair: pair[1])
        found, xs = [row for row, _ in pairs], [x for _, x in pairs]
    figure = _figure(5.2, 3.6)
    axes = figure.subplots()
    means = [100 * row.figures[score].mean for row in found]
    spread = [100 * (row.figures[score].deviation or 0.0) for row in found]
    axes.errorbar(xs, means, yerr=spread, marker="o", capsize=4, color="C0", zorder=3)
    for row, x in zip(found, xs):
        if score == "AP" and len(row.by_seed) > 1:
            axes.plot([x] * len(row.by_seed), [100 * v for v in row.by_seed.values()], ".", color="C0", alpha=0.35)
    axes.set_xticks(xs, [show(row.variant.values[key]) for row in found])
    axes.set(xlabel=short_names([key])[key], ylabel=score, title=_runs(found, score))
    axes.grid(alpha=0.3)
    return figure


def _heat_maps(rows: Sequence[Row], grid: list[str], score: str) -> Figure:
    """The first option runs down, the second across; each combination of the others has a panel."""
    down, across, *others = grid
    names = short_names(grid)
    downs, acrosses = (_distinct(row.variant.values[key] for row in rows) for key in (down, across))
    panels: dict[str, list[Row]] = {}
    for row in rows:
        title = ", ".join(f"{names[key]} {show(row.variant.values[key])}" for key in others)
        panels.setdefault(title, []).append(row)
    shown = dict(list(panels.items())[:MOST_PANELS])
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    wide, high = max(3.2, 1.25 * len(acrosses) + 1.6), max(2.6, 0.7 * len(downs) + 1.5)
    figure = _figure(wide * columns, high * lines)
    all_means = [100 * row.figures[score].mean for row in rows if score in row.figures]
    low, top = min(all_means), max(all_means)
    grid_axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid_axes[len(shown) :]:
        axes.set_visible(False)
    for axes, (title, panel) in zip(grid_axes, shown.items()):
        means = np.full((len(downs), len(acrosses)), np.nan)
        texts: dict[tuple[int, int], str] = {}
        for row in panel:
            i, j = downs.index(row.variant.values[down]), acrosses.index(row.variant.values[across])
            if score in row.figures:
                means[i, j] = 100 * row.figures[score].mean
                texts[i, j] = row.figures[score].text(100).replace(" ± ", "\n± ")
            else:
                texts[i, j] = "failed" if row.failed else "left"
        image = axes.imshow(means, cmap="viridis", vmin=low, vmax=max(top, low + 1e-6), aspect="auto")
        for (i, j), text in texts.items():
            dark = np.isfinite(means[i, j]) and (means[i, j] - low) < 0.6 * max(top - low, 1e-6)
            axes.text(j, i, text, ha="center", va="center", color="white" if dark else "black", fontsize=9)
        axes.set_xticks(range(len(acrosses)), [show(v) for v in acrosses])
        axes.set_yticks(range(len(downs)), [show(v) for v in downs])
        axes.set(xlabel=names[across], ylabel=names[down], title=title)
    figure.colorbar(image, ax=list(grid_axes[: len(shown)]), label=score)
    left = f"; {len(panels) - len(shown)} more panels left out" if len(panels) > len(shown) else ""
    figure.suptitle(_runs([row for row in rows if score in row.figures], score) + left, fontsize=10)
    return figure


def _distinct(values) -> list[Any]:
    """Each value once: numbers in ascending order, other values in the order of the grid."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return sorted(found) if _all_numbers(found) else found


def _all_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _bars(rows: Sequence[Row], score: str) -> Figure:
    found = [row for row in rows if score in row.figures]
    figure = _figure(7.0, 1.2 + 0.38 * len(found))
    axes = figure.subplots()
    means = [100 * row.figures[score].mean for row in found]
    spread = [100 * (row.figures[score].deviation or 0.0) for row in found]
    axes.barh(range(len(found)), means, xerr=spread, capsize=3, color="C0", alpha=0.75)
    for i, row in enumerate(found):
        axes.text(means[i] + spread[i], i, "  " + row.figures[score].text(100), va="center", fontsize=8)
    axes.set_yticks(range(len(found)), _readable([row.variant.name for row in found]), fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.2)  # room for the numbers beside the bars
    axes.set(xlabel=score, title=_runs(found, score))
    axes.grid(alpha=0.3, axis="x")
    return figure


def plot_curves(cells: Sequence[Cell], folder: Path, file: Path) -> Path | None:
    """Draw training loss and validation AP of every run, with a colour for each variant and a thin line for each seed.

    Args:
        cells: the runs; what their `metrics.jsonl` hold so far is read.
        folder: the sweep's folder.
        file: the file to write.

    Returns:
        The file; None if no run has written a line.
    """
    logs: dict[str, list[list[dict]]] = {}
    for cell in cells:
        lines = read_log(folder / cell.name / "metrics.jsonl")
        if lines:
            logs.setdefault(cell.variant.name, []).append(lines)
    if not logs:
        return None
    figure = _figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    colours = _colours(len(logs))
    for colour, name, runs in zip(colours, _readable(list(logs)), logs.values()):
        evaluated = "eval_ema" if any(line["kind"] == "eval_ema" for line in runs[0]) else "eval"
        for axes, kind, figure_name, factor in ((left, "train", "loss", 1), (right, evaluated, "AP", 100)):
            chosen = [[line for line in run if line["kind"] == kind] for run in runs]
            curves = [
                ([x["step"] for x in run], [factor * _number(x[figure_name]) for x in run]) for run in chosen if run
            ]
            _curves(axes, curves, colour, name)
    left.set(xlabel="step", yscale="log", title="training loss")
    right.set(xlabel="step", ylim=(0, None), title="validation AP")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    if len(logs) <= NAMED_CURVES:
        figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    save_figure(figure, file, dpi=130)
    return file


def _curves(axes: Axes, curves: Sequence[tuple[list, list]], colour, name: str) -> None:
    """Draw each run as a thin line, and their mean over the steps that all have reached."""
    if not curves:
        return
    shared = min(len(steps) for steps, _ in curves)
    for steps, values in curves:
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    mean = np.mean([values[:shared] for _, values in curves], axis=0)
    axes.plot(curves[0][0][:shared], mean, color=colour, linewidth=1.8, label=name)


def _readable(names: Sequence[str]) -> list[str]:
    """Variants by name, or by their row in the table where no font here has the characters of the name."""
    return [name if can_draw(name) else f"row {row}" for row, name in enumerate(names, 1)]


def _number(value: float | None) -> float:
    """A number, or NaN, a gap in the curve, for null, which logs write for a mean that is not finite."""
    return math.nan if value is None else value


def _colours(count: int) -> list:
    if count <= 10:
        return [f"C{i}" for i in range(count)]
    return list(colormaps["turbo"](np.linspace(0.05, 0.95, count)))
