"""Whatever is wrong with what a user gives: one sentence that names it, no traceback, an exit code that is not 0."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from main import main
from tests.datasets.helpers import annotation, write_coco, write_json

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = [annotation(1, 1, 1, [2, 2, 20, 20]), annotation(2, 2, 2, [4, 4, 20, 20]), annotation(3, 3, 2, [1, 1, 9, 9])]
TINY = {
    "model.backbone.name": "resnet10t",
    "model.backbone.weights": "none",
    "model.d_model": "32",
    "model.norm_groups": "8",
    "model.num_levels": "2",
    "model.num_heads": "4",
    "model.num_queries": "5",
    "model.encoder_layers": "1",
    "model.decoder_layers": "1",
    "model.ffn_dim": "32",
    "data.train_sizes": "[32]",
    "data.eval_size": "32",
    "data.crop": "false",
    "data.workers": "0",
    "train.batch_size": "2",
    "train.device": "cpu",
    "train.fast_dev_run": "true",
}


class Foreign:
    """Unpickled carelessly, it leaves a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def coco(folder: Path) -> Path:
    for split in ("train", "val"):
        write_coco(folder, OBJECTS, split=split)
    return folder


def training(folder: Path, **options: str) -> list[str]:
    """Arguments of a tiny training run on `folder/coco`; options with `__` for dots."""
    given = TINY | {"data.root": str(folder / "coco"), "train.output": str(folder / "run")}
    given |= {k.replace("__", "."): v for k, v in options.items()}
    return ["train", *(f"--{k}={v}" for k, v in given.items())]


