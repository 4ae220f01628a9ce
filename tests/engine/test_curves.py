"""A run's curves: every loss and figure is drawn, whatever it is called."""

import json

from matplotlib.axes import Axes
from PIL import Image

from engine.curves import curves_of, figures_of, plot_run

TRAIN = {
    "kind": "train", "step": 1, "lr": 1e-4, "loss": 3.0, "class/decoder.0": 1.0, "class/decoder.1": 0.9,
    "renamed/decoder.0": 0.5, "renamed/decoder.1": 0.4, "class/proposals": 0.2, "mimic/regions": 0.1, "grad_norm": 2.0,
}  # fmt: skip
EVAL = {"kind": "eval", "step": 2, "epoch": 1, "AP": 0.1, "AP50": 0.3, "AP75": 0.05, "AR_1": 0.2, "per_class": {}}


def test_each_loss_of_each_group_by_its_last_layer():
    assert list(curves_of(TRAIN)) == ["class/decoder.1", "renamed/decoder.1", "class/proposals", "mimic/regions"]
    styles = curves_of(TRAIN)
    assert styles["class/decoder.1"] == styles["renamed/decoder.1"] != styles["class/proposals"]
    assert len(set(styles.values())) == 3
    eleven = {f"l1/decoder.{i}": 1.0 for i in range(11)}
    assert list(curves_of(eleven)) == ["l1/decoder.10"]  # by number, not by letter


def test_the_first_figures():
    assert figures_of(EVAL) == ["AP", "AP50", "AP75"]
    assert figures_of({"kind": "eval", "step": 2, "epoch": 1, "F1": 0.1}) == ["F1"]


def test_a_picture_with_a_line_for_each(tmp_path, monkeypatch):
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: drawn.append((k["label"], a)) or plot(self, *a, **k))
    gap = {**TRAIN, "step": 2, "loss": None}  # fp16 steps that overflowed have no mean
    lines = [TRAIN, gap, {**TRAIN, "step": 3}, EVAL, {**EVAL, "kind": "eval_ema", "AP": 0.2}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    path = plot_run(tmp_path)
    assert Image.open(path).size[0] > 500
    labels = [label for label, _ in drawn]
    assert labels[:3] == ["loss", "class of decoder.1", "renamed of decoder.1"]
    assert labels[-3:] == ["AP of the EMA", "AP50 of the EMA", "AP75 of the EMA"] and len(labels) == 11
    assert drawn[0][1] == ((1, 3), (3.0, 3.0))


def test_a_run_with_nothing_but_an_evaluation(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(EVAL))
    assert plot_run(tmp_path).is_file()
