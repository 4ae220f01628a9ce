import json
import math

import numpy as np
import pytest

from datasets.annotations import CategoryEntry, ImageEntry
from datasets.coco import from_coco, read_coco, to_coco
from tests.datasets.helpers import SHAPES, annotation, write_coco, write_json
from util.errors import UserError

CONTENT = {
    "images": [{"id": 1, "file_name": "1.png", "width": 40, "height": 30}],
    "annotations": [],
    "categories": SHAPES[:1],
}


def test_what_a_file_says(tmp_path):
    objects = [annotation(7, 2, 2, [1, 2, 3, 4], area=5, iscrowd=1), annotation("x", 1, 1.0, [0.5, 0, 4, 4])]
    _, file = write_coco(tmp_path, objects, sizes=((40, 30), (20, 10)))
    content = json.loads(file.read_text())
    content["images"][1] = {"id": 2.0, "file_name": "2.png", "width": None, "license": 3}
    content["images"].append({"id": "three", "file_name": "3.png", "width": 8.0, "height": 6.0})
    content["categories"].insert(0, {"id": 9, "name": 5})
    read = read_coco(write_json(file, content))
    assert read.source == file
    assert read.categories == [CategoryEntry(9, "5"), CategoryEntry(1, "circle"), CategoryEntry(2, "square")]
    assert read.images[:2] == [ImageEntry(1, "1.png", 40, 30), ImageEntry(2.0, "2.png", None, None)]
    assert [i.size for i in read.images] == [(40, 30), None, (8, 6)] and read.images[2].id == "three"
    assert (read.ids, read.image_ids, read.category_ids) == ([7, "x"], [2, 1], [2, 1.0])
    assert [type(v) for v in (read.images[1].id, read.category_ids[1])] == [float, float]  # ids stay as written
    assert read.boxes.dtype == np.float64 and read.boxes.tolist() == [[1, 2, 3, 4], [0.5, 0, 4, 4]]
    assert read.areas.tolist() == [5, 16]  # of the box, where the file gives none
    assert read.crowds.tolist() == [True, False] and len(read) == 2


def test_what_is_missing_or_null_has_a_value():
    crowd = [annotation(i, 1, 1, [0, 0, 2, 3], iscrowd=v, area=None) for i, v in enumerate((None, 0, False, 1, True))]
    content = {"images": [], "annotations": crowd, "categories": [{"id": 1, "name": "a"}]}
    read = from_coco(content, "memory")
    assert read.crowds.tolist() == [False, False, False, True, True] and set(read.areas) == {6}


@pytest.mark.parametrize("area", ["many", [3], 0, -1, math.nan, math.inf, True])
def test_an_area_that_is_no_positive_number_is_that_of_the_box_and_said(area):
    objects = [annotation(1, 1, 1, [0, 0, 4, 5], area=area), annotation(2, 1, 1, [0, 0, 4, 4], area="12.5")]
    read = from_coco(CONTENT | {"annotations": objects}, "f.json")
    assert read.areas.tolist() == [20, 12.5]
    assert read.remarks == [
        "'f.json': the area of 1 of 2 annotations is no positive number; width x height is taken instead"
    ]


@pytest.mark.parametrize("value", ["yes", 2, -1, [], "", 0.5])
def test_iscrowd_is_read_by_its_type_or_named(value):
    objects = [annotation(i, 1, 1, [0, 0, 2, 3], iscrowd=v) for i, v in enumerate(("0", "1", 0.0, 1.0))]
    assert from_coco(CONTENT | {"annotations": objects}, "f").crowds.tolist() == [False, True, False, True]
    objects.append(annotation(77, 1, 1, [0, 0, 2, 3], iscrowd=value))
    with pytest.raises(UserError, match=r"annotation 77 in 'f' has the iscrowd .*; it must be 0 or 1"):
        from_coco(CONTENT | {"annotations": objects}, "f")


