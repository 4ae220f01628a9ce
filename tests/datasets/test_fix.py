import copy
import json
import math
import random

import pytest

from datasets.defects import check_dataset, check_splits
from datasets.fix import mend
from tests.datasets.helpers import annotation, write_coco, write_json
from util.config import DataPaths

SIZES = {1: (40, 30), 2: (30, 40)}
GOOD = annotation(1, 1, 1, [2, 2, 10, 10], area=100, iscrowd=0)


def content(*annotations, **parts) -> dict:
    """Two images and two classes, with other keys beside the lists and in the entries."""
    return {
        "info": {"year": 2024},
        "licenses": [{"id": 1}],
        "images": [{"id": i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in SIZES.items()],
        "categories": [{"id": 1, "name": "circle", "supercategory": "shape"}, {"id": 2, "name": "square"}],
        "annotations": [GOOD, *annotations],
    } | parts


def kinds(changes) -> list[str]:
    return [change.kind for change in changes]


def second(**change) -> dict:
    """A good annotation, changed; None takes a key away."""
    entry = annotation(2, 2, 2, [3, 3, 12, 9], area=108, iscrowd=0, segmentation=[[1, 2]]) | change
    return {key: value for key, value in entry.items() if value is not None}


@pytest.mark.parametrize(
    ("entry", "expected", "kind"),
    [
        (second(), second(), None),
        (second(area=50), second(area=50), None),  # of a segment
        (second(iscrowd=True), second(iscrowd=True), None),
        (second(bbox=[-0.5, 3, 12, 9]), second(bbox=[-0.5, 3, 12, 9]), None),  # rounding
        (second(bbox=[25, 3, 12, 9]), second(bbox=[25, 3, 5, 9], area=45), "box clipped, area computed"),
        (second(bbox=[-4, -3, 10, 10], area=9), second(bbox=[0, 0, 6, 7], area=9), "box clipped"),
        (second(bbox=[-4, -3, 10, 10], area=90), second(bbox=[0, 0, 6, 7], area=42), "box clipped, area computed"),
        (
            second(bbox=[-9, -9, 99, 99], area=99 * 99),
            second(bbox=[0, 0, 30, 40], area=1200),
            "box clipped, area computed",
        ),
        (second(bbox=["3", 3, "12.0", 9]), second(bbox=[3.0, 3.0, 12.0, 9.0]), "box made numbers"),
        (second(area=None), second(), "area computed"),
        (second(area=0), second(), "area computed"),
        (second(area=-1), second(), "area computed"),
        (second(area=math.nan), second(), "area computed"),
        (second(area="108.0"), second(), "area computed"),
        (second(area="50"), second(area=50), "area computed"),
        (second(area=9999), second(), "area computed"),
        (second(iscrowd="0"), second(), "iscrowd made a number"),
        (second(iscrowd="1"), second(iscrowd=1), "iscrowd made a number"),
        (second(iscrowd="perhaps"), second(iscrowd="perhaps"), None),  # nobody can know
        (second(image_id="2"), second(), "image_id changed"),
        (second(category_id="002"), second(), "category_id changed"),
        (second(id="2"), second(), "annotation id made a number"),
        (second(id="b"), second(), "annotation id made a number"),
        (second(id=True), second(), "annotation id made a number"),
        (second(id=None), second(), "annotation id made a number"),
        (second(id=1), second(), "doubled annotation id changed"),
        (second(bbox=[40, 3, 5, 5]), None, "box outside the image removed"),
        (second(bbox=[3, 3, 0, 9]), None, "empty box removed"),
        (second(bbox=[3, 3, 5, -9]), None, "negative box removed"),
        (second(bbox=[3, math.nan, 5, 9]), None, "non-finite box removed"),
        (second(bbox=[3, 3, 10**400, 9]), None, "non-finite box removed"),
        (second(bbox=[3, 3, 5]), None, "malformed box removed"),
        (second(bbox=None), None, "malformed box removed"),
        (second(image_id=9), None, "annotation of an unknown image removed"),
        (second(image_id=[2]), None, "annotation of an unknown image removed"),
        (second(category_id=9), None, "annotation of an unknown category removed"),
        (second(category_id=True), None, "annotation of an unknown category removed"),
        (GOOD | {"id": 2}, None, "doubled box removed"),
        (GOOD | {"id": 2, "iscrowd": 1}, GOOD | {"id": 2, "iscrowd": 1}, None),
        ("text", None, "malformed annotation removed"),
    ],
)
def test_an_annotation_is_mended_as_by_hand(entry, expected, kind):
    before = content(entry)
    untouched = copy.deepcopy(before)
    mended, changes = mend(before, SIZES)
    assert repr(before) == repr(untouched)
    assert mended == content(*([] if expected is None else [expected]))
    assert ", ".join(kinds(changes)) == (kind or "")


def test_each_change_says_where_and_what():
    _, changes = mend(content(second(bbox=[25, 3, 12, 9])), SIZES)
    assert str(changes[0]) == (
        "image 2.png, annotation 2: bbox [25, 3, 12, 9] is 7 pixels outside 30x40: now [25, 3, 5, 9]"
    )


def test_ids_that_are_text_become_numbers_everywhere():
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in ("b", "007", "a")]
    classes = [{"id": "square", "name": "square"}, {"id": "circle", "name": "circle"}]
    objects = [annotation(n, i, "circle", [n, 1, 4, 4]) for n, i in enumerate(("a", "b", "007", 7))]
    mended, _ = mend({"images": images, "categories": classes, "annotations": objects}, {})
    assert [i["id"] for i in mended["images"]] == [9, 7, 8]
    assert [c["id"] for c in mended["categories"]] == [2, 1]  # labels keep their order, which is that of ids
    assert [(a["image_id"], a["category_id"]) for a in mended["annotations"]] == [(8, 1), (9, 1), (7, 1), (7, 1)]