def evaluation(folder: Path, **options: str) -> list[str]:
    given = {"data.root": str(folder / "coco"), "output": str(folder / "eval"), "data.workers": "0", "device": "cpu"}
    given |= {k.replace("__", "."): v for k, v in options.items()}
    return ["eval", *(f"--{k}={v}" for k, v in given.items())]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a data set and the run of a tiny detector; tests work on copies."""
    folder = tmp_path_factory.mktemp("trained")
    coco(folder / "coco")
    assert main(training(folder)) == 0
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the data set and the checkpoint; relative paths lead here."""
    shutil.copytree(trained / "coco", tmp_path / "coco")
    shutil.copy(trained / "run" / "fast_dev_run" / "last.pth", tmp_path / "model.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sentence(code: int, stderr: str) -> str:
    """The one line that says what is wrong."""
    assert code == 2
    assert "Traceback" not in stderr
    lines = stderr.strip().splitlines()
    assert [line[:7] for line in lines] == ["error: "], stderr
    return lines[0]


def check(capsys, argv: list[str], *mentions: str) -> None:
    code = main(argv)
    said = sentence(code, capsys.readouterr().err)
    for mention in mentions:
        assert mention in said


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    write_json(file, content)


def test_what_the_other_tests_break_works(place, capsys):
    assert main(training(place)) == 0
    assert (
        main(
            training(
                place, train__resume=str(place / "run" / "fast_dev_run"), train__epochs="2", train__fast_dev_run="false"
            )
        )
        == 0
    )
    assert main(evaluation(place, checkpoint=str(place / "model.pth"))) == 0
    detections = str(place / "eval" / "detections.json")
    assert main(evaluation(place, detections=detections, output=str(place / "again"))) == 0
    figures = [json.loads((place / name / "results.json").read_text()) for name in ("eval", "again")]
    assert figures[0] == figures[1]
    assert main(["check-data", "--data.root", str(place / "coco"), "--output", str(place / "new" / "report.json")]) == 0
    assert json.loads((place / "new" / "report.json").read_text())["val"]["images"] == 3
    assert "error" not in capsys.readouterr().err


# Options and keys.


@pytest.mark.parametrize(
    ("argv", "mentions"),
    [
        (["trian"], ["'trian'", "'train'"]),
        (["--config", "x.yaml"], ["'--config'"]),
        (["train", "--train.lrr", "1"], ["--train.lrr", "'train.lr'"]),
        (["train", "--train.lr", "fast"], ["train.lr", "'fast'", "a number"]),
        (["train", "--train.lr"], ["--train.lr"]),
        (["train", "lr=1"], ["'lr=1'"]),
        (["train", "--train.precision", "fp8"], ["train.precision", "'fp8'", "'bf16'"]),
        (["train", "--config", "configs/bsae.yaml"], ["configs/bsae.yaml"]),
        (["train", "--config"], ["--config"]),
        (["eval"], ["--checkpoint"]),
        (["predict", "--input", "x.png"], ["x.png"]),
        (["predict"], ["--input"]),
        (["check-data"], ["--data.root"]),
        (["check-data", "--data.root", "nowhere"], ["nowhere"]),
    ],
)
def test_options(place, capsys, argv, mentions):
    check(capsys, argv, *mentions)


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("train: {lrr: 1}", ["a.yaml", "'train.lrr'", "'train.lr'"]),
        ("model: {backbone: resnet50}", ["'model.backbone'"]),
        ("train: {epochs: many}", ["train.epochs", "'many'", "whole number"]),
        ("train: [", ["a.yaml", "not YAML"]),
        ("- train", ["a.yaml"]),
    ],
)
def test_configuration_files(place, capsys, text, mentions):
    (place / "a.yaml").write_text(text)
    check(capsys, ["train", "--config", "a.yaml"], *mentions)


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ({"model.num_heads": "5"}, ["model.num_heads", "5", "32"]),
        ({"model.self_attention_heads": "3"}, ["model.self_attention_heads", "3"]),
        ({"model.norm_groups": "7"}, ["model.norm_groups", "7"]),
        ({"model.num_points": "[4,4,4]"}, ["model.num_points", "3", "model.num_levels", "2"]),
        ({"model.encoder_points": "[0,0]"}, ["model.encoder_points"]),
        ({"model.decoder_layers": "0"}, ["model.decoder_layers"]),
        ({"model.dropout": "1.5"}, ["model.dropout", "1.5"]),
        ({"model.backbone.name": "resnet5000"}, ["model.backbone.name", "'resnet5000'"]),
        (
            {"model.backbone.name": "resnet50.tv_in2k", "model.backbone.weights": "timm"},
            ["model.backbone.name", "'resnet50.tv_in2k'", "tv_in1k"],
        ),
        ({"model.backbone.name": "resnet10t", "model.backbone.output_stride": "7"}, ["resnet10t"]),
        ({"model.backbone.weights": "gone.pth"}, ["model.backbone.weights", "'gone.pth'"]),
        ({"train.device": "gpu"}, ["'gpu'", "'cpu'"]),
        ({"train.device": "cuda:99"}, ["'cuda:99'"]),
        ({"train.batch_size": "0"}, ["train.batch_size is 0"]),
        ({"train.max_images_per_device": "-2"}, ["train.max_images_per_device is -2"]),
        ({"train.epochs": "0"}, ["train.epochs is 0"]),
        ({"train.eval_every": "0"}, ["train.eval_every is 0"]),
        ({"train.seed": "-1"}, ["train.seed is -1", "4294967295"]),
        ({"train.lr": "-0.1"}, ["train.lr is -0.1"]),
        ({"data.workers": "-1"}, ["data.workers is -1"]),
        ({"data.eval_size": "0"}, ["data.eval_size is 0"]),
        ({"data.train_sizes": "[]"}, ["data.train_sizes"]),
        ({"data.train_sizes": "[32, 0]"}, ["data.train_sizes is [32, 0]"]),
        ({"data.crop": "true", "data.crop_range": "[30]"}, ["data.crop_range is [30]"]),
        ({"data.crop": "true", "data.crop_range": "[30, 20]"}, ["data.crop_range is [30, 20]"]),
        ({"data.horizontal_flip": "1.2"}, ["data.horizontal_flip is 1.2"]),
        ({"data.root": "nowhere"}, ["nowhere"]),
        ({"train.output": "occupied"}, ["train.output", "'occupied/fast_dev_run'"]),
        ({"train.output": "occupied/run"}, ["train.output", "'occupied/run/fast_dev_run'"]),
        ({"train.resume": "gone.pth"}, ["'gone.pth'"]),
        ({"model.init_from": "gone.pth"}, ["'gone.pth'"]),
    ],
)
def test_training_options_that_cannot_be_or_do_not_fit_each_other(place, capsys, options, mentions):
    (place / "occupied").write_text("a file")
    check(capsys, training(place, **options), *mentions)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("given", "missing"), [("images", "annotations"), ("annotations", "images")])
def test_images_without_annotations_and_the_other_way_round(place, capsys, split, given, missing):
    path = {"images": f"coco/{split}2017", "annotations": f"coco/annotations/instances_{split}2017.json"}[given]
    check(capsys, training(place, **{f"data.{split}_{given}": path}), f"data.{split}_{missing}")


