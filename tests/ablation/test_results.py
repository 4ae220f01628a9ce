"""Means, deviations and differences against hand-worked values; table, CSV and plots."""

import csv
import io
import json
import math

import pytest
from PIL import Image

from ablation.charts import plot_curves, plot_scores
from ablation.costs import Cost, DataSize, estimate, typical_size
from ablation.grid import cells_of, variants_of
from ablation.records import Record
from ablation.results import Spread, markdown, results_csv, rows_of
from ablation.sweep import Sweep, duration
from util.config import Config


def sweep_of(grid, scores, seeds=3, named=None):
    """Cells, and records with the AP that `scores` gives by cell name (a text is an error)."""
    cells = cells_of(Config(), variants_of(grid, named or {}), seeds)
    records = {}
    for cell, ap in zip(cells, scores):
        if isinstance(ap, str):
            records[cell.name] = Record("failed", {}, error=ap)
        elif ap is not None:
            figures = {"AP": ap, "AP50": ap + 0.2, "AP75": 0.1, "AP_small": 0.1, "AP_medium": 0.2, "AP_large": -1.0}
            records[cell.name] = Record("done", {}, figures, "", [(0.0, 60.0), (100.0, 30.0)])
    return cells, records


def test_spread_by_hand():
    spread = Spread.of([1.0, 2.0, 4.0])
    assert spread.mean == pytest.approx(7 / 3)
    assert spread.deviation == pytest.approx(math.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2))
    assert Spread.of([5.0]).text() == "5.0" and Spread.of([]) is None
    assert Spread.of([0.1, 0.3]).text(100, sign=True) == "+20.0 ± 14.1"


def test_rows_pair_differences_by_seed():
    # Cells go seed by seed: (K=1, K=2), (K=1, K=2), (K=1, K=2). The third run of K=1 failed.
    cells, records = sweep_of({"model.num_points": [1, 2]}, [0.30, 0.35, 0.40, 0.47, "out of memory", 0.90])
    one, two = rows_of(cells, records, {})
    assert one.figures["AP"].mean == pytest.approx(0.35) and one.figures["AP"].count == 2 and one.failed == 1
    assert two.figures["AP"].mean == pytest.approx((0.35 + 0.47 + 0.90) / 3) and two.done == 3
    # Only the seeds that both have: +0.05 and +0.07.
    assert two.difference.mean == pytest.approx(0.06) and two.difference.count == 2
    assert two.difference.deviation == pytest.approx(math.sqrt(2 * 0.01**2))
    assert one.difference is None and one.error == "out of memory"
    assert two.minutes.mean == pytest.approx(1.5)  # both attempts
    assert "AP_large" not in two.figures  # nothing to score is no zero


def test_the_markdown_table():
    cells, records = sweep_of({"model.num_points": [1, [4, 2]]}, [0.30, 0.35, 0.40, None, 0.5, "no | memory"])
    costs = {"num_points=1": Cost(2_000_000, 3_000_000, 5e9, (96, 128), None, 0.0123, 7 * 2**20)}
    text = markdown(rows_of(cells, records, costs))
    header, rule, first, second, *rest = text.splitlines()
    cells_of_line = [c.strip() for c in first.strip("|").split("|")]
    columns = dict(zip([c.strip() for c in header.strip("|").split("|")], cells_of_line))
    assert columns["num_points"] == "1" and columns["AP"] == "40.0 ± 10.0" and columns["Δ AP"] == "-"
    assert columns["params M"] == "2.00" and columns["GFLOPs"] == "5.00" and columns["latency ms"] == "12.3"
    assert columns["peak MiB"] == "7" and columns["minutes"] == "1.5 ± 0.0" and columns["APl"] == "-"
    assert "| 4,2 " in second and "| 1, 1 failed, 1 left" in second and "+5.0 " in second
    assert list(columns)[1:8] == ["AP", "Δ AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [columns[name] for name in ("AP50", "AP75", "APs", "APm")] == [
        *("60.0 ± 10.0", "10.0 ± 0.0", "10.0 ± 0.0", "20.0 ± 0.0")
    ]
    assert set(rule) == {"|", "-"} and "96x128" in text
    assert "- `num_points=4-2`: no | memory" in rest