def test_images_and_classes_are_mended():
    images = [
        {"id": 1, "file_name": "1.png", "width": "40", "height": "30", "license": 3},
        {"id": 2, "file_name": "2.png", "width": "wide", "height": 40},
        {"id": 3, "file_name": "1.png", "width": 40, "height": 30},
        {"id": 4},
        {"id": 5, "file_name": "5.png", "width": -1, "height": 5},
    ]
    classes = [*content()["categories"], {"id": 2, "name": "square"}, {"id": 3}, {"id": 4, "name": None}]
    objects = (second(image_id=3, bbox=[2, 2, 10, 10]), second(id=3, image_id=4), second(id=4, category_id=3))
    mended, changes = mend(content(*objects, images=images, categories=classes), {2: (30, 40)})
    assert mended["images"] == [
        {"id": 1, "file_name": "1.png", "width": 40, "height": 30, "license": 3},
        {"id": 2, "file_name": "2.png", "width": 30, "height": 40},
        {"id": 5, "file_name": "5.png"},
    ]
    assert mended["categories"] == content()["categories"]
    assert [(a["id"], a["image_id"]) for a in mended["annotations"]] == [(1, 1), (2, 1)]
    assert kinds(changes)[:9] == [
        *("doubled category removed", "malformed category removed", "malformed category removed"),
        *("image size changed", "image size changed", "doubled image entry removed", "malformed image entry removed"),
        *("image size changed", "image_id changed"),
    ]


def test_the_lists_of_an_image_that_is_listed_twice_are_merged_as_its_boxes_are():
    """LVIS's lists of classes: a class that one entry names was looked for in the picture, whatever the other says."""

    def image(number: int, negative: object, partly: object, file: str = "1.png") -> dict:
        return {"id": number, "file_name": file, "neg_category_ids": negative, "not_exhaustive_category_ids": partly}

    images = [
        image(1, [5, "6"], []),
        image(2, [4], [3], "2.png"),
        image(3, [6, 7, 7], [4, "05"]),  # the class 6 is there as text: it is the same
        image(4, [7, 8], None),
        image(5, None, "none", "5.png"),
        image(6, [3], [4], "5.png"),
        image(7, [1], [1], "5.png") | {"neg_category_ids": 9},
    ]
    classes = [{"id": number, "name": str(number)} for number in range(1, 9)]
    before = content(images=images, categories=classes)
    untouched = copy.deepcopy(before)
    mended, changes = mend(before, {})
    assert mended["images"] == [
        image(1, [5, 6, 7, 8], [4, 5]),
        image(2, [4], [3], "2.png"),
        image(5, [3], "none", "5.png"),
    ]
    assert before == untouched
    assert [(change.kind, change.file) for change in changes if "merged" in change.kind] == [
        *(("neg_category_ids merged", "1.png"), ("not_exhaustive_category_ids merged", "1.png")),
        *(("neg_category_ids merged", "1.png"), ("neg_category_ids merged", "5.png")),
    ]
    assert "image 1.png: it is now [4, 5]" in map(str, changes)
    again, more = mend(mended, {})
    assert (again, more) == (mended, [])


