"""A run's curves, from its metrics.jsonl."""

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from util.fonts import save_figure

STYLES = ("-", "--", ":", "-.")  # of the groups of losses


def plot_run(folder: str | Path) -> Path:
    """Draw loss and AP over the steps of a run.

    Args:
        folder: the run's folder.

    Returns:
        The picture, `curves.png` in the folder.
    """
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)

    if training:  # else the run went on in a new folder with nothing but an evaluation left
        _draw(left, training, "loss", linewidth=2)
        for name, style in curves_of(training[-1]).items():
            _draw(left, training, name, linestyle=style)
        left.set(xlabel="step", yscale="log", title="training losses")

    for kind, style, suffix in (("eval", "-", ""), ("eval_ema", "--", " of the EMA")):
        scores = [line for line in lines if line["kind"] == kind]
        for number, name in enumerate(figures_of(scores[-1]) if scores else ()):
            _draw(right, scores, name, suffix, linestyle=style, color=f"C{number}", marker="o", markersize=3)
    right.set(xlabel="step", ylim=(0, 1), title="validation")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    path = Path(folder) / "curves.png"
    save_figure(figure, path, dpi=120)
    return path


def curves_of(line: dict) -> dict[str, str]:
    """Choose the losses to draw, and their styles: every loss of every group, in its last layer.

    Losses are told by their names alone, `LOSS/GROUP` or `LOSS/GROUP.LAYER`, so that a new one is drawn, too.

    Args:
        line: a line of metrics.jsonl.
    """
    last: dict[tuple[str, str], int] = {}
    for key in line:
        loss, _, part = key.partition("/")
        group, _, layer = part.rpartition(".")
        if part and layer.isdecimal():
            last[loss, group] = max(int(layer), last.get((loss, group), 0))
        elif part:
            last[loss, part] = -1
    styles = dict(zip(dict.fromkeys(group for _, group in last), STYLES * len(last)))
    return {
        f"{loss}/{group}" + (f".{layer}" if layer >= 0 else ""): styles[group] for (loss, group), layer in last.items()
    }


def figures_of(line: dict, count: int = 3) -> list[str]:
    """The first figures of an evaluation, in their order: AP, AP50, AP75."""
    return [k for k, v in line.items() if isinstance(v, int | float) and k not in ("step", "epoch")][:count]


def _draw(axes: Axes, lines: list[dict], name: str, suffix: str = "", **style) -> None:
    """Draw a figure over the steps; leave out the steps at which it was not a number."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    axes.plot(*zip(*points), label=name.replace("/", " of ") + suffix, **style)
