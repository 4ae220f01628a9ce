"""Usual files are read into columns; the careful reader says the same of them, and reads all others."""

import dataclasses
import json
import math

import numpy as np
import pytest

from datasets import coco_columns, defects
from datasets.coco import from_coco, read_coco, read_lists, to_coco
from datasets.coco_columns import read_usual
from datasets.defects import check_dataset
from datasets.evaluation import evaluate_detections
from datasets.lvis import LISTS
from datasets.protocol import protocol_for
from tests.datasets.helpers import annotation, picture, write_json
from tests.datasets.test_federated import lvis_scene
from util.errors import UserError

DELETED = object()


def content(objects: int = 40, seed: int = 0) -> dict:
    """A COCO file whose objects are odd in every way that does not make the file unusual."""
    rng = np.random.default_rng(seed)
    images = [{"id": 3 * i + 5, "file_name": f"ä{i}.png", "width": 40, "height": 30 + i} for i in range(6)]
    images[2] = {"id": 11, "file_name": "𝄞.png"}
    boxes = rng.integers(-4, 36, (objects, 4)).tolist()
    listed = [
        annotation(i % 37, 5 + 3 * (i % 6), 1 + i % 3, box, iscrowd=int(i % 9 == 0)) for i, box in enumerate(boxes)
    ]
    for i, entry in enumerate(listed):
        entry["segmentation"] = [[1.5, 2, 3e1]] if i % 2 else {"counts": "a\\u00e4", "size": [1, 2]}
        entry["area"] = 0.5 * abs(entry["bbox"][2] * entry["bbox"][3]) + 0.25
        if i % 5 == 0:
            del entry["area"]
        if i % 7 == 0:
            entry["bbox"] = [2.5, 2, 8, 9.125]
    categories = [{"id": 3, "name": "c"}, {"id": 1, "name": "a", "supercategory": "x"}, {"id": 2, "name": "a"}]
    return {"info": {"year": 2026}, "images": images, "annotations": listed, "categories": categories}


def assert_same(one, other) -> None:
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=field.name, strict=True)
        else:
            assert a == b, field.name


@pytest.mark.parametrize(("objects", "mark"), [(1, b"\xef\xbb\xbf"), (40, b""), (101, b"")])
def test_a_usual_file_is_read_as_the_careful_reader_does(tmp_path, objects, mark, monkeypatch):
    monkeypatch.setattr(coco_columns, "AT_ONCE", 50)
    given, file = content(objects), tmp_path / "a.json"
    file.write_bytes(mark + json.dumps(given, ensure_ascii=objects == 1).encode())
    read = read_usual(file)
    assert read is not None
    assert_same(read, from_coco(given, file))
    assert_same(read_coco(file), read)


def test_areas_that_none_can_be_are_remarked_on_alike(tmp_path):
    given, file = content(), tmp_path / "a.json"
    for entry, area in zip(given["annotations"], (0, -2, None, 0.0)):
        entry["area"] = area
    file.write_text(json.dumps(given))
    read = read_usual(file)
    assert read is not None and read.remarks == from_coco(given, file).remarks and "of 3 of 40" in read.remarks[0]


def lvis(kind: str) -> dict:
    """The same as LVIS has it: addresses for names, and lists of classes that are there, are not, or do not exist."""
    given = content(101)
    for i, image in enumerate(given["images"]):
        image |= {"neg_category_ids": [3, 99, 1][: i % 4], "not_exhaustive_category_ids": [2, 3][: i % 3]}
        if i % 2:
            image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    for entry, frequency in zip(given["categories"], "rcf"):
        entry |= {"frequency": frequency, "synonyms": ["x"], "image_count": 3}
    if kind == "no negatives":
        given["images"] = [image | {"neg_category_ids": []} for image in given["images"]]
    if kind == "some lists":
        given["images"][3]["neg_category_ids"] = None
        del given["images"][2]["not_exhaustive_category_ids"]
    if kind == "odd frequencies":
        given["categories"][0]["frequency"], given["categories"][1]["frequency"] = "q", None
    if kind == "no frequencies":
        given["categories"] = [{"id": c["id"], "name": c["name"]} for c in given["categories"]]
    if kind == "frequencies alone":
        given["images"] = [{"id": i["id"], "file_name": f"{i['id']}.png"} for i in given["images"]]
    return given


