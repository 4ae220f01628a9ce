"""Pictures of where a backbone's units read (in the style of arXiv 1703.06211, figures 6 and 7, with strengths)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from analysis.looks.canvas import (
    MARKERS,
    box_key,
    colour_bar,
    cross_key,
    draw_box,
    draw_cross,
    draw_points,
    legend,
    panels,
)
from analysis.looks.conv_sampling import ConvLocations

_DARK = 0.75
_FAINTEST = 0.03  # share of a panel's strongest; weaker locations would only hide the picture


@dataclass
class BackboneRow:
    """One row of the picture.

    Attributes:
        label: the text beside the row.
        locations: the locations that the unit reads.
        box: cxcywh in [0, 1] of the picture; panels say how much strength lies in it.
    """

    label: str
    locations: ConvLocations
    box: Sequence[float] | None = None


def backbone_picture(picture: Image.Image, rows: Sequence[BackboneRow], most: int = 500) -> Figure:
    """A row for each backbone or unit, a column for each stage that reads, and one column with all stages.

    A panel shows only its strongest locations, none below 3% of the strongest. Below it stands how many they are, and
    their share of the panel's strength.

    Args:
        picture: the RGB picture.
        rows: the rows to draw.
        most: largest number of locations in a panel.
    """
    stages = sorted({int(stage) for row in rows for stage in row.locations.stages.unique()})
    columns = [[stage] for stage in stages] + ([stages] if len(stages) > 1 else [])
    title = "where a unit of the backbone reads, and how strongly each location moves it"
    figure, axes = panels(picture, len(rows), max(len(columns), 1), title, _DARK, side=3.2, below=1)
    scale = LogNorm(_FAINTEST, 1)
    for panels_of_row, row in zip(axes, rows):
        for panel, column in zip(panels_of_row, columns):
            here = row.locations.where(torch.isin(row.locations.stages, torch.tensor(column)))
            name = f"stage {column[0]}" if len(column) == 1 else "all stages"
            _draw(panel, name, here, row.box, picture.size, most, scale)
        for panel in panels_of_row:
            if row.box is not None:
                draw_box(panel, row.box, picture.size)
            draw_cross(panel, row.locations.unit, picture.size)
        panels_of_row[0].set_ylabel(row.label, fontsize="small")
    colour_bar(figure, axes[:2], scale, "strength, as a share of the panel's strongest")
    ticks = (_FAINTEST, 0.1, 0.3, 1)
    figure.axes[-1].set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    figure.axes[-1].minorticks_off()
    keys = [
        Line2D([], [], ls="", marker=MARKERS[s - 2], color="0.25", markersize=6, label=f"stage {s}") for s in stages
    ]
    boxes = [box_key("box")] if any(row.box is not None for row in rows) else []
    legend(figure, [*keys, cross_key("the unit"), *boxes])
    return figure


def _draw(panel: Axes, name: str, here: ConvLocations, box, size: tuple[int, int], most: int, scale: LogNorm) -> None:
    if not len(here.strength):
        panel.set_title(f"{name}: nothing", fontsize="small")
        return
    shown = here.where(here.strength >= _FAINTEST * here.strength.max()).strongest(most)
    draw_points(panel, shown.points, shown.strength / here.strength.max(), shown.stages - 2, size, scale)
    inside = "" if box is None else f": {here.share_inside(box):.0%} in the box"
    panel.set_title(name + inside, fontsize="small")
    share = float(shown.strength.sum() / here.strength.sum())
    label = f"{len(shown.strength):,} of {len(here.strength):,} locations: {share:.0%}"
    panel.set_xlabel(label, fontsize="x-small")
