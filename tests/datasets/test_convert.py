import json

import numpy as np
import pytest

from datasets.coco import read_coco
from datasets.voc import read_voc
from datasets.yolo import read_yolo
from main import main
from tests.datasets.formats import save_pictures, voc_file, voc_object, write
from tests.datasets.helpers import annotation, write_coco, write_json


def run(*argv) -> int:
    return main([str(a) for a in argv])


def equal(read, written) -> None:
    """The same images, classes and objects, to the bit."""
    assert (written.images, written.categories) == (read.images, read.categories)
    assert np.array_equal(written.boxes, read.boxes, equal_nan=True) and np.array_equal(written.areas, read.areas)
    columns = ("ids", "image_ids", "category_ids", "crowds")
    assert all(list(getattr(written, c)) == list(getattr(read, c)) for c in columns)


def test_what_is_written_reads_back_to_equal_boxes(tmp_path, capsys):
    """VOC with fractions and a difficult object, and YOLO whose thirds have no end; by hand the first box of each."""
    objects = [voc_object("cat", (1.1, 2, 9.7, 9)), voc_object("dog", (3, 3, 9, 9), 1), voc_object("dog", (2, 2, 4, 9))]
    write(tmp_path / "xml" / "a.xml", voc_file(objects))
    write(tmp_path / "xml" / "b.xml", voc_file(filename="b.png", size=None))
    images = save_pictures(tmp_path / "images", "a.png", "b.png")
    assert run("convert-data", "--from", "voc", "--input", tmp_path / "xml", "--output", tmp_path / "voc.json") == 0
    voc = read_coco(tmp_path / "voc.json")
    equal(read_voc(tmp_path / "xml"), voc)
    assert voc.boxes[0] == pytest.approx([0.1, 1, 9.6, 8]) and voc.crowds.tolist() == [False, True, False]
    said = capsys.readouterr().out
    assert "images        2 (1 without objects)" in said and "annotations   3 (1 crowds)" in said
    assert "classes       2: cat, dog" in said and "state no possible size" in said and "check-data looks" in said

    write(tmp_path / "labels" / "a.txt", f"1 {1 / 3} 0.5 {1 / 7} 0.4\n")
    write(tmp_path / "data.yaml", "names: [dog, cat]\nval: images\n")
    argv = ("--input", tmp_path / "data.yaml", "--split", "val", "--output", tmp_path / "new" / "yolo.json")
    assert run("convert-data", *argv) == 0
    yolo = read_coco(tmp_path / "new" / "yolo.json")
    equal(read_yolo(tmp_path / "labels"), yolo)
    assert yolo.boxes[0] == pytest.approx([40 / 3 - 20 / 7, 9, 40 / 7, 12], abs=1e-12)
    assert [c.id for c in yolo.categories] == [0, 1]

    argv = ("--from", "voc", "--images", images, "--voc_corners", "edges", "--output", tmp_path / "edges.json")
    assert run("convert-data", "--input", tmp_path / "xml", *argv) == 0
    edges = read_coco(tmp_path / "edges.json")
    assert edges.boxes[1].tolist() == [3, 3, 6, 6] and edges.images[1].size == (40, 30)


def test_the_summary_counts_as_check_data_does_and_tells_of_numbers_that_json_lacks(tmp_path, capsys):
    """A crowd is no object; a box that is not finite is written as it is, and said."""
    images = save_pictures(tmp_path / "images", "a.png", "b.png")
    write(tmp_path / "xml" / "a.xml", voc_file([voc_object("dog", (1, 1, 9, 9), 1)]))
    write(tmp_path / "xml" / "b.xml", voc_file([voc_object("dog", ("nan", 1, 9, 9))], filename="b.png"))
    assert run("convert-data", "--input", tmp_path / "xml", "--output", tmp_path / "voc.json") == 0
    said = capsys.readouterr().out
    assert "images        2 (1 without objects)" in said
    assert "1 boxes hold NaN or Infinity" in said and "check-data --fix removes" in said
    run("check-data", "--data.train_annotations", tmp_path / "voc.json", "--data.train_images", images)
    assert "images        2 (1 without objects)" in capsys.readouterr().out


def test_a_list_of_classes_numbers_them(tmp_path):
    save_pictures(tmp_path / "images", "a.png")
    write(tmp_path / "xml" / "a.xml", voc_file([voc_object("dog", (1, 1, 9, 9)), voc_object("cat", (2, 2, 9, 9))]))
    write(tmp_path / "labels" / "a.txt", "0 0.5 0.5 1 1\n1 0.5 0.5 0.5 0.5\n")
    classes = write(tmp_path / "names.txt", "dog\ncat\nbee\n")
    for form, first in (("xml", 1), ("labels", 0)):
        argv = ("--classes", classes, "--images", tmp_path / "images", "--output", tmp_path / "out.json")
        assert run("convert-data", "--input", tmp_path / form, *argv) == 0
        read = read_coco(tmp_path / "out.json")
        assert [(c.id - first, c.name) for c in read.categories] == [(0, "dog"), (1, "cat"), (2, "bee")]
        assert [k - first for k in read.category_ids] == [0, 1]


