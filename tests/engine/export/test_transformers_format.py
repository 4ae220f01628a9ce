"""`export --format transformers`: the pipeline finds what `predict` finds, and what differs is an error."""

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.shapes import draw_scene
from engine.export import beside_transformers, transformers_format
from engine.export.command import export
from engine.predict import load_predictor
from main import main
from models.from_config import build_model
from tests.models.helpers import scramble
from tests.models.test_to_huggingface import model_config
from util.checkpoint_write import save_checkpoint
from util.command_config import ExportConfig
from util.config import ModelConfig
from util.errors import UserError

ROOT = Path(__file__).parents[3]


def checkpoint(path, config: ModelConfig) -> str:
    """A checkpoint of ours with random weights and three classes, which looks at 96 pixels."""
    torch.manual_seed(0)
    model = build_model(config, 3)
    scramble(model)
    names = ("circle", "square", "triangle")
    sections = {"model": asdict(config), "data": {"eval_size": 96, "max_size": 200}, "train": {}}
    categories = [{"label": i, "id": i + 1, "name": name} for i, name in enumerate(names)]
    save_checkpoint(path, {"model": model.state_dict(), "config": sections, "categories": categories, "epoch": 1})
    return str(path)


@pytest.fixture(scope="module")
def one_stage(tmp_path_factory) -> str:
    return checkpoint(tmp_path_factory.mktemp("one_stage") / "last.pth", model_config())


def test_the_pipeline_finds_what_predict_finds(one_stage, tmp_path, capsys):
    assert main(["export", "--format", "transformers", "--checkpoint", one_stage, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "every weight is the same to the bit" in said and "on 3 pictures, largest differences" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    (block,) = re.findall(r"```python3\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    draw_scene(np.random.default_rng(0), 110)[0].save(tmp_path / "photo.jpg")
    exec(block.replace("runs/hub", str(tmp_path)).replace("photo.jpg", str(tmp_path / "photo.jpg")), scope := {})
    theirs, ours = scope["detector"], load_predictor(one_stage, "cpu")
    rng = np.random.default_rng(1)
    for _ in range(3):
        picture = draw_scene(rng, 110)[0]
        expected = ours.describe(ours(picture, threshold=0.0, top_k=100))
        found = theirs(picture, threshold=0.0)
        assert len(found) == len(expected) == 27  # 9 queries, 3 classes
        for a, b in zip(found, expected):
            assert a["label"] == b["name"] and a["score"] == pytest.approx(b["score"], abs=1e-4)
            corners = [a["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
            np.testing.assert_allclose(corners, np.trunc(b["box_xyxy"]), atol=1)  # the pipeline drops fractions


def test_a_folder_that_differs_is_an_error(tmp_path, monkeypatch):
    path = checkpoint(tmp_path / "last.pth", model_config(refinement=True, two_stage=True))
    folder = tmp_path / "folder"
    options = ExportConfig(checkpoint=path, format="transformers", output=str(folder))
    assert "largest differences" in export(options)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def spoiled(*arguments):
        folder = made(*arguments)
        folder.tensors["model.level_embed"][0] += 0.1
        return folder

    made = transformers_format.to_transformers
    monkeypatch.setattr(transformers_format, "to_transformers", spoiled)
    with pytest.raises(UserError, match=r"'position\.level_embed' is not the same when it is read again"):
        export(options)
    monkeypatch.setattr(transformers_format, "_check_weights", lambda source, output: None)
    with pytest.raises(UserError, match="is another detector, and is not kept: beside transformers"):
        export(options)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before  # of the one that was right


def test_without_transformers_the_folder_is_written_and_that_is_said(one_stage, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers_format, "find_spec", lambda name: None)
    said = export(ExportConfig(checkpoint=one_stage, format="transformers", output=str(tmp_path)))
    assert "not compared with transformers, which is not installed" in said and "largest" not in said


@pytest.mark.parametrize("option", [{"fixed": ["480x640"]}, {"operator": "reference"}, {"top_k": 300}])
def test_options_that_a_folder_does_not_keep_are_refused(option, one_stage, tmp_path):
    with pytest.raises(UserError, match=f"--{next(iter(option))} is not kept in a transformers folder"):
        export(ExportConfig(checkpoint=one_stage, format="transformers", output=str(tmp_path), **option))
    assert not list(tmp_path.iterdir())


def test_queries_in_another_order_are_the_same():
    torch.manual_seed(0)
    logits, boxes, order = torch.randn(1, 6, 3), torch.rand(1, 6, 4), torch.randperm(6)
    largest = beside_transformers._of_ranked((logits, logits[:, order]), (boxes, boxes[:, order]))
    assert largest == [0.0, 0.0]
    moved = boxes[:, order].clone()
    moved[0, 2, 1] += 0.01
    largest = beside_transformers._of_ranked((logits, logits[:, order]), (boxes, moved))
    assert largest == [0.0, pytest.approx(0.01, abs=1e-6)]
