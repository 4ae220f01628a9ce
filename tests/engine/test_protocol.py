"""The commands on data whose images were not searched for all classes, as LVIS's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.errors.diagnosis import diagnose
from datasets.annotations import Annotations
from datasets.coco import to_coco
from datasets.readers import read_annotations
from tests.datasets.helpers import write_json
from tests.test_main import run, small_place

FREQUENCIES = {"circle": "r", "square": "c", "triangle": "f"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Shapes with the lists of LVIS v1, whose images have a `coco_url` in the place of a file name."""
    place = small_place(tmp_path_factory.mktemp("lvis"), train=4, val=3)
    for split in ("train", "val"):
        file = place / "shapes" / "annotations" / f"instances_{split}2017.json"
        content = json.loads(file.read_text())
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{image.pop('file_name')}"
            image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        content["categories"] = [c | {"frequency": FREQUENCIES[c["name"]]} for c in content["categories"]]
        file.write_text(json.dumps(content))
    return place


def named(place: Path, *splits: str) -> list:
    shapes = place / "shapes"
    of = {"images": lambda s: shapes, "annotations": lambda s: shapes / "annotations" / f"instances_{s}2017.json"}
    return [a for s in splits for part, path in of.items() for a in (f"--data.{s}_{part}", path(s))]


def without_lists(place: Path, split: str) -> Annotations:
    return replace(read_annotations(place / "shapes" / "annotations" / f"instances_{split}2017.json"), federated=None)


def test_training_and_evaluation_follow_the_file_and_evaluation_the_option(place, tmp_path, capsys):
    output, folder = tmp_path / "run", tmp_path / "eval"
    data, more = named(place, "train", "val"), ("--train.epochs", 1, "--train.best_metric", "APf")
    more += ("--loss.federated", "true", "--train.max_images_per_device", "auto")
    assert run("train", "--config", place / "small.yaml", *data, "--train.output", output, *more) == 0
    line = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"APr", "APc", "APf", "AR_300"} <= line.keys() and "AR_100" not in line
    printed = capsys.readouterr().out
    assert "scored by LVIS's protocol" in printed and "  recipe  federated class loss\n" in printed
    annotations = read_annotations(place / "shapes" / "annotations" / "instances_train2017.json")
    pairs = len(set(zip(annotations.image_ids, annotations.category_ids)))  # of which all objects are listed
    assert f" objects, every object listed of {pairs / 4:.1f} classes an image\n" in printed

    args = ("eval", "--checkpoint", output, *named(place, "val"), "--output", folder)
    assert run(*args) == 0
    content = json.loads((folder / "results.json").read_text())
    assert content["protocol"] == "LVIS, 300 detections of an image"
    assert content["figures"] == {name: line[name] for name in content["figures"]}
    assert len(json.loads((folder / "detections.json").read_text())) == 3 * 60  # 20 queries of 3 classes
    printed = capsys.readouterr().out
    assert "protocol LVIS, 300 detections of an image" in printed and "APr" in printed

    assert run(*args, "--data.protocol", "coco", "--top_k", 7) == 0
    content = json.loads((folder / "results.json").read_text())
    assert "protocol" not in content and "AR_7" in content["figures"] and "APr" not in content["figures"]
    assert len(json.loads((folder / "detections.json").read_text())) == 3 * 7


def test_a_federated_loss_is_refused_where_nobody_says_what_was_looked_for(place, tmp_path, capsys):
    plain = write_json(tmp_path / "plain.json", to_coco(without_lists(place, "train")))
    data = ("--data.train_images", place / "shapes", "--data.train_annotations", plain, *named(place, "val"))
    argv = ("train", "--config", place / "small.yaml", *data, "--train.output", tmp_path / "run")
    assert run(*argv, "--loss.federated", "true") == 2
    assert capsys.readouterr().err == (
        f"error: loss.federated penalises classes that were looked for, but the images of '{plain}' do not all have "
        "the lists neg_category_ids and not_exhaustive_category_ids, as LVIS's do; leave it out\n"
    )
    assert not (tmp_path / "run").exists()


def test_saved_detections_are_scored_and_analysed_by_the_protocol(place, tmp_path, capsys):
    truth = place / "shapes" / "annotations" / "instances_val2017.json"
    content = json.loads(truth.read_text())
    objects = content["annotations"]
    results = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in objects]
    # In each image a better-scored wrong one of each class that nobody looked for; with COCO's protocol they are wrong.
    has = {(a["image_id"], a["category_id"]) for a in objects}
    absent = [(i["id"], c["id"]) for i in content["images"] for c in content["categories"]]
    wrong = [
        {"image_id": i, "category_id": c, "bbox": [0, 0, 9, 9], "score": 0.9} for i, c in absent if (i, c) not in has
    ]
    assert wrong
    (tmp_path / "found.json").write_text(json.dumps(results + wrong))
    options = ("--detections", tmp_path / "found.json", "--data.val_annotations", truth, "--output", tmp_path)
    assert run("eval", *options, "--analyse") == 0
    analysis = json.loads((tmp_path / "analysis.json").read_text())
    assert analysis["figures"] == json.loads((tmp_path / "results.json").read_text())["figures"]
    assert analysis["figures"]["AP"] == pytest.approx(1) and analysis["figures"]["APf"] == pytest.approx(1)
    assert analysis["errors"]["types"]["background"]["count"] == 0
    assert run("eval", *options, "--data.protocol", "coco") == 0
    assert json.loads((tmp_path / "results.json").read_text())["figures"]["AP"] < 0.9
    diagnosis = diagnose(read_annotations(truth), results + wrong, protocol="coco")
    assert diagnosis.losses.counts["background"].sum() == len(wrong)


def test_objects_that_may_be_unlisted_are_no_errors_of_the_analysis(place, tmp_path):
    truth = place / "shapes" / "annotations" / "instances_val2017.json"
    content = json.loads(truth.read_text())
    for image in content["images"]:
        image["not_exhaustive_category_ids"] = [c["id"] for c in content["categories"]]
    right = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in content["annotations"]]
    doubled = [r | {"score": 0.8} for r in right]
    partly = write_json(tmp_path / "partly.json", content)
    for file, wrong in ((partly, 0), (truth, len(doubled))):
        diagnosis = diagnose(read_annotations(file), right + doubled)
        assert diagnosis.scores.figures["AP"] == pytest.approx(1)
        assert sum(count.sum() for count in diagnosis.losses.counts.values()) == wrong
        assert diagnosis.confusion[-1].sum() == wrong  # in the background's row


def test_the_protocol_needs_the_lists(tmp_path, capsys):
    place = small_place(tmp_path, train=4, val=1)
    truth = place / "shapes" / "annotations" / "instances_val2017.json"
    (tmp_path / "found.json").write_text("[]")
    options = ("--detections", tmp_path / "found.json", "--data.val_annotations", truth, "--data.protocol", "lvis")
    assert run("eval", *options, "--output", tmp_path) == 2
    assert "do not all have the lists neg_category_ids" in capsys.readouterr().err
