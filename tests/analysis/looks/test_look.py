"""`main.py visualize` end to end: what it writes, and a sentence for everything that is not there."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from datasets.shapes import generate
from main import main
from tests.test_main import SMALL

ALL = ("decoder", "heads", "boxes", "encoder", "locations", "gradient", "saliency")


def run(*argv) -> int:
    return main([str(a) for a in argv])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("data") / "shapes", train=4, val=2, size=64)


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def checkpoint(shapes, preset, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    argv = ("--config", preset, "--data.root", shapes, "--train.output", output, "--train.fast_dev_run")
    assert run("train", *argv) == 0
    return output / "fast_dev_run" / "last.pth"


def test_a_picture_with_every_map(checkpoint, shapes, tmp_path, capsys):
    source = shapes / "val2017" / "000001.png"
    argv = ("--checkpoint", checkpoint, "--input", source, "--output", tmp_path, "--device", "cpu", "--cells", 4)
    assert run("visualize", *argv, "--queries", "[3,17]", "--maps", f"[{','.join(ALL)}]", "--bound", 0.3) == 0
    printed = capsys.readouterr().out
    for name in ALL:
        assert f"{name}.png" in printed
        with Image.open(tmp_path / f"{name}.png") as drawn:
            assert min(drawn.size) > 200
    summary = json.loads((tmp_path / "sampling.json").read_text())
    numbers = np.load(tmp_path / "sampling.npz")
    with Image.open(source) as picture:
        assert (summary["width"], summary["height"]) == picture.size
    assert [q["query"] for q in summary["queries"]] == [3, 17] and summary["layers"] == [0, 1]
    for entry in summary["queries"]:
        assert entry["name"] in ("circle", "square", "triangle")
        assert entry["saliency"]["error"] <= 0.3
        keep = numbers[f"saliency.{entry['query']}.keep"]
        assert keep.mean() == pytest.approx(entry["saliency"]["share"])
        box = numbers["boxes_cxcywh"][-1, entry["query"]] * np.tile([summary["width"], summary["height"]], 2)
        x0, _, x1, _ = entry["boxes_xyxy_by_layer"][-1]
        assert ((x0 + x1) / 2, x1 - x0) == pytest.approx((box[0], box[2]), abs=1e-3)
        mass = numbers[f"locations.{entry['query']}.token_mass"]
        assert mass.sum() == pytest.approx(entry["attention_on_the_image"])
        assert numbers[f"gradient.{entry['query']}.box"].max() > 0
    assert numbers["decoder.1.locations"].shape == (20, 4, 4, 2)
    assert numbers["encoder.0.weights"].shape == (2, 4, 4)  # of the pixel's token on both levels


@pytest.mark.parametrize(
    "options",
    [
        ("--model.encoder_layers", 0),
        ("--model.num_levels", 1, "--model.refinement", "false"),
        ("--model.num_points", "[0,3]"),
        ("--model.two_stage", "true", "--model.num_queries", 300),
    ],
)
def test_an_untrained_model_of_any_kind(preset, shapes, tmp_path, capsys, options):
    """Without checkpoint; two stages have fewer tokens than queries."""
    source = shapes / "val2017" / "000000.png"
    argv = ("--config", preset, "--input", source, "--output", tmp_path, "--device", "cpu", "--size", 64)
    maps = f"[{','.join(ALL)}]"
    assert run("visualize", *argv, *options, "--maps", maps, "--cells", 2, "--top_k", 1) == 0
    printed = capsys.readouterr().out
    without_encoder = options[:2] == ("--model.encoder_layers", 0)
    assert ("no encoder layers" in printed) == without_encoder == (not (tmp_path / "encoder.png").exists())
    assert "no query reaches the threshold 0.5" in printed
    weights = np.load(tmp_path / "sampling.npz")["decoder.0.weights"]
    np.testing.assert_allclose(weights, 1 / weights.shape[-1], rtol=1e-5)


def test_a_folder_has_a_folder_for_each_picture(checkpoint, shapes, tmp_path, capsys):
    shutil.copytree(shapes / "val2017", tmp_path / "in")
    with Image.open(tmp_path / "in" / "000000.png") as picture:
        picture.save(tmp_path / "in" / "000000.bmp")  # of the same name
    (tmp_path / "in" / "broken.png").write_bytes(b"nothing")
    argv = ("--checkpoint", checkpoint, "--input", tmp_path / "in", "--output", tmp_path / "out", "--device", "cpu")
    assert run("visualize", *argv, "--maps", "[boxes]", "--pixel", "[3,5]", "--layers", "[1]") == 1
    assert "left out: " in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000", "000000_2", "000001"]
    for folder in (tmp_path / "out").iterdir():
        assert sorted(p.name for p in folder.iterdir()) == ["boxes.png", "sampling.json", "sampling.npz"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--queries", "[3,20]"), "no query 20; this picture has queries 0 to 19"),
        (("--layers", "[2]"), "no decoder layer 2; this model has layers 0 to 1"),
        (("--pixel", "[9999,0]"), "outside of the picture"),
        (("--pixel", "[1]"), "two numbers"),
        (("--maps", "[heat]"), "there is no heat; there are decoder, heads"),
        (("--maps", "[]"), "no map to draw"),
        (("--bound", "2"), "bound is 2.0; it must be between 0 and 1"),
        (("--cells", "0"), "cells is 0"),
        (("--input", "nowhere.png"), "nowhere.png"),
        (("--checkpoint", "nothing.pth"), "nothing.pth"),
    ],
)
def test_one_sentence_for_what_is_not_there(checkpoint, shapes, tmp_path, capsys, options, message):
    argv = ["--checkpoint", checkpoint, "--input", shapes / "val2017" / "000000.png", "--output", tmp_path]
    assert run("visualize", *argv, "--device", "cpu", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_input_is_needed(preset, capsys):
    assert run("visualize", "--config", preset) == 2
    assert "--input is missing" in capsys.readouterr().err
