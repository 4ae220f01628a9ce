"""Regions that are left out: fields of COCO's format, CrowdHuman's masks, VisDrone's ignored regions."""

import json
from pathlib import Path

import numpy as np
import pytest

from datasets.coco import from_coco
from datasets.dataset import CocoDetection
from datasets.defects import check_dataset
from datasets.evaluation import evaluate_detections
from datasets.readers import read_annotations
from tests.datasets.helpers import picture
from tests.datasets.test_evaluation import found, thing, truth_of
from util.errors import UserError

OBJECT, REGION, INSIDE, OUTSIDE = [2, 3, 10, 12], [20, 4, 16, 20], [22, 6, 8, 9], [1, 20, 10, 9]
VISDRONE = """\
2,3,10,12,1,4,0,0
20,4,16,20,0,0,0,0
1,20,6,6,0,1,0,1,

12,20,5,6,0,11,1,0
"""


def images_in(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        picture(40, 30).save(folder / f"{name}.jpg")
    return folder


@pytest.fixture
def visdrone(tmp_path) -> tuple[Path, Path]:
    """Image folder and annotations: a car, an ignored region, an ignored pedestrian and something else; and nothing."""
    texts = tmp_path / "annotations"
    texts.mkdir()
    (texts / "a.txt").write_text(VISDRONE)
    (texts / "b.txt").write_text("")
    return images_in(tmp_path / "images", "a", "b"), texts


PERSON = {"tag": "person", "hbox": [4, 3, 4, 4], "head_attr": {"ignore": 0}, "fbox": OBJECT, "vbox": OBJECT}
CROWDHUMAN = [
    PERSON | {"extra": {"occ": 0}},
    PERSON | {"fbox": OUTSIDE, "head_attr": {"ignore": 1}, "extra": {"occ": 1}},
    {"tag": "mask", "fbox": REGION, "hbox": REGION, "head_attr": {}, "extra": {"ignore": 1}},
    {"tag": "person", "fbox": [30, 1, 5, 2], "extra": {"ignore": 1}},
]


@pytest.fixture
def crowdhuman(tmp_path) -> tuple[Path, Path]:
    file = tmp_path / "train.odgt"
    entries = ({"ID": "273271,a", "gtboxes": CROWDHUMAN}, {"ID": "b", "gtboxes": []})
    file.write_text("\n".join(map(json.dumps, entries)) + "\n")
    return images_in(tmp_path / "images", "273271,a", "b"), file


def rows_of(read) -> list[tuple]:
    columns = (read.image_ids, read.category_ids, read.boxes.tolist(), np.asarray(read.crowds).tolist())
    return sorted(zip(*columns))


def test_visdrone_is_read_by_hand(visdrone):
    read = read_annotations(visdrone[1])
    names = ["pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor"]
    assert [(c.id, c.name) for c in read.categories] == list(enumerate(names, 1))
    assert [(i.id, i.file_name) for i in read.images] == [("a", "a.jpg"), ("b", "b.jpg")]
    regions = [("a", k, box, True) for k in range(1, 11) for box in (REGION, [12, 20, 5, 6])]
    assert rows_of(read) == sorted([("a", 4, OBJECT, False), ("a", 1, [1, 20, 6, 6], True), *regions])


def test_crowdhuman_is_read_by_hand(crowdhuman):
    read = read_annotations(crowdhuman[1])
    assert [c.name for c in read.categories] == ["person", "head"]
    assert [(i.id, i.file_name) for i in read.images] == [("273271,a", "273271,a.jpg"), ("b", "b.jpg")]
    head = [4, 3, 4, 4]
    of_persons = [(1, OBJECT, False), (2, head, False), (1, OUTSIDE, False), (2, head, True), (1, [30, 1, 5, 2], True)]
    of_mask = [(1, REGION, True), (2, REGION, True)]
    assert rows_of(read) == sorted(("273271,a", *row) for row in of_persons + of_mask)


@pytest.mark.parametrize(("data", "image", "kind"), [("visdrone", "a", 4), ("crowdhuman", "273271,a", 1)])
def test_a_detection_in_a_region_is_neither_right_nor_wrong(request, data, image, kind):
    """Of one object: precision 1 where the better-scored one lies in a region, 1/2 where it does not."""
    read = read_annotations(request.getfixturevalue(data)[1])
    read.crowds = read.crowds | (read.boxes == OUTSIDE).all(1)  # CrowdHuman's second person
    for box, expected in ((INSIDE, 1.0), ([1, 1, 2, 2], 0.5)):
        results = [found(image, kind, box, 0.9), found(image, kind, OBJECT, 0.8)]
        name = read.categories[kind - 1].name
        assert evaluate_detections(read, results).value(f"AP/{name}") == pytest.approx(expected)


@pytest.mark.parametrize(("data", "labels"), [("visdrone", [[3], []]), ("crowdhuman", [[0, 0, 1], []])])
def test_training_does_not_see_the_regions(request, data, labels):
    dataset = CocoDetection.from_file(*request.getfixturevalue(data))
    assert [sorted(s.objects.labels.tolist()) for s in dataset] == labels
    x, y, w, h = OBJECT
    expected = [(x + w / 2) / 40, (y + h / 2) / 30, w / 40, h / 30]
    assert dataset[0].objects.boxes[0].tolist() == pytest.approx(expected)
    report = check_dataset(*request.getfixturevalue(data))
    assert not report.defects and report.crowds == {"visdrone": 21, "crowdhuman": 4}[data]


@pytest.mark.parametrize("key", ["ignore", "iscrowd"])
def test_fields_of_coco_that_leave_a_region_out(key):
    region = thing(2, 1, 10, REGION) | {key: 1}
    read = from_coco(truth_of([thing(1, 1, 10, OBJECT, ignore=0), region]), "x.json")
    assert read.crowds.tolist() == [False, True]
    assert [r.split(": ", 1)[1][:33] for r in read.remarks] == ["1 of 2 annotations have ignore 1 a"[:33]] * (
        key == "ignore"
    )
    results = [found(1, 10, INSIDE, 0.9), found(1, 10, INSIDE, 0.85), found(1, 10, OBJECT, 0.8)]
    assert evaluate_detections(read, results).figures["AP"] == pytest.approx(1)
    plain = from_coco(truth_of([thing(1, 1, 10, OBJECT)]), "x.json")
    assert evaluate_detections(plain, results).figures["AP"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1,2,3,4,1,12,0,0", "line 5 of '.*a.txt' has the category 12; VisDrone's are 0 to 11"),
        ("1,2,3,4,1,1,0", "line 5 of '.*a.txt' is '1,2,3,4,1,1,0'; it must be eight numbers"),
        ("1,2,x,4,1,1,0,0", "eight numbers"),
        ("1,2,3,4,1,car,0,0", "eight numbers"),
    ],
)
def test_a_row_of_visdrone_that_is_none(visdrone, row, said):
    file = visdrone[1] / "a.txt"
    file.write_text(VISDRONE.replace("12,20,5,6,0,11,1,0", row))
    with pytest.raises(UserError, match=said):
        read_annotations(visdrone[1])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 of '.*odgt' is no image of CrowdHuman's"),
        ('{"ID": "x"}', "is no image of CrowdHuman's"),
        ('{"ID": "b", "gtboxes": []}\n{"ID": "b", "gtboxes": []}', "line 3 of .* of the image b, which an earlier"),
        ('{"ID": "x", "gtboxes": [{"tag": "person"}]}', "box 0 of line 2 of .* must have a 'tag' and an 'fbox'"),
        ('{"ID": "x", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3]}]}', "has the fbox .* four numbers"),
        ('{"ID": "x", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3, null]}]}', "has the fbox .* four numbers"),
    ],
)
def test_a_line_of_crowdhuman_that_is_none(crowdhuman, line, said):
    file = crowdhuman[1]
    file.write_text(file.read_text().splitlines()[0] + "\n" + line)
    with pytest.raises(UserError, match=said):
        read_annotations(file)


@pytest.mark.filterwarnings("error")
def test_a_box_whose_area_is_no_number_says_nothing(crowdhuman):
    crowdhuman[1].write_text('{"ID": "x", "gtboxes": [{"tag": "person", "fbox": [0, 0, 1e200, 1e200]}]}')
    assert read_annotations(crowdhuman[1]).areas.tolist() == [float("inf")]


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no annotation file"):
        read_annotations(tmp_path / "gone.odgt")
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(UserError, match="nothing names the classes"):  # of another format: not taken for VisDrone's
        read_annotations(tmp_path / "yolo")


def test_visdrone_is_known_by_its_commas(tmp_path):
    """With a byte order mark; and where a number is not VisDrone's, the sentence is on that, not on YOLO's classes."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + VISDRONE.encode())
    assert len(read_annotations(tmp_path)) > 3
    (tmp_path / "a.txt").write_text("1,1,10,10,0.9,1,0,0\n")
    with pytest.raises(UserError, match=r"line 1 of .*a\.txt' is '1,1,10,10,0\.9,1,0,0'; it must be eight numbers"):
        read_annotations(tmp_path)