def test_named_variants_keep_their_names_in_the_table():
    named = {"plain": {}, "refined": {"model.refinement": True}}
    text = markdown(rows_of(*sweep_of({}, [0.1, 0.2], 1, named), {}))
    assert text.startswith("| variant ") and "| plain " in text and "| refined " in text


def test_the_csv_has_a_line_for_every_run():
    cells, records = sweep_of({"model.num_points": [1, 2]}, [0.3, "a, b", 0.4, None], 2)
    lines = list(csv.DictReader(io.StringIO(results_csv(cells, records, {"num_points=1": Cost(flops=5.0)}))))
    assert [line["status"] for line in lines] == ["done", "failed", "done", "left"]
    assert [line["seed"] for line in lines] == ["42", "42", "43", "43"]
    assert lines[0]["AP"] == "0.3" and lines[0]["AP_large"] == "" and lines[0]["flops"] == "5.0"
    assert lines[1]["error"] == "a, b" and lines[1]["model.num_points"] == "2" and lines[3]["AP"] == ""
    assert list(lines[0])[4:10] == ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]


def test_the_csv_has_whatever_figures_runs_have():
    cells, records = sweep_of({"model.num_points": [1, 2]}, [0.3, 0.4], 1)
    records[cells[1].name].figures |= {"AP60": 0.25}
    lines = list(csv.DictReader(io.StringIO(results_csv(cells, records, {}))))
    assert [line["AP60"] for line in lines] == ["", "0.25"]


@pytest.mark.parametrize(
    "grid, named",
    [
        ({"model.num_points": [1, 2]}, None),
        ({"model.num_points": [[1, 2], 3]}, None),
        ({"model.num_points": [1, 2], "model.num_heads": [2, 4]}, None),
        ({"model.num_points": [1, 2], "model.num_heads": [2, 4], "model.refinement": [True, False]}, None),
        ({}, {"one": {"model.num_points": 1}, "two": {"model.num_points": 2}}),
        ({"model.num_points": [1, 2]}, {"one": {}, "two": {"model.refinement": True}}),
    ],
)
def test_plots_show_every_variant(grid, named, tmp_path, monkeypatch):
    shown = []
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: shown.append(self))
    count = len(variants_of(grid, named or {}))
    rows = rows_of(*sweep_of(grid, [0.1 + 0.01 * i for i in range(2 * count)], 2, named), {})
    plot_scores(rows, list(grid), tmp_path / "s.png")
    axes = [a for a in shown[0].axes if a.get_visible() and a.get_label() != "<colorbar>"]
    texts = {t.get_text() for a in axes for t in a.texts}
    if len(grid) > 1 and not named:
        assert len(axes) == (2 if len(grid) == 3 else 1)
        assert {row.figures["AP"].text(100).replace(" ± ", "\n± ") for row in rows} == texts
    elif named:
        assert [t.get_text() for t in axes[0].get_yticklabels()] == [row.variant.name for row in rows]
    else:
        heights = axes[0].lines[0].get_ydata() if axes[0].lines else []
        assert list(heights) == pytest.approx([100 * row.figures["AP"].mean for row in rows])


def test_nothing_is_drawn_of_nothing(tmp_path):
    cells, records = sweep_of({"model.num_points": [1, 2]}, ["a", "b"], 1)
    assert plot_scores(rows_of(cells, records, {}), ["model.num_points"], tmp_path / "s.png") is None
    assert plot_curves(cells, tmp_path, tmp_path / "c.png") is None
    assert not list(tmp_path.iterdir())


