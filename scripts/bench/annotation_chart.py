"""The report of the benchmark of annotation files as a chart."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"before": "#8c8c8c", "now": "#2166ac"}
PANELS = (("seconds", "to read, processor's seconds"), ("kept", "memory kept, MiB"), ("peak", "most memory, MiB"))


def plot(report: dict, path: Path) -> None:
    """Draw seconds and memory of reading over the number of objects, a line for each checkout.

    Args:
        report: of `scripts/bench/annotations.py`.
        path: the `.png` file to write.
    """
    picture = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(picture)
    for axes, (key, title) in zip(picture.subplots(1, len(PANELS)), PANELS):
        for name, figures in report.items():
            _draw(axes, name, figures["reading"], key)
        axes.set(title=title, xlabel="million objects", xlim=0, ylim=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    picture.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
    picture.savefig(path, dpi=110)


def _draw(axes: Axes, name: str, reading: dict, key: str) -> None:
    sets = {True: [f for file, f in reading.items() if file.startswith("COCO")]}
    sets[False] = [f for file, f in reading.items() if file.startswith("Objects365")]
    for of_coco, figures in sets.items():
        if not figures:
            continue
        x, y = [f["objects"] / 1e6 for f in figures], [f[key] for f in figures]
        label = f"{name}, {'COCO with polygons' if of_coco else 'Objects365, 1/8'}"
        axes.plot(x, y, color=COLOURS[name], marker="o" if of_coco else "s", label=label)
