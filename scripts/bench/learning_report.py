"""Tables and a picture of the runs that `learning.py` and `torchvision_detectors.py` have recorded."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.errors.tide import TYPES
from scripts.bench.timing import markdown_table
from util.errors import UserError
from util.fonts import save_figure

Points = list[tuple[int, float | None]]
PARTS = ("backbone", "neck", "encoder", "queries", "decoder", "heads")  # whose gradient norms are drawn
COLUMNS = 4


def read_records(files: Iterable[Path]) -> dict[str, list[dict]]:
    """The records of runs by name, in the order of the files.

    Raises:
        UserError: a file that is not there, or no record of a run.
    """
    by_name: dict[str, list[dict]] = {}
    for file in files:
        try:
            record = json.loads(file.read_text())
        except OSError as error:
            raise UserError(f"'{file}' cannot be read: {error.strerror}") from None
        except ValueError:
            record = None
        if not isinstance(record, dict) or not {"name", "logs", "looks"} <= set(record):
            raise UserError(f"'{file}' is no record of a run; give files that --json of learning.py has written")
        by_name.setdefault(record["name"], []).append(record | {"file": str(file)})
    return by_name


def tables(by_name: dict[str, list[dict]]) -> str:
    """Markdown: the final figures by name, and the AP50 that each kind of error costs; means ± sample deviation.

    Raises:
        UserError: a run has not ended.
    """
    for record in (r for records in by_name.values() for r in records):
        if "final" not in record:
            raise UserError(f"the run of '{record['file']}' has not ended, so it has no final figures; leave it out")
    first = next(iter(by_name.values()))
    unit = mean(r["ms_per_step"] for r in first)
    rows, errors = [], []
    for name, records in by_name.items():
        finals = [r["final"] for r in records]
        steps = sorted({r["steps"] for r in records})
        row = [name, str(len(records)), "-".join(str(n) for n in dict.fromkeys((steps[0], steps[-1])))]
        row += [spread([f.get(k) for f in finals]) for k in ("AP", "AP50", "AP_small", "proposal_recall")]
        layers = [(f.get("instability") or {}).get("between_layers") for f in finals]
        step_ms = mean(r["ms_per_step"] for r in records)
        rows.append([*row, spread(layers), f"{step_ms / unit:.2f}", f"{mean(r['seconds'] for r in records):.0f}"])
        errors.append([name, *(spread([f["errors"][kind]["ap50_lost"] for f in finals]) for kind in TYPES)])
    head = ["", "runs", "steps", "AP", "AP50", "AP small", "proposal recall", "instability of layers"]
    head += [f"ms/step of '{next(iter(by_name))}'", "training s"]
    return "\n\n".join(
        [markdown_table(head, rows), "AP50 lost by kind of error:", markdown_table(["", *TYPES], errors)]
    )


def spread(values: Sequence[float | None]) -> str:
    """Mean ± sample deviation of what there is; a dash if there is nothing."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    return f"{mean(known):.3f}" + (f" ± {stdev(known):.3f}" if len(known) > 1 else "")


def plot(by_name: dict[str, list[dict]], file: Path) -> None:
    """Draw a line for each name in every panel that has points: the mean of its runs in a band of one deviation."""
    panels: list[tuple[str, Callable[[dict], Points], dict[str, Any]]] = [
        ("AP50", lambda r: looks(r, "AP50"), {"ylim": (0, None)}),
        ("AP", lambda r: looks(r, "AP"), {"ylim": (0, None)}),
        ("proposal recall at IoU 0.5", lambda r: looks(r, "proposal_recall"), {}),
        ("instability between layers", lambda r: looks(r, "instability", "between_layers"), {"ylim": (0, None)}),
        ("instability between looks", lambda r: looks(r, "instability", "between_looks"), {"ylim": (0, None)}),
        ("loss of the last decoder layer", last_layer_loss, {"yscale": "log"}),
        *((f"gradient norm: {p}", lambda r, p=p: norms(r, p), {"yscale": "log"}) for p in PARTS),
    ]
    drawn = [p for p in panels if any(v is not None for rs in by_name.values() for r in rs for _, v in p[1](r))]
    rows = -(-len(drawn) // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 0.5 + 2.5 * max(1, rows)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(max(1, rows), COLUMNS, squeeze=False).flat)
    for axes, (title, points, settings) in zip(grid, drawn):
        for number, records in enumerate(by_name.values()):
            _draw(axes, [points(record) for record in records], f"C{number}")
        axes.set(xlabel="step", **settings)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    for axes in grid[len(drawn) :]:
        axes.remove()
    handles = [
        axes.plot([], [], color=f"C{i}", label=f"{name} ({len(records)})")[0]
        for axes in grid[:1]
        for i, (name, records) in enumerate(by_name.items())
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False)
    save_figure(figure, file, dpi=110)


def _draw(axes: Axes, runs: Sequence[Points], colour: str) -> None:
    """The mean over runs at each step, and one sample deviation about it where there are several."""
    steps = mean_by_step(runs)
    if not steps:
        return
    xs, means, deviations = zip(*steps)
    axes.plot(xs, means, color=colour, linewidth=1.4, marker="o" if len(xs) < 20 else "", markersize=3)
    if any(deviations):
        low, high = ([m + sign * d for m, d in zip(means, deviations)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)


def mean_by_step(runs: Sequence[Points]) -> list[tuple[int, float, float]]:
    """(step, mean, sample deviation) of several runs; steps that not every run with points has are left out."""
    known = [{step: v for step, v in points if v is not None} for points in runs]
    known = [points for points in known if points]
    shared = set.intersection(*(set(points) for points in known)) if known else set()
    found = []
    for step in sorted(shared):
        values = [points[step] for points in known]
        found.append((step, mean(values), stdev(values) if len(values) > 1 else 0.0))
    return found


def looks(record: dict, *keys: str) -> Points:
    """A figure of every look."""
    points: Points = []
    for look in record["looks"]:
        value: Any = look
        for key in keys:
            value = (value or {}).get(key)
        points.append((look["step"], value))
    return points


def norms(record: dict, part: str) -> Points:
    """The gradient norm of a part at every log."""
    return [(log["step"], (log.get("grad_norms") or {}).get(part)) for log in record["logs"]]


def last_layer_loss(record: dict) -> Points:
    """The losses of the decoder's last layer together, at every log; of a detector without layers, all losses.

    Sums over all groups cannot be compared between configurations that train with other groups.
    """
    points: Points = []
    for log in record["logs"]:
        losses = log["losses"]
        layers = [int(name.rpartition(".")[2]) for name in losses if "/decoder." in name]
        if layers:
            points.append((log["step"], sum(v for k, v in losses.items() if k.endswith(f"/decoder.{max(layers)}"))))
        else:
            points.append((log["step"], losses.get("loss")))
    return points