def test_training_images_without_validation_images(place, capsys):
    argv = training(place, data__root="null", data__train_images="coco/train2017")
    argv += ["--data.train_annotations", "coco/annotations/instances_train2017.json"]
    check(capsys, argv, "data.val_images")


# Annotations and images.


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        (lambda c: c["annotations"].append(annotation(77, 1, 9, [0, 0, 1, 1])), ["annotation 77", "category 9"]),
        (lambda c: c["annotations"].append(annotation(78, 9, 1, [0, 0, 1, 1])), ["annotation 78", "image 9"]),
        (lambda c: c["annotations"].append(annotation(79, 1, 1, [0, 0, 1])), ["annotation 79", "[0, 0, 1]"]),
        (lambda c: c["annotations"].append({"id": 80}), ["entry 3 of 'annotations'", "'image_id'"]),
        (lambda c: c["images"].append({"id": 9}), ["entry 3 of 'images'", "'file_name'"]),
        (lambda c: c["images"][1].update(width="30"), ["image 2", "30x40"]),
        (lambda c: c["images"][1].update(id=1), ["the id 1"]),
        (lambda c: c.pop("categories"), ["'categories'"]),
        (lambda c: c.update(images=[], annotations=[]), ["no images"]),
        (lambda c: c.update(categories=[], annotations=[]), ["no categories"]),
    ],
)
def test_annotations(place, capsys, change, mentions):
    file = place / "coco" / "annotations" / "instances_train2017.json"
    edit(file, change)
    check(capsys, training(place), str(file), *mentions)


def all_crowds(content):
    for entry in content["annotations"]:
        entry["iscrowd"] = "1"


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (all_crowds, "(3) are crowds (iscrowd is 1)"),
        (lambda c: c["annotations"].clear(), "is empty"),
        (lambda c: c.pop("annotations"), "has no list 'annotations'"),
        (lambda c: [a.update(bbox=[1, 1, 0, 5]) for a in c["annotations"]], "has no width or height"),
    ],
)
def test_training_on_nothing_and_scoring_nothing_say_why(place, capsys, split, change, why):
    file = place / "coco" / "annotations" / f"instances_{split}2017.json"
    edit(file, change)
    check(capsys, training(place), {"train": "nothing to learn from", "val": "nothing to score"}[split], str(file), why)
    assert not (place / "run").exists()


def test_images_without_annotations_are_detected_in_without_a_score(place, capsys):
    file = place / "coco" / "annotations" / "instances_val2017.json"
    edit(file, lambda c: [c.pop(part) for part in ("annotations", "categories")])
    write_json(place / "eval" / "results.json", "of an earlier evaluation")
    assert main(evaluation(place, checkpoint="model.pth")) == 0
    assert f"no score: '{file}' has no list 'annotations'" in capsys.readouterr().out
    found = json.loads((place / "eval" / "detections.json").read_text())
    assert {d["image_id"] for d in found} == {1, 2, 3} and {d["category_id"] for d in found} == {1, 2}
    assert not (place / "eval" / "results.json").exists()
    check(capsys, evaluation(place, checkpoint="model.pth", analyse="true"), "nothing to score")
    check(capsys, evaluation(place, detections="eval/detections.json"), "nothing to score", "'annotations'")


def test_ids_of_both_types_are_scored_or_quoted_at_loading(place, capsys):
    file = place / "coco" / "annotations" / "instances_val2017.json"
    edit(file, lambda c: c["images"][0].update(id="x1"))
    check(capsys, training(place), "annotation 1", "is of image 1 (number)", "'x1' (text)")
    edit(file, lambda c: (c["annotations"][0].update(image_id="x1"), c["annotations"][1].update(image_id="2")))
    assert main(evaluation(place, checkpoint="model.pth")) == 0
    assert "image_id '2' (text) is taken for the id 2 (number) of the images" in capsys.readouterr().err
    assert main(evaluation(place, detections=str(place / "eval" / "detections.json"), output="again")) == 0
    assert (place / "eval" / "results.json").read_text() == (place / "again" / "results.json").read_text()


