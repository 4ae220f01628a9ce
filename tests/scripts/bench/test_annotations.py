"""The benchmark of annotation files runs, and says the same of two checkouts that are one."""

import json
from pathlib import Path

import pytest

from scripts.bench import annotations

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_small_run_compares_two_checkouts(tmp_path):
    file, chart = tmp_path / "annotations.json", tmp_path / "chart.png"
    argv = ["--small", "2000", "--before", str(ROOT), "--folder", str(tmp_path / "files")]
    assert annotations.main([*argv, "--output", str(file), "--chart", str(chart)]) == 0
    before, now = (json.loads(file.read_text())[name] for name in ("before", "now"))
    assert {name: f["objects"] for name, f in before["reading"].items()} == {
        name: f["objects"] for name, f in now["reading"].items()
    }
    assert set(now["loading"]) == set(annotations.METHODS)
    assert all(figure > 0 for figure in now["first_step"].values())
    assert chart.read_bytes().startswith(b"\x89PNG")
