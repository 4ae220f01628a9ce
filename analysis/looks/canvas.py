"""Panels that each show a picture, and the marks, colour bars, legends and files that all figures share."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from util.fonts import save_figure

# Lightness grows evenly, from just visible on a darkened picture to standing out from it.
COLOURS = ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0.25, 1, 256)), "weights")
MARKERS = "osD^vP*Xhp"  # one for each level, fine to coarse
_MARGIN = 0.06  # share of the picture shown around it, because points may lie outside, where they read zero
_NARROWEST = 5.6  # least width of a figure in inches, for its title and legend
_DPI = 110
_LARGEST = 20_000  # pixels of a side; figures with hundreds of rows are drawn smaller, because Agg has a limit


def panels(
    picture: Image.Image,
    rows: int,
    columns: int,
    title: str,
    brightness: float = 1.0,
    side: float | None = None,
    below: int = 0,
) -> tuple[Figure, np.ndarray]:
    """A grid of panels that each show a picture, in its pixels.

    Args:
        picture: the RGB picture, scaled to the panel's size.
        rows, columns: the grid's numbers of rows and columns.
        title: the figure's title.
        brightness: the picture's brightness, in [0, 1]. Below 1 it also loses most of its colour, for marks to show.
        side: length of a panel's longer side in inches; None depends on the picture's size.
        below: number of text lines that will stand below each panel.

    Returns:
        The figure and its axes `[rows, columns]`.
    """
    width, height = picture.size
    side = side or min(max(3.0, max(width, height) / 160), 4.5)
    scale = side / max(width, height)
    # A long thin picture would leave no room for titles.
    wide, high = max(width * scale, 1.4), max(height * scale, 0.8)
    whole = max(columns * (wide + 0.12) + 1.3, _NARROWEST), rows * (high + 0.32 + 0.18 * below) + 1.0
    figure = Figure(figsize=whole, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots(rows, columns, squeeze=False)
    shown = picture.convert("RGB")
    if brightness < 1:
        shown = Image.blend(shown, shown.convert("L").convert("RGB"), 0.75)
    pixels = (np.asarray(shown) * brightness).astype(np.uint8)
    for panel in axes.flat:
        panel.imshow(pixels, extent=(0, width, height, 0), interpolation="bilinear")
        panel.set(xlim=(-_MARGIN * width, (1 + _MARGIN) * width), ylim=((1 + _MARGIN) * height, -_MARGIN * height))
        panel.set(xticks=[], yticks=[], facecolor="0.2" if brightness < 1 else "0.93")
        for spine in panel.spines.values():
            spine.set_visible(False)
    return figure, axes


def draw_points(panel: Axes, points: Tensor, weights: Tensor, levels: Tensor, size, scale: Normalize) -> None:
    """Draw points coloured by weight, the strongest on top, with the marker of their level.

    Args:
        panel: the axes to draw on.
        points: `[N, 2]`, (x, y) in [0, 1] of the picture.
        weights: `[N]`, the points' weights.
        levels: `[N]`, the points' levels.
        size: (width, height) of the picture.
        scale: maps weights to [0, 1].
    """
    at, weight, level_of = (t.detach().float().cpu().numpy() for t in (points, weights, levels))
    at = at * np.asarray(size)
    shade = np.ma.getdata(scale(weight)).clip(0, 1)
    bands = np.minimum((shade * 8).astype(int), 7)  # one call draws all markers of a level, so bands keep the order
    for band in range(8):
        for level in np.unique(level_of).astype(int):
            here = (bands == band) & (level_of == level)
            order = weight[here].argsort(kind="stable")
            x, y = at[here][order].T
            panel.scatter(
                x,
                y,
                c=weight[here][order],
                s=10 + 3 * level + 14 * shade[here][order],
                marker=MARKERS[level % len(MARKERS)],
                cmap=COLOURS,
                norm=scale,
                alpha=0.75 + 0.2 * band / 7,
                edgecolors="black",
                linewidths=0.3,
                zorder=3 + band / 10,
            )


def zoom(panel: Axes, points: Tensor, size: tuple[int, int]) -> None:
    """Show the region around some points, in the picture's proportions and not far beyond its edges.

    Args:
        panel: the axes of a picture.
        points: `[N, 2]`, (x, y) in [0, 1] of the picture.
        size: (width, height) of the picture.
    """
    points = points.detach().float().cpu().clamp(-_MARGIN, 1 + _MARGIN)
    low, high = points.amin(0), points.amax(0)
    side = min(float((high - low).amax().clamp(min=0.1)) * 1.2, 1 + 2 * _MARGIN)
    edge = side / 2 - _MARGIN
    x, y = ((low + high) / 2).clamp(min(edge, 0.5), max(1 - edge, 0.5)).tolist()
    panel.set(xlim=((x - side / 2) * size[0], (x + side / 2) * size[0]))
    panel.set(ylim=((y + side / 2) * size[1], (y - side / 2) * size[1]))


def draw_box(panel: Axes, box: Sequence[float] | Tensor, size, colour="white", width: float = 1.6, **options) -> None:
    """Draw a box cxcywh in [0, 1] of a picture of (width, height), outlined in black to show on any background."""
    cx, cy, w, h = (float(v) * side for v, side in zip(box, (*size, *size)))
    for line, tone in ((width + 1.4, "black"), (width, colour)):
        corner = (cx - w / 2, cy - h / 2)
        panel.add_patch(Rectangle(corner, w, h, fill=False, edgecolor=tone, linewidth=line, zorder=5, **options))


def draw_cross(panel: Axes, point: Sequence[float] | Tensor, size, colour="#39ff14") -> None:
    """Draw a cross at (x, y) in [0, 1] of a picture of (width, height)."""
    x, y = (float(v) * side for v, side in zip(point, size))
    for edge, tone in ((2.8, "black"), (1.3, colour)):
        panel.plot([x], [y], "+", color=tone, markersize=9, markeredgewidth=edge, zorder=6)


def colour_bar(figure: Figure, axes, scale: Normalize, label: str, colours=COLOURS) -> None:
    """Draw one colour bar for all panels."""
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, shrink=0.9, aspect=30, pad=0.01)
    bar.set_label(label, fontsize="small")
    bar.ax.tick_params(labelsize="x-small")


def legend(figure: Figure, keys: Sequence[Line2D], columns: int = 10) -> None:
    """Explain marks and lines below the panels."""
    figure.legend(
        handles=list(keys), loc="outside lower center", ncols=min(columns, len(keys)), fontsize="small",
        facecolor="0.85", edgecolor="none", columnspacing=1.2, handletextpad=0.4, borderpad=0.3,
    )  # fmt: skip


def level_keys(levels: Sequence[int]) -> list[Line2D]:
    """The legend's entries for the markers of levels."""
    return [
        Line2D([], [], linestyle="", marker=MARKERS[i % len(MARKERS)], color="0.25", markersize=6, label=f"level {i}")
        for i in levels
    ]


def cross_key(label: str, colour: str = "#39ff14") -> Line2D:
    """The legend's entry for a cross."""
    return Line2D([], [], linestyle="", marker="+", color=colour, markersize=9, markeredgewidth=2, label=label)


def box_key(label: str, colour: str = "white") -> Line2D:
    """The legend's entry for a box."""
    return Line2D(
        [], [], linestyle="", marker="s", markersize=8, markerfacecolor="0.5", markeredgecolor=colour,
        markeredgewidth=1.6, label=label,
    )  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG with at most 20,000 pixels a side."""
    save_figure(figure, path, min(_DPI, _LARGEST / max(figure.get_size_inches())))