def test_detections_of_unlisted_classes_and_impossible_truth_are_said(place, capsys):
    file = place / "coco" / "annotations" / "instances_val2017.json"
    edit(file, lambda c: c["annotations"].append(annotation(9, 1, 1, [1, 1, 0, 5])))
    results = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in OBJECTS]
    write_json(place / "found.json", [*results, results[0] | {"category_id": 0}])
    assert main(evaluation(place, detections="found.json")) == 0
    said = capsys.readouterr().err
    assert "1 of 4 boxes do not count as objects (1 without width or height)" in said
    assert "'found.json': 1 detections have categories that the file does not list: [0]" in said
    assert json.loads((place / "eval" / "results.json").read_text())["figures"]["AP"] == pytest.approx(1)


def test_check_data_mends_one_split_and_never_the_source(place, capsys):
    file = place / "coco" / "annotations" / "instances_val2017.json"
    edit(file, lambda c: c["annotations"][0].update(id="one", bbox=[-5, 2, 20, 20]))
    check(capsys, ["check-data", "--data.root", "coco", "--fix", "out.json"], "'out.json'", "two splits")
    argv = ["check-data", "--data.val_images", "coco/val2017", "--data.val_annotations", str(file)]
    check(capsys, [*argv, "--fix", str(file)], "--fix", "would overwrite the annotation file")
    check(capsys, [*argv, "--output", str(file)], "--output", "would overwrite the annotation file")
    assert main(argv) == 1
    assert main([*argv, "--fix", "new/out.json", "--output", "report.json"]) == 0
    assert "box clipped (1)" in capsys.readouterr().out
    kinds = [c["kind"] for c in json.loads((place / "report.json").read_text())["val"]["changes"]]
    assert kinds == ["box clipped", *["area computed"] * 3, "annotation id made a number"]
    assert main([*argv[:-1], "new/out.json"]) == 0


@pytest.mark.parametrize("text", ["{", "", "[]", '"text"', "{}", "\x00"])
@pytest.mark.parametrize("command", ["train", "check-data"])
def test_a_file_that_is_not_coco(place, capsys, command, text):
    file = place / "coco" / "annotations" / "instances_train2017.json"
    file.write_text(text)
    argv = training(place) if command == "train" else ["check-data", "--data.root", str(place / "coco")]
    check(capsys, argv, str(file))


def test_classes_of_training_and_validation_that_have_nothing_in_common(place, capsys):
    file = place / "coco" / "annotations" / "instances_val2017.json"
    edit(file, lambda c: c["categories"].__setitem__(slice(None), [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]))
    check(capsys, training(place), "circle", "cat", "none in common")
    check(capsys, evaluation(place, checkpoint="model.pth"), "circle", "cat", "none in common")


def test_ids_that_cannot_be_labels(place, capsys):
    file = place / "coco" / "annotations" / "instances_train2017.json"
    edit(file, lambda c: c["categories"].append({"id": -3, "name": "cat"}))
    check(capsys, training(place, data__category_ids="original"), "-3", "contiguous")


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def text(path: Path) -> None:
    path.write_text("not a picture")


def other_size(path: Path) -> None:
    Image.new("RGB", (7, 9)).save(path)


def damaged_within(path: Path) -> None:
    """What only decoding finds: the end is whole."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [missing, truncated, text, other_size])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_picture_that_cannot_be_used_is_named_before_the_first_step(place, capsys, monkeypatch, damage, split):
    damage(place / "coco" / f"{split}2017" / "2.png")
    monkeypatch.setattr("engine.set_up.build_model", lambda *_, **__: pytest.fail("it went on"))
    check(capsys, training(place), f"{split}: 1 image of 3 cannot be used", "2.png", "check-data")


@pytest.mark.parametrize(("workers", "split"), [("0", "train"), ("2", "train"), ("0", "val")])
def test_a_picture_that_fails_while_training_is_named(place, capsys, workers, split):
    damaged_within(place / "coco" / f"{split}2017" / "2.png")
    options = {"train.batch_size": "3", "data.workers": workers}
    code = main(training(place, **options))
    said = sentence(code, capsys.readouterr().err)
    assert "2.png" in said and "--data.broken_images" in said
    assert "worker" not in said
    assert len(said) < 500


def test_a_damaged_picture_is_left_out_of_training_and_evaluation(place, capsys):
    """Its objects do not count, in the training's evaluation and in one that the checkpoint describes."""
    damaged_within(place / "coco" / "val2017" / "2.png")
    assert main(training(place, data__broken_images="skip")) == 0
    printed = capsys.readouterr().out
    assert "val: broken and left out" in printed and "val  2 images" in printed
    last = place / "run" / "fast_dev_run" / "last.pth"
    assert main(evaluation(place, checkpoint=str(last))) == 0
    assert capsys.readouterr().out.count("'2.png'") == 1
    figures = json.loads((place / "eval" / "results.json").read_text())
    assert {name: c["objects"] for name, c in figures["per_class"].items()} == {"circle": 1, "square": 1}


