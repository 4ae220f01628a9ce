"""Detectors that were recorded are built anew, timed side by side, and drawn."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from models.detector import DeformableDETR
from scripts.bench import frontier, torchvision_models
from scripts.bench.torchvision_models import TorchvisionDetector
from tests.test_presets import SMALL, arguments
from util import cli
from util.config import Config

PRESET = str(Path(__file__).resolve().parents[3] / "configs" / "finetune_small.yaml")


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision_models, "WIDTH", 64)
    config = asdict(cli.parse(Config, ["--config", PRESET, *arguments(SMALL)], "test"))
    common = {"config": config, "logs": [], "looks": [], "steps": 30, "cpu_seconds": 90.0}
    ours = {"name": "ours", "final": {"AP": 0.5, "AP50": 0.75}, "settings": {}}
    theirs = {"name": "fcos", "final": {"AP": 0.25, "AP50": 0.5}}
    theirs["settings"] = {"detector": "fcos", "rois": 8, "proposals": 10}
    files = [tmp_path / "ours.json", tmp_path / "fcos.json"]
    for file, record in zip(files, (ours, theirs)):
        file.write_text(json.dumps(common | record))
    return files


def test_the_detector_of_a_record(records):
    ours, theirs = (frontier.build(json.loads(file.read_text())) for file in records)
    assert isinstance(ours, DeformableDETR) and ours.position.level_embed.shape[1] == SMALL["model.d_model"]
    assert isinstance(theirs, TorchvisionDetector) and type(theirs.detector).__name__ == "FCOS"


def test_table_and_picture(records, tmp_path, capsys):
    png = tmp_path / "frontier.png"
    assert frontier.main([*map(str, records), "--size", "48", "48", "--repeats", "1", "--png", str(png)]) == 0
    rows = [line.split("|")[1:7] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in row] for row in rows][1:] == [
        ["ours", "1", "30", "1.5", "0.500", "0.750"],
        ["fcos", "1", "30", "1.5", "0.250", "0.500"],
    ]
    assert Image.open(png).size[0] > 500


def test_a_run_that_has_not_ended_is_named(records, tmp_path, capsys):
    record = json.loads(records[0].read_text())
    del record["final"]
    records[0].write_text(json.dumps(record))
    with pytest.raises(SystemExit) as stop:
        frontier.main([str(records[0]), "--png", str(tmp_path / "x.png")])
    assert stop.value.code == 2 and "has not ended" in capsys.readouterr().err