def test_coco_is_brought_into_one_form(tmp_path, capsys):
    """Text becomes numbers, sizes are read, keys that nobody needs are gone; boxes stay, also impossible ones."""
    objects = [annotation("x", "7", 3, [1, 2, -3, 4], iscrowd="0"), annotation("x", "7", 3, ["1", 2, 3, 4], area="9")]
    objects[1]["bbox"] = [1.5, 2, 3, 4]
    images, file = write_coco(tmp_path, objects, categories=[{"id": 3, "name": "a", "supercategory": "b"}])
    content = json.loads(file.read_text())
    content["images"] = [{"id": "7", "file_name": "1.png", "coco_url": "x"}]
    write_json(file, content)
    argv = ("--from", "coco", "--input", file, "--images", images, "--output", tmp_path / "out.json")
    assert run("convert-data", *argv) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "images": [{"id": 7, "file_name": "1.png", "width": 40, "height": 30}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, -3, 4], "area": -12, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [1.5, 2, 3, 4], "area": 9, "iscrowd": 0},
        ],
        "categories": [{"id": 3, "name": "a"}],
    }
    listed = {"images": content["images"]}  # as COCO's image_info
    assert run("convert-data", "--input", write_json(tmp_path / "i.json", listed), *argv[4:]) == 0
    assert "annotations" not in json.loads((tmp_path / "out.json").read_text())


def test_formats_with_classes_of_their_own_are_told_by_what_is_there(tmp_path):
    crowdhuman = write(tmp_path / "c.odgt", '{"ID": "a", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3, 4]}]}')
    visdrone = write(tmp_path / "texts" / "a.txt", "1,2,3,4,1,4,0,0").parent
    for source, name in ((crowdhuman, "person"), (visdrone, "car")):
        assert run("convert-data", "--input", source, "--output", tmp_path / "out.json") == 0
        read = read_coco(tmp_path / "out.json")
        assert read.boxes.tolist() == [[1, 2, 3, 4]] and read.images[0].file_name == "a.jpg"
        assert {c.id: c.name for c in read.categories}[read.category_ids[0]] == name


def test_lists_of_lvis_are_of_the_new_ids(tmp_path):
    images = [{"id": "a", "file_name": "a.jpg", "neg_category_ids": ["y", "z"], "not_exhaustive_category_ids": ["x"]}]
    content = {"images": images, "annotations": [annotation(1, "a", "x", [1, 2, 3, 4])]}
    content["categories"] = [{"id": k, "name": k, "frequency": "c"} for k in "xy"]
    argv = ("--input", write_json(tmp_path / "lvis.json", content), "--output", tmp_path / "out.json")
    assert run("convert-data", *argv) == 0
    read = read_coco(tmp_path / "out.json")
    assert (list(read.category_ids), [c.id for c in read.categories]) == ([1], [1, 2])
    assert (read.federated.negatives, read.federated.not_exhaustive) == ({1: (2, 3)}, {1: (1,)})


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--input a --output b.json", "--input 'a' is not there"),
        ("--output b.json", "--input is missing"),
        ("--input x.json", "--output is missing"),
        ("--input x.json --output b.txt", "--output 'b.txt' must be a JSON file"),
        ("--input x.json --output x.json", "would overwrite the input"),
        ("--input x.json --output b.json --images gone", "no image folder 'gone'"),
        ("--from coco --input empty --output b.json", "is a folder, not a file"),
        ("--input empty --output b.json", "neither XML files of Pascal VOC nor texts of YOLO"),
        ("--from voc --input empty --output b.json", "holds no XML files of Pascal VOC"),
        (
            "--input c.odgt --output b.json --classes x.txt",
            "--classes is for Pascal VOC and YOLO, but 'c.odgt' is read",
        ),
        ("--input x.json --output b.json --split val", "--split is for YOLO"),
        ("--input c.odgt --output b.json --voc_corners edges", "--voc_corners is for Pascal VOC"),
        ("--from yolo --input c.odgt --output b.json", "'c.odgt' is no data.yaml and no folder"),
        ("--from yolo --input empty --output b.json", "nothing names the classes"),
        (
            "--from csv --input x.json --output b.json",
            "from is 'csv', but must be one of 'auto', 'voc', 'yolo', 'coco'",
        ),
    ],
)
def test_what_cannot_be_converted(tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "x.json", {"images": [{"id": 1, "file_name": "a.png"}]})
    write(tmp_path / "c.odgt", '{"ID": "a", "gtboxes": []}')
    (tmp_path / "empty").mkdir()
    assert run("convert-data", *argv.split()) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "b.json").exists()
