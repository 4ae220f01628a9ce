"""Training, evaluation and prediction with data of Pascal VOC and YOLO, against the same data of COCO."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.readers import read_annotations
from main import main
from tests.datasets.formats import write, write_other_formats
from tests.test_main import small_place

COCO = "annotations/instances_{}2017.json"


def run(*argv) -> None:
    assert main([str(a) for a in argv]) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Shapes as COCO in `shapes`, as the development kit's layout in `voc`, and as YOLO's in `yolo`."""
    place = small_place(tmp_path_factory.mktemp("formats"), train=8, val=5)
    write_other_formats(place / "shapes", place / "voc", place / "yolo")
    return place


@pytest.fixture(scope="module")
def trained(place) -> Path:
    """A short run with the data of COCO."""
    run("train", "--config", place / "small.yaml", "--data.root", place / "shapes", "--train.output", place / "coco",
        "--train.epochs", 1)  # fmt: skip
    return place / "coco"


def test_a_run_learns_the_same(place, trained):
    """With images of VOC to train on and of YOLO to score, the weights after an epoch are those of COCO to the bit."""
    val = (
        "--data.val_images",
        place / "yolo" / "images" / "val",
        "--data.val_annotations",
        place / "yolo" / "data.yaml",
    )
    run("train", "--config", place / "small.yaml", "--data.train_images", place / "voc" / "JPEGImages",
        "--data.train_annotations", place / "voc" / "ImageSets" / "Main" / "train.txt", *val,
        "--train.output", place / "mixed", "--train.epochs", 1)  # fmt: skip
    coco, mixed = (torch.load(f / "last.pth", weights_only=True)["model"] for f in (trained, place / "mixed"))
    assert coco.keys() == mixed.keys() and all(torch.equal(tensor, mixed[name]) for name, tensor in coco.items())


def test_evaluation_finds_the_same(place, trained):
    found = []
    for root in ("shapes", "voc"):
        run("eval", "--checkpoint", trained / "last.pth", "--data.root", place / root, "--output", place / "eval",
            "--data.workers", 0)  # fmt: skip
        found.append(json.loads((place / "eval" / "detections.json").read_text()))
    assert found[0] == found[1] and len(found[0]) > 50


@pytest.mark.parametrize(("form", "first"), [("voc", 1), ("yolo", 0)])
def test_figures_are_the_same(place, form, first):
    """Of made-up detections; the classes of VOC are numbered from 1, those of YOLO from 0."""
    truth = json.loads((place / "shapes" / COCO.format("val")).read_text())
    number_of = {c["id"]: n for n, c in enumerate(sorted(truth["categories"], key=lambda c: c["name"]))}
    image_of = {image["id"]: n for n, image in enumerate(truth["images"], 1)}
    rng, figures = np.random.default_rng(3), []
    moved = [[float(v) for v in np.array(a["bbox"]) + rng.normal(0, 1.5, 4)] for a in truth["annotations"]]
    scores = rng.random(len(moved)).tolist()
    for root, ids in (("shapes", None), (form, first)):
        results = [
            {
                "image_id": a["image_id"] if ids is None else image_of[a["image_id"]],
                "category_id": a["category_id"] if ids is None else number_of[a["category_id"]] + ids,
                "bbox": box,
                "score": score,
            }
            for a, box, score in zip(truth["annotations"], moved, scores)
        ]
        run("eval", "--detections", write(place / "found.json", json.dumps(results)), "--data.root", place / root,
            "--output", place / "eval")  # fmt: skip
        figures.append(json.loads((place / "eval" / "results.json").read_text())["figures"])
    names = [n for n in figures[0] if not n.endswith(("small", "medium", "large"))]  # those go by the areas of shapes
    assert {n: figures[1][n] for n in names} == {n: figures[0][n] for n in names} and 0.1 < figures[0]["AP"] < 0.9


def test_check_data_takes_a_root_of_every_format(place, capsys):
    for form in ("voc", "yolo"):
        run("check-data", "--data.root", place / form)
        said = capsys.readouterr().out
        assert said.count("defects       0") == 2 and "images        8" in said and "images        5" in said


def test_predictions_as_text_and_as_coco(place, trained, capsys):
    """The text is what YOLO labels are: read as a data set, it gives the boxes that were predicted."""
    pictures, output = place / "yolo" / "images" / "val", place / "drawn"
    run("predict", "--checkpoint", trained / "last.pth", "--input", pictures, "--output", output, "--threshold", 0.01,
        "--top_k", 5, "--save_conf", "--save_coco")  # fmt: skip
    listed = json.loads((output / "predictions.json").read_text())
    boxes = [
        [min(max(v, 0), side) for v, side in zip(d["box_xyxy"], (entry["width"], entry["height"]) * 2)]
        for entry in listed
        for d in entry["detections"]
    ]
    read = read_annotations(output / "labels", pictures)
    assert "sixth number, a score" in read.remarks[0] and len(read) == len(boxes) > 5
    assert [c.name for c in read.categories] == ["circle", "square", "triangle"]
    found = [[x, y, x + w, y + h] for x, y, w, h in read.boxes.tolist()]
    assert found == [pytest.approx(box, abs=1e-5) for box in boxes]
    scores = [float(line.split()[5]) for f in sorted((output / "labels").glob("*_*.txt")) for line in f.open()]
    assert scores == pytest.approx([d["score"] for entry in listed for d in entry["detections"]], rel=1e-7)

    # COCO: its ids are those of the images beside it, and its classes the ones of the data that were trained on.
    results = json.loads((output / "coco_results.json").read_text())
    images = json.loads((output / "coco_images.json").read_text())
    assert [i["file_name"] for i in images["images"]] == sorted(p.name for p in pictures.iterdir())
    truth = json.loads((place / "shapes" / COCO.format("val")).read_text())
    assert sorted((c["id"], c["name"]) for c in images["categories"]) == sorted(
        (c["id"], c["name"]) for c in truth["categories"]
    )
    first = listed[0]["detections"][0]
    x0, y0, x1, y1 = first["box_xyxy"]
    assert results[0] == {
        "image_id": 1,
        "category_id": {c["name"]: c["id"] for c in truth["categories"]}[first["name"]],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": first["score"],
    }
    assert len(results) == len(boxes)
    run("eval", "--detections", output / "coco_results.json", "--data.val_annotations",
        place / "shapes" / COCO.format("val"), "--output", place / "scored")  # fmt: skip
