"""The benchmark of the work around the operator runs, and compares two checkouts."""

import json
import re
from pathlib import Path

import pytest

from scripts.bench import scale, scale_tasks

ROOT = Path(__file__).parents[3]


def test_every_row_is_a_task():
    assert {task for _, task, *_ in (*scale.ROWS, *scale.SMALL)} == set(scale_tasks.TASKS)


@pytest.mark.slow
def test_a_small_run_compares_two_checkouts(tmp_path, capfd):
    file = tmp_path / "scale.json"
    assert scale.main(["--small", "--before", str(ROOT), "--json", str(file)]) == 0
    out = capfd.readouterr().out
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| [^|]+ \| [\d,.e-]+ \| [\d,.e-]+ \| [\d.]+ \|$", out, re.MULTILINE)
    report = json.loads(file.read_text())
    assert set(rows) == {entry["task"] for entry in report} == set(scale_tasks.TASKS) - {"quickstart"}
    scored = next(entry["rounds"] for entry in report if entry["task"] == "scoring")
    assert scored["before"]["AP"] == scored["now"]["AP"]


@pytest.mark.slow
def test_training_on_shapes_is_measured():
    found = scale_tasks.quickstart(str(ROOT), "1")
    assert found["seconds"] > 0 and found["images/s"] == pytest.approx(scale_tasks.TRAIN / found["clock"])
