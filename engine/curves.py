"""A run's curves, from its metrics.jsonl."""

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_run(folder: str | Path) -> Path:
    """Draw loss and AP over the steps of a run.

    Args:
        folder: of the run.

    Returns:
        The picture, `curves.png` in the folder.
    """
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)

    if training:  # else the run went on in a new folder with nothing but an evaluation left
        left.plot([t["step"] for t in training], [t["loss"] for t in training], label="loss")
        last = max((k for k in training[-1] if k.startswith("class/decoder.")), key=lambda k: int(k.rsplit(".", 1)[1]))
        layer = last.split("/")[1]
        names = [f"class/{layer}", f"l1/{layer}", f"giou/{layer}", *(n for n in training[-1] if n.startswith("mimic/"))]
        for name in names:
            left.plot([t["step"] for t in training], [t[name] for t in training], label=name.replace("/", " of "))
        left.set(xlabel="step", yscale="log", title="training losses")

    for kind, style, suffix in (("eval", "-", ""), ("eval_ema", "--", " of the EMA")):
        scores = [line for line in lines if line["kind"] == kind]
        for name, colour in zip(("AP", "AP50", "AP75") if scores else (), ("C0", "C1", "C2")):
            steps, values = [s["step"] for s in scores], [s[name] for s in scores]
            right.plot(steps, values, style, color=colour, marker="o", markersize=3, label=name + suffix)
    right.set(xlabel="step", ylim=(0, 1), title="validation")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path = Path(folder) / "curves.png"
    figure.savefig(path, dpi=120)
    return path