# Checkpoints.


def hold(path: Path, content: object) -> None:
    torch.save(content, path)


CHECKPOINTS = {
    "truncated.pth": lambda p: p.write_bytes((p.parent / "model.pth").read_bytes()[:5000]),
    "half.pth": lambda p: p.write_bytes(
        (p.parent / "model.pth").read_bytes()[: (p.parent / "model.pth").stat().st_size // 2]
    ),
    "text.pth": lambda p: p.write_text("these are no weights\n" * 9),
    "empty.pth": lambda p: p.touch(),
    "list.pth": lambda p: hold(p, [1, 2]),
    "other.pth": lambda p: hold(p, {"state_dict": {"conv.weight": torch.ones(1)}}),
    "keys.pth": lambda p: hold(p, {"model": {"transformer.unheard_of": torch.ones(1)}}),
    "part.pth": lambda p: hold(p, {"format": "deformable-detr/1", "model": {}, "epoch": 1}),
    "foreign.pth": lambda p: hold(p, {"model": Foreign(p.parent / "ran")}),
    "foreign.pkl": lambda p: p.write_bytes(pickle.dumps(Foreign(p.parent / "ran"), protocol=2)),
    "folder": lambda p: p.mkdir(),
    "detr": lambda p: write_json(p / "config.json", {"model_type": "detr"}),
    "no_weights": lambda p: write_json(p / "config.json", {"model_type": "deformable_detr", "backbone": "resnet50"}),
    "no_json": lambda p: (p.mkdir(), (p / "config.json").write_text("{'model_type'")),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, about the pickle protocol
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(place, capsys, name):
    CHECKPOINTS[name](place / name)
    check(capsys, evaluation(place, checkpoint=name), name)
    check(capsys, training(place, train__resume=name), name)
    check(capsys, training(place, model__init_from=name), name)
    check(capsys, ["predict", "--input", "coco/val2017", "--checkpoint", name], name)
    assert not (place / "ran").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [n for n in CHECKPOINTS if n.endswith((".pth", ".pkl"))])
def test_backbone_weights(place, capsys, name):
    CHECKPOINTS[name](place / name)
    check(capsys, training(place, **{"model.backbone.weights": name}), "model.backbone.weights", name)
    assert not (place / "ran").exists()


def test_foreign_code_would_run_if_it_were_let(tmp_path):
    pickle.loads(pickle.dumps(Foreign(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_weights_of_another_backbone(place, capsys):
    import timm

    torch.save(timm.create_model("resnet10t", features_only=True).state_dict(), place / "resnet10t.pth")
    assert main(training(place, **{"model.backbone.weights": "resnet10t.pth"})) == 0
    options = {"model.backbone.weights": "resnet10t.pth", "model.backbone.name": "resnet18"}
    check(capsys, training(place, **options), "'resnet10t.pth'", "not of this backbone")


def test_resuming_what_has_no_training_state(place, capsys):
    content = torch.load(place / "model.pth", weights_only=True)
    del content["optimizer"]
    torch.save(content, place / "weights.pth")
    check(capsys, training(place, train__resume="weights.pth"), "train.resume", "'weights.pth'", "--model.init_from")


def test_resuming_with_another_model(place, capsys):
    options = {"train.resume": "model.pth", "train.epochs": "3", "model.d_model": "64", "train.fast_dev_run": "false"}
    check(capsys, training(place, **options), "'model.pth'", "do not fit")


# Evaluation, prediction.


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("[", ["found.json", "not JSON"]),
        ("{}", ["list"]),
        ('[{"image_id": 1}]', ["detection 0", "'category_id'"]),
        ('[{"image_id": 55, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', ["detection 0", "image 55"]),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1], "score": 1}]', ["detection 0", "four numbers"]),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": "x"}]', ["detection 0", "score"]),
    ],
)
def test_detections(place, capsys, text, mentions):
    (place / "found.json").write_text(text)
    check(capsys, evaluation(place, detections="found.json"), *mentions)


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ({"detections": "gone.json"}, ["'gone.json'"]),
        ({"detections": "gone.json", "data.root": "null"}, ["--data.val_annotations"]),
        ({"detections": "gone.json", "data.root": "nowhere"}, ["nowhere"]),
        ({"checkpoint": "model.pth", "data.root": "nowhere"}, ["nowhere"]),
        ({"checkpoint": "model.pth", "output": "model.pth"}, ["output", "'model.pth'"]),
        ({"checkpoint": "model.pth", "top_k": "0"}, ["top_k is 0"]),
        ({"checkpoint": "model.pth", "batch_size": "0"}, ["batch_size is 0"]),
        ({"checkpoint": "model.pth", "device": "cuda:99"}, ["'cuda:99'"]),
    ],
)
def test_evaluation_options(place, capsys, options, mentions):
    check(capsys, evaluation(place, **options), *mentions)


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ({"input": "nothing/*.jpg"}, ["'nothing/*.jpg'"]),
        ({"input": "gone.png"}, ["'gone.png'"]),
        ({"input": "bare"}, ["'bare'"]),
        ({"checkpoint": "gone.pth"}, ["'gone.pth'"]),
        ({"output": "model.pth"}, ["output", "'model.pth'"]),
        ({"output": "coco/val2017"}, ["output", "'coco/val2017'"]),
        ({"size": "0"}, ["size is 0"]),
        ({"top_k": "-1"}, ["top_k is -1"]),
        ({"threshold": "high"}, ["threshold", "'high'"]),
    ],
)
def test_prediction_options(place, capsys, options, mentions):
    (place / "bare").mkdir()
    given = {"input": "coco/val2017", "checkpoint": "model.pth", "output": "drawn", "device": "cpu"} | options
    check(capsys, ["predict", *(f"--{k}={v}" for k, v in given.items())], *mentions)


