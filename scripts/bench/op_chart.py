"""The report of the benchmark of the operator as a chart."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from scripts.bench.op_contenders import label
from scripts.bench.timing import figure

COLOURS = {"cuda": "#2e7d32", "cpu": "#2166ac", "package": "#e08214", "reference": "#8c8c8c"}  # from the top down
DIRECTIONS = ("forward", "backward")
FLOOR: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2}


def plot(report: dict, path: Path) -> None:
    """Draw forward and backward times as bars, a row of axes for each case, with the floor as a line.

    Args:
        report: the content of the JSON file; the overhead is left out unless it is the only case.
        path: the `.png` file to write.
    """
    cases = [c for c in report["cases"] if c["case"] != "overhead"] or report["cases"]
    names = [n for n in COLOURS if n in report["machine"]["backends"]]
    picture = Figure(figsize=(11, 1.1 + len(cases) * (0.65 + 0.36 * len(names))), layout="constrained")
    FigureCanvasAgg(picture)
    grid = picture.subplots(len(cases), 2, squeeze=False, sharex="col")
    for case, axes_of_case in zip(cases, grid):
        for direction, axes in zip(DIRECTIONS, axes_of_case):
            _draw_panel(axes, case, direction, names)
    for direction, column in zip(DIRECTIONS, grid.T):
        _share_scale(column, cases, direction)
    about, settings = report["machine"], report["settings"]
    threads = f", {about['threads']} threads" if about["device"] == "cpu" else ""
    small = ", small maps (--quick)" if settings["quick"] else ""
    where = f"{about['name']}{threads}, torch {about['torch']}, batch {settings['batch']}{small}"
    picture.suptitle(f"ms_deform_attn on {where}", fontsize=11)
    handles: list[Artist] = [Patch(color=COLOURS[n], label=label(n)) for n in names]
    handles.append(Line2D([], [], **FLOOR, label="floor: compulsory bytes, copied"))
    picture.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    picture.savefig(path, dpi=120)


def _draw_panel(axes: Axes, case: dict, direction: str, names: Sequence[str]) -> None:
    """The bars of one case and direction, and its floor."""
    rows = {row["contender"]: row for row in case["contenders"]}
    for i, name in enumerate(names):
        numbers = rows[name].get(direction)
        if numbers and numbers["seconds"] > 0:
            ms, times = numbers["seconds"] * 1e3, numbers["reference_ratio"]
            axes.barh(i, ms, color=COLOURS[name], height=0.72)
            beside = f"{figure(ms)} ms" + (f"  ({times:.1f}x)" if times and name != "reference" else "")
            axes.annotate(beside, (ms, i), (4, 0), textcoords="offset points", va="center", fontsize=9)
        else:
            words = rows[name]["failure"] or "within noise"
            axes.text(0.02, i, words, va="center", fontsize=9, transform=axes.get_yaxis_transform())
    floors = [n["floor_seconds"] for r in rows.values() if "floor_seconds" in (n := r.get(direction, {}))]
    if floors:
        axes.axvline(max(floors) * 1e3, **FLOOR)
    axes.set_yticks(range(len(names)), [label(n) if direction == "forward" else "" for n in names])
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_title(f"{case['case']}, {case['dtype']}: {direction}", fontsize=10, loc="left")
    axes.grid(axis="x", which="major", alpha=0.3)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _share_scale(column: Sequence[Axes], cases: Sequence[dict], direction: str) -> None:
    """Give all panels of a direction the same scale, so that bars can be compared; logarithmic for a wide range."""
    drawn = [r[direction] for c in cases for r in c["contenders"] if r.get(direction, {}).get("seconds", 0) > 0]
    ms = [v * 1e3 for n in drawn for v in (n["seconds"], n.get("floor_seconds", n["seconds"]))]
    wide = bool(ms) and max(ms) > 20 * min(ms)
    for axes in column:
        if wide:
            axes.set_xscale("log")
            axes.set_xlim(10 ** math.floor(math.log10(min(ms) * 0.8)), max(ms) * (max(ms) / min(ms)) ** 0.35)
        elif ms:
            axes.set_xlim(0, max(ms) * 1.35)
    scale = "ms, log scale" if wide else "ms"
    column[-1].set_xlabel(scale + "; in brackets: times as fast as the reference")