def test_ids_written_as_text_are_matched_and_said():
    objects = [annotation(1, "1", "002", [0, 0, 4, 4]), annotation(2, "x", 1, [0, 0, 4, 4])]
    images = [{"id": 1, "file_name": "1.png"}, {"id": "x", "file_name": "x.png"}]
    read = from_coco({"images": images, "annotations": objects, "categories": SHAPES}, "f.json")
    assert (read.image_ids, read.category_ids) == ([1, "x"], [2, 1])
    assert read.remarks == [
        "'f.json': image_id '1' (text) is taken for the id 1 (number) of the images",
        "'f.json': category_id '002' (text) is taken for the id 2 (number) of the categories",
    ]


@pytest.mark.parametrize("absent", [("annotations",), ("annotations", "categories")])
@pytest.mark.parametrize("null", [False, True])
def test_a_file_may_list_images_alone(tmp_path, absent, null):
    content = CONTENT | dict.fromkeys(absent)
    read = read_coco(write_json(tmp_path / "a.json", content if null else {k: v for k, v in content.items() if v}))
    assert not read.annotated and len(read) == 0 and len(read.images) == 1
    assert len(read.categories) == (0 if "categories" in absent else 1)
    again = read_coco(write_json(tmp_path / "b.json", to_coco(read)))
    assert not again.annotated and again.images == read.images


def test_a_list_of_detections_is_no_annotation_file(tmp_path):
    file = write_json(tmp_path / "a.json", [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}])
    with pytest.raises(UserError, match="no list 'images': it is a list of detections"):
        read_coco(file)


def test_written_and_read_again_it_says_the_same(tmp_path):
    objects = [annotation(1, 1, 1, [math.inf, 2, 3, 4]), annotation(1, 9, 5, [1, 2, 3, 4], iscrowd=1, area=2)]
    _, file = write_coco(tmp_path, objects)
    first = read_coco(file)
    second = read_coco(write_json(file, to_coco(first)))
    assert first.images == second.images and first.categories == second.categories
    assert (first.ids, first.image_ids, first.category_ids) == (second.ids, second.image_ids, second.category_ids)
    for column in ("boxes", "areas", "crowds"):
        assert np.array_equal(getattr(first, column), getattr(second, column))
    assert to_coco(second) == to_coco(first)


def test_a_file_without_objects_has_empty_columns(tmp_path):
    read = read_coco(write_coco(tmp_path, [])[1])
    assert read.boxes.shape == (0, 4) and read.areas.shape == read.crowds.shape == (0,) and len(read) == 0


@pytest.mark.parametrize(
    ("part", "entry", "said"),
    [
        ("images", {"id": 4}, "'file_name'"),
        ("images", {"id": 4, "file_name": 5}, "image 4"),
        ("images", {"id": 4, "file_name": "a.png", "width": "40", "height": 30}, "image 4"),
        ("images", {"id": {}, "file_name": "a.png"}, "entry 3 of 'images'"),
        ("images", {"id": 1, "file_name": "a.png"}, "the id 1 to two images"),
        ("categories", {"id": 1, "name": "star"}, "the id 1 to two categories"),
        ("categories", {"id": 7}, "'name'"),
        ("categories", {"id": None, "name": "star"}, "entry 2 of 'categories'"),
        ("categories", {"id": True, "name": "star"}, r"entry 2 of 'categories' .* the id true; it must be"),
        ("categories", {"id": 1.5, "name": "star"}, r"the id 1.5 \(number\)"),
        ("categories", {"id": 7, "name": None}, "category 7 .* the name null"),
        ("images", {"id": 4, "file_name": "a.png", "width": 10**400, "height": 30}, "image 4"),
        ("images", {"id": 4, "file_name": "a.png", "width": True, "height": 30}, "image 4"),
        ("images", {"id": 4, "file_name": "a.png", "width": -40, "height": 30}, "image 4"),
    ],
)
def test_a_broken_entry_is_named(tmp_path, part, entry, said):
    _, file = write_coco(tmp_path, [])
    content = json.loads(file.read_text())
    content[part].append(entry)
    with pytest.raises(UserError, match=said) as raised:
        read_coco(write_json(file, content))
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("part", ["images", "categories"])
def test_a_missing_part_is_named(tmp_path, part):
    _, file = write_coco(tmp_path, [])
    content = json.loads(file.read_text())
    del content[part]
    with pytest.raises(UserError, match=f"no list '{part}'"):
        read_coco(write_json(file, content))