def test_pictures_that_cannot_be_read_are_left_out_by_name(place, capsys):
    truncated(place / "coco" / "val2017" / "2.png")
    argv = ["predict", "--input", "coco/val2017", "--checkpoint", "model.pth", "--output", "drawn", "--device", "cpu"]
    assert main(argv) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("left out: ")
    assert "2.png" in said[0]
    assert sorted(p.name for p in (place / "drawn").iterdir()) == ["1.png", "3.png", "predictions.json"]


def test_pictures_of_one_name_are_all_drawn(place, capsys):
    for folder in ("a", "b", "c"):
        (place / "in" / folder).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(place / "in" / folder / "same.png")
    argv = ["predict", "--input", "in/*/same.png", "--checkpoint", "model.pth", "--output", "drawn", "--device", "cpu"]
    assert main(argv) == 0
    listed = json.loads((place / "drawn" / "predictions.json").read_text())
    assert [entry["file"] for entry in listed] == [f"in/{folder}/same.png" for folder in "abc"]
    assert sorted(p.name for p in (place / "drawn").glob("*.png")) == sorted(entry["drawn"] for entry in listed)


def test_the_report_of_check_data_has_no_place(place, capsys):
    argv = ["check-data", "--data.root", "coco", "--output"]
    check(capsys, [*argv, "coco"], "'coco'")
    check(capsys, [*argv, "model.pth/report.json"], "'model.pth'")


def test_check_data_reports_defects_and_exits_with_1(place, capsys):
    edit(place / "coco" / "annotations" / "instances_val2017.json", lambda c: c["annotations"][0].update(image_id=[1]))
    truncated(place / "coco" / "train2017" / "3.png")
    assert main(["check-data", "--data.root", "coco"]) == 1
    out = capsys.readouterr().out
    assert "malformed annotation (1)" in out
    assert "image 3.png" in out


# As a program.


@pytest.mark.parametrize("case", ["option", "foreign", "worker"])
def test_as_a_program(place, case):
    hold(place / "foreign.pth", {"model": Foreign(place / "ran")})
    damaged_within(place / "coco" / "train2017" / "3.png")
    argv, mention = {
        "option": (["train", "--train.lrr", "1"], "--train.lrr"),
        "foreign": (evaluation(place, checkpoint="foreign.pth"), "foreign.pth"),
        "worker": (training(place, **{"train.batch_size": "3", "data.workers": "2"}), "3.png"),
    }[case]
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *argv], cwd=place, capture_output=True, text=True, timeout=120
    )
    assert mention in sentence(done.returncode, done.stderr)
    assert "Traceback" not in done.stdout
    assert not (place / "ran").exists()
