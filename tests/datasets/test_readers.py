import pytest

from datasets import readers
from datasets.coco import from_coco
from datasets.dataset import CocoDetection
from datasets.defects import check_dataset
from tests.datasets.helpers import SHAPES, annotation, write_coco
from util.errors import UserError


@pytest.mark.parametrize("name", ["a.json", "a.JSON", "a.txt", "a"])
def test_a_file_of_any_other_suffix_is_taken_for_coco(tmp_path, name):
    _, file = write_coco(tmp_path, [annotation(1, 1, 1, [0, 0, 4, 4])])
    read = readers.read_annotations(str(file.rename(tmp_path / name)))
    assert len(read) == 1 and read.source == tmp_path / name
    with pytest.raises(UserError, match=f"no annotation file '.*gone{name}'"):
        readers.read_annotations(tmp_path / f"gone{name}")


def lines_of_boxes(path):
    """A reader of lines `image class x y width height`."""
    images = [
        {"id": f"{i}.png", "file_name": f"{i}.png", "width": w, "height": h} for i, w, h in [(1, 40, 30), (2, 30, 40)]
    ]
    rows = [line.split() for line in path.read_text().splitlines()]
    objects = [annotation(i, image, kind, [float(v) for v in box]) for i, (image, kind, *box) in enumerate(rows, 1)]
    categories = [{"id": c["name"], "name": c["name"]} for c in SHAPES]
    return from_coco({"images": images, "annotations": objects, "categories": categories}, path)


def test_what_was_read_as_something_else_is_said_once(tmp_path, capsys):
    _, file = write_coco(tmp_path, [annotation(1, "1", 1, [0, 0, 4, 4])])
    assert [readers.read_annotations(file).image_ids for _ in range(2)] == [[1]] * 2
    assert capsys.readouterr().err.count("image_id '1' (text) is taken for the id 1 (number)") == 1


def test_another_format_is_a_reader_and_a_line(tmp_path, monkeypatch):
    """Training's samples and check-data take it, without a line of their own."""
    monkeypatch.setitem(readers.READERS, ".boxes", lines_of_boxes)
    images, _ = write_coco(tmp_path, [], sizes=((40, 30), (30, 40)))
    (tmp_path / "a.boxes").write_text("1.png circle 10 15 20 6\n2.png square 1 1 0 5\n")
    dataset = CocoDetection.from_file(images, tmp_path / "a.boxes")
    assert [len(s.objects.labels) for s in dataset] == [1, 0] and dataset.dropped == 1
    assert dataset[0].objects.boxes.tolist() == [pytest.approx([0.5, 0.6, 0.5, 0.2])]
    report = check_dataset(images, tmp_path / "a.boxes")
    assert [(d.kind, d.file, d.annotation) for d in report.defects] == [("empty box", "2.png", 2)]
    assert (report.images, report.objects_of_class) == (2, {"circle": 1, "square": 1})
