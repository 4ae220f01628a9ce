import numpy as np
import pytest
from PIL import Image

from datasets.annotations import ImageEntry
from datasets.inspection import SizeMismatch, inspect
from datasets.picture_file import BrokenImage, MissingImage
from tests.datasets.helpers import picture


def no_boxes(positions) -> list[np.ndarray]:
    return [np.zeros((0, 4)) for _ in positions]


def save(path, size=(40, 30), orientation=1, cut=0) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(*size).save(path, exif=exif)
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])


def test_each_image_is_looked_at_in_order(tmp_path):
    save(tmp_path / "a.jpg")
    save(tmp_path / "b.jpg", cut=20)
    save(tmp_path / "d.jpg", (30, 30))
    save(tmp_path / "e f.jpg")
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "x\\e%20f.jpg"]
    looks = inspect(tmp_path, [ImageEntry(i, name, 40, 30) for i, name in enumerate(names)], no_boxes)
    assert [type(look.fault) for look in looks] == [type(None), BrokenImage, MissingImage, SizeMismatch, type(None)]
    assert [look.as_written for look in looks] == [True, True, True, True, False]
    assert [look.size for look in looks] == [(40, 30), (40, 30), None, (30, 30), (40, 30)]
    assert [look.path.name for look in looks] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e f.jpg"]
    assert "30x30 pixels, but annotated as 40x30" in str(looks[3].fault)
    assert not any(look.lenient or look.guessed for look in looks)


def test_many_images_keep_their_order(tmp_path):
    for i in range(5):
        picture(4 + i, 3).save(tmp_path / f"{i}.png")
    looks = inspect(tmp_path, [ImageEntry(i, f"{i % 5}.png") for i in range(150)], no_boxes)
    assert [look.size for look in looks] == [(4 + i % 5, 3) for i in range(150)]


def test_bytes_after_the_end_are_decided_by_decoding(tmp_path):
    save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"SEFT" * 100)
    assert inspect(tmp_path, [ImageEntry(1, "a.jpg")], no_boxes)[0].fault is None


def test_damage_within_a_file_is_found_by_decoding_all(tmp_path):
    picture(40, 30).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.png").write_bytes(content)
    entries = [ImageEntry(1, "a.png", 40, 30)]
    assert inspect(tmp_path, entries, no_boxes)[0].fault is None
    assert isinstance(inspect(tmp_path, entries, no_boxes, whole=True)[0].fault, BrokenImage)
    (look,) = inspect(tmp_path, entries, no_boxes, whole=True, mend=True)
    assert isinstance(look.fault, BrokenImage) and look.lenient


def test_what_holds_no_picture_cannot_be_mended(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").write_text("text")
    entries = [ImageEntry(1, "a.jpg"), ImageEntry(2, "b.jpg")]
    assert [look.lenient for look in inspect(tmp_path, entries, no_boxes, whole=True, mend=True)] == [False, False]


def test_one_file_is_not_found_for_two_names(tmp_path):
    save(tmp_path / "x.jpg")
    entries = [ImageEntry(1, "train/x.jpg"), ImageEntry(2, "val/x.jpg")]
    looks = inspect(tmp_path, entries, no_boxes)
    assert all(isinstance(look.fault, MissingImage) for look in looks)
    assert "'val/x.jpg'" in str(looks[0].fault) and "'train/x.jpg'" in str(looks[1].fault)
    looks = inspect(tmp_path, [ImageEntry(1, "x.jpg"), ImageEntry(2, "val/x.jpg")], no_boxes)
    assert [look.fault is None for look in looks] == [True, False]
    looks = inspect(tmp_path, [ImageEntry(1, "val/x.jpg"), ImageEntry(2, "val/x.jpg")], no_boxes)
    assert [look.fault for look in looks] == [None, None]  # listed twice: an image, however often


@pytest.mark.parametrize(
    ("stated", "exif", "box", "size", "guessed"),
    [
        ((40, 30), "auto", [1, 1, 5, 5], (40, 30), True),
        ((40, 30), "auto", [1, 30, 5, 9], (30, 40), False),
        ((40, 30), "auto", [35, 1, 5, 5], (40, 30), False),
        ((40, 30), "upright", [1, 1, 5, 5], (30, 40), False),
        ((30, 40), "auto", [1, 1, 5, 5], (30, 40), False),
        ((30, 40), "raw", [1, 1, 5, 5], (40, 30), False),
        (None, "auto", [1, 1, 5, 5], (30, 40), True),
    ],
)
def test_frames_of_rotated_pictures(tmp_path, stated, exif, box, size, guessed):
    save(tmp_path / "0.jpg")
    save(tmp_path / "1.jpg", orientation=6)
    asked = []

    def boxes_of(positions):
        asked.extend(positions)
        return [np.array([box], dtype=float) for _ in positions]

    entries = [ImageEntry("0", "0.jpg", 40, 30), ImageEntry("1", "1.jpg", *(stated or (None, None)))]
    looks = inspect(tmp_path, entries, boxes_of, exif)
    assert asked == [1]
    assert [(look.size, look.guessed, look.fault) for look in looks] == [((40, 30), False, None), (size, guessed, None)]


def test_a_rotated_picture_of_neither_size_is_of_another(tmp_path):
    save(tmp_path / "1.jpg", orientation=6)
    (look,) = inspect(tmp_path, [ImageEntry(1, "1.jpg", 41, 30)], no_boxes, "upright")
    assert isinstance(look.fault, SizeMismatch) and "30x40" in str(look.fault)