def test_what_needs_a_person_stays():
    images = [*content()["images"], {"id": 2, "file_name": "other.png"}]
    classes = [*content()["categories"], {"id": 2, "name": "star"}]
    before = content(second(), images=images, categories=classes)
    assert mend(before, SIZES) == (before, [])


def test_a_list_of_images_alone_stays_one():
    before = {"images": content()["images"], "info": {}}
    assert mend(before, {}) == (before, [])


def test_other_keys_stay():
    mended, _ = mend(content(second(bbox=[-9, 3, 12, 9])), SIZES)
    assert (mended["info"], mended["licenses"]) == ({"year": 2024}, [{"id": 1}])
    assert mended["annotations"][1]["segmentation"] == [[1, 2]]


def disorder(seed: int) -> dict:
    """Annotations with several random faults each."""
    draw = random.Random(seed)
    faults = {
        "id": (1, "1", "x", True, None, 3, 2.0),
        "image_id": (1, "1", 2, "02", 9, "x", None),
        "category_id": (1, "2", 2, 3, "circle"),
        "bbox": ([-9, 1, 20, 20], [1, 1, 0, 5], ["1", 1, 5, 5], [math.nan] * 4, [1], [25, 25, 20, 20], [90, 1, 5, 5]),
        "area": (0, -1, "12", "x", math.inf, 10**400, 1e6, True, 30),
        "iscrowd": (0, 1, "0", "1", True, None),
    }
    objects = []
    for number in range(40):
        entry = second(id=number, bbox=[number % 9, 1, 9, 9], area=81)
        chosen = draw.sample(sorted(faults), draw.randrange(4))
        objects.append(entry | {key: draw.choice(faults[key]) for key in chosen})
    return content(*objects)


@pytest.mark.parametrize("seed", range(5))
def test_the_mended_copy_has_no_defects_and_nothing_more_to_mend(tmp_path, seed):
    images, file = write_coco(tmp_path, [], sizes=tuple(SIZES.values()))
    write_json(file, disorder(seed))
    source = file.read_bytes()
    report = check_dataset(images, file, mended=tmp_path / "new" / "out.json")
    assert len(report.defects) > 20 and len(report.changes) > 20 and report.left == [] == report.remaining
    assert file.read_bytes() == source
    again = check_dataset(images, tmp_path / "new" / "out.json", mended=tmp_path / "again.json")
    assert again.defects == [] and again.changes == []
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads((tmp_path / "new" / "out.json").read_text())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.json"]


def test_defects_that_are_left_are_listed(tmp_path):
    images, file = write_coco(tmp_path, [GOOD, second(iscrowd="perhaps", area=0)], sizes=tuple(SIZES.values()))
    (images / "2.png").unlink()
    report = check_dataset(images, file, mended=tmp_path / "out.json")
    assert [d.kind for d in report.left] == ["iscrowd", "missing image"] and report.remaining == report.left
    text = report.text()
    assert f"mended copy   {tmp_path / 'out.json'}" in text
    assert "changes       1\n    area computed (1)\n      image 2.png, annotation 2: area 0 (number) is now 108" in text
    assert "left          2\n    iscrowd (1)" in text
    assert json.loads(json.dumps(report.to_dict()))["changes"][0]["kind"] == "area computed"


def test_an_image_of_unknown_size_is_measured_to_clip(tmp_path):
    images, file = write_coco(tmp_path, [second(bbox=[25, 3, 12, 9])], sizes=tuple(SIZES.values()))
    stated = json.loads(file.read_text())
    for image in stated["images"]:
        del image["width"], image["height"]
    report = check_dataset(images, write_json(file, stated), mended=tmp_path / "out.json")
    assert report.left == []
    assert json.loads((tmp_path / "out.json").read_text())["annotations"][0]["bbox"] == [25, 3, 5, 9]


def test_both_splits_are_mended_into_a_folder(tmp_path):
    for split in ("train", "val"):
        write_coco(tmp_path, [GOOD], sizes=tuple(SIZES.values()), split=split)
    reports = check_splits(DataPaths(root=str(tmp_path)), str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["train.json", "val.json"]
    assert [r.remaining for r in reports.values()] == [[], []]