@pytest.mark.parametrize(
    "kind", ["usual", "no negatives", "some lists", "odd frequencies", "no frequencies", "frequencies alone"]
)
def test_a_file_of_lvis_is_read_as_the_careful_reader_does(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(coco_columns, "AT_ONCE", 4)
    file = write_json(tmp_path / "a.json", lvis(kind))
    read, careful = read_usual(file), from_coco(read_lists(file), file)
    assert read is not None
    assert_same(read, careful)
    assert (read.federated is None) == (kind in ("some lists", "frequencies alone"))
    assert bool(read.remarks) == (kind in ("some lists", "odd frequencies"))
    assert to_coco(read) == to_coco(careful)
    if kind == "usual":
        assert read.federated.negatives == {8: (3,), 11: (3, 99), 14: (3, 99, 1), 20: (3,)}
        assert read.federated.not_exhaustive.get(8) == (2,) and read.federated.not_exhaustive.get(5) is None
        assert read.images[1].file_name == "train2017/ä1.png" and read.images[2].file_name == "𝄞.png"


def test_detections_are_scored_alike_whoever_read_the_file(tmp_path):
    truth, results = lvis_scene(3)
    file = write_json(tmp_path / "a.json", truth)
    read = read_usual(file)
    assert read is not None and protocol_for(read) == "lvis"
    assert evaluate_detections(read, results).figures == evaluate_detections(from_coco(truth, file), results).figures


UNUSUAL = {
    "id of 7.0": ("annotations", "id", 7.0),
    "id as text": ("annotations", "image_id", "8"),
    "yes": ("annotations", "category_id", True),
    "crowd as text": ("annotations", "iscrowd", "1"),
    "crowd of 2": ("annotations", "iscrowd", 2),
    "box of three": ("annotations", "bbox", [1, 2, 3]),
    "box with text": ("annotations", "bbox", [1, 2, 3, "4"]),
    "box of NaN": ("annotations", "bbox", [1, 2, 3, math.nan]),
    "area as text": ("annotations", "area", "3"),
    "large id": ("annotations", "id", 2**70),
    "NaN elsewhere": ("annotations", "segmentation", [math.nan]),
    "image of 7.0": ("images", "id", 8.0),
    "doubled image": ("images", "id", 5),
    "name no text": ("images", "file_name", 3),
    "half a letter": ("images", "file_name", "\ud83d"),
    "no height": ("images", "height", None),
    "no pixels": ("images", "width", 0),
    "class as number": ("categories", "name", 3),
    "doubled class": ("categories", "id", 3),
    "no name": ("images", "file_name", DELETED),
    "LVIS classes as text": ("images", "neg_category_ids", ["1"]),
    "LVIS classes no list": ("images", "not_exhaustive_category_ids", 1),
    "frequency as number": ("categories", "frequency", 1),
    "ignored": ("annotations", "ignore", 1),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_what_is_unusual_is_left_to_the_careful_reader(tmp_path, case):
    part, key, value = UNUSUAL[case]
    given, file = content(), tmp_path / "a.json"
    given[part][1][key] = value
    if value is DELETED:
        del given[part][1][key]
    file.write_text(json.dumps(given))
    assert read_usual(file) is None
    try:
        expected = from_coco(read_lists(file), file)
    except UserError as error:
        with pytest.raises(UserError) as raised:
            read_coco(file)
        assert str(raised.value) == str(error)
    else:
        assert_same(read_coco(file), expected)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b'{"images": [], "annotations": [], "categories": []}', b"\xff{}", b"[" * 100_000],
    ids=lambda data: repr(data[:9]),
)
def test_no_file_is_too_odd_to_be_left(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    assert read_usual(tmp_path / "a.json") is None and read_usual(tmp_path) is None


def test_bytes_that_are_no_utf8_are_seen_even_where_nobody_reads_them(tmp_path):
    given = json.dumps(content()).replace('"year"', '"y?ar"').encode()
    (tmp_path / "a.json").write_bytes(given.replace(b"y?ar", b"y\xffar"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_coco(tmp_path / "a.json")


@pytest.mark.parametrize("seed", range(3))
def test_check_data_says_of_columns_what_it_says_of_entries(tmp_path, seed, monkeypatch):
    given, file = content(60, seed), tmp_path / "a.json"
    for entry in given["annotations"][::8]:
        entry[("image_id", "category_id")[seed % 2]] = 99
    given["annotations"][3] |= {"bbox": [1, 1, 5, 5], "area": 900}
    for image in given["images"]:
        picture(image.get("width", 33), image.get("height", 31)).save(tmp_path / image["file_name"])
    if seed == 2:
        given["images"] = [image | {key: [1, 99] for key in LISTS} for image in given["images"]]
    file.write_text(json.dumps(given))
    in_columns = check_dataset(tmp_path, file).to_dict()
    monkeypatch.setattr(defects, "read_usual", lambda path: None)
    assert check_dataset(tmp_path, file).to_dict() == in_columns
    kinds = {defect["kind"] for defect in in_columns["defects"]}
    assert kinds >= {"duplicate annotation id", "empty box", "area", "doubled box", "box outside the image"}