def test_curves_of_runs_that_have_got_unequally_far(tmp_path):
    cells, _ = sweep_of({"model.num_points": [1, 2]}, [], 2)
    for i, cell in enumerate(cells):
        folder = tmp_path / cell.name
        folder.mkdir(parents=True)
        lines = [{"kind": "train", "step": 10 * s, "loss": 5.0 / s} for s in range(1, 4 + i)]
        lines[1]["loss"] = None  # as logs have what is not finite
        lines += [{"kind": "eval", "step": 20, "AP": 0.1 * i, "epoch": 1}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Image.open(plot_curves(cells, tmp_path, tmp_path / "c.png")) as picture:
        assert picture.width > 800


def test_the_image_that_costs_are_counted_for():
    assert typical_size([(100, 200), (10, 10), (300, 600)], 50, 1000) == (50, 100)
    assert typical_size([(480, 640)], 800, 1333) == (800, 1066)
    assert typical_size([(100, 1000)], 50, 200) == (20, 200)
    assert typical_size([], 300, 1000) == (300, 400)


def test_the_estimate_by_hand():
    config = Config()
    config.train.epochs, config.train.batch_size, config.train.eval_every = 3, 4, 2
    data = DataSize(classes=3, train_images=10, val_images=6, train_objects=20, val_sizes=[])
    # Two steps of four images in each of three epochs; two evaluations of six images at a third of a step.
    assert estimate(config, Cost(step=0.5), data) == pytest.approx(6.0 + 0.5 * (24 + 2 * 6 / 3))
    assert estimate(config, Cost(), data) is None


def test_the_plan_counts_what_is_left(tmp_path):
    cells, records = sweep_of({"model.num_points": [1, 2, 4]}, [0.3, "x", None, 0.4], 2)
    costs = {c.variant.name: Cost(1000, 1000, 1e9, (64, 64), 0.5) for c in cells}
    costs["num_points=4"] = Cost(failure="K is too much")
    sweep = Sweep(tmp_path, cells, ["model.num_points"], records, costs)
    plan = sweep.plan(dict.fromkeys(costs, DataSize(3, 40, 10, 80, [])), 2, "cpu")
    assert [c.name for c in sweep.left] == ["num_points=2/seed42", "num_points=2/seed43"]
    assert "2 of 6 runs to do (1 begun before), 2 at once" in plan and "2, 2 done" in plan
    assert "num_points=4 cannot be built: K is too much" in plan and "impossible" in plan


def test_a_finished_run_stays_finished_when_its_variant_can_no_longer_be_built(tmp_path):
    cells, records = sweep_of({"model.num_points": [1]}, [0.3], 2)
    sweep = Sweep(tmp_path, cells, [], records, {"num_points=1": Cost(failure="out of memory")})
    sweep.refuse_impossible()
    assert [records[c.name].status for c in cells] == ["done", "failed"] and sweep.left == []


def test_heat_maps_sort_numbers(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    shown = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: shown.append(self))
    grid = {"model.num_points": [4, 1, 2], "model.num_heads": [8, 4]}
    plot_scores(rows_of(*sweep_of(grid, [0.1 * i for i in range(6)], 1), {}), list(grid), tmp_path / "s.png")
    axes = shown[0].axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "2", "4"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["4", "8"]
    at = {tuple(map(int, t.get_position())): t.get_text() for t in axes.texts}
    assert at[1, 2] == "0.0" and at[0, 0] == "30.0"  # (K 4, M 8) is the first, (K 1, M 4) the fourth


def test_durations():
    texts = [duration(s) for s in (5, 89, 300, 5000, 3 * 3600, 3 * 86400)]
    assert texts == ["5 s", "89 s", "5.0 min", "83 min", "3.0 h", "3.0 days"]


def test_the_time_that_is_left_is_judged_by_what_has_ended(tmp_path, monkeypatch):
    """Two at once; one has ended, in twice its estimate; another has been going on for 100 s."""
    cells, records = sweep_of({"model.num_points": [1, 2, 4, 8]}, [0.3], 1)
    sweep = Sweep(tmp_path, cells, ["model.num_points"], records, {})
    sweep.estimates = {c.name: 45.0 for c in cells}  # the first took 60 + 30 s
    monkeypatch.setattr("ablation.records.time.time", lambda: 1100.0)
    records[cells[1].name] = Record("unfinished", {}, attempts=[(0.0, 20.0), (1020.0, None)])
    records[cells[2].name] = Record("failed", {}, error="of an earlier call")
    line = sweep.line(cells[0], records[cells[0].name], [c.name for c in cells], 2)
    assert line == "[1/4] num_points=1/seed42  AP 0.300  AP50 0.500  1.5 min; about 85 s to go"  # (3 * 90 - 100) / 2
    failed = Record("failed", {}, error="no memory")
    assert "FAILED: no memory" in sweep.line(cells[1], failed, [c.name for c in cells], 2)
