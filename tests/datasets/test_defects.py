import json
import math

import pytest

from datasets.defects import check_dataset
from datasets.shapes import generate
from tests.datasets.helpers import SHAPES, annotation, picture, write_coco, write_json
from tests.datasets.test_inspection import save
from util.errors import UserError

GOOD = [annotation(1, 1, 1, [2, 2, 10, 10]), annotation(2, 2, 2, [3, 3, 12, 9])]


def check(tmp_path, extra=(), change=None, **options):
    """The report of two good annotations, the `extra` ones, and what `change` makes of the file's content."""
    images, file = write_coco(tmp_path, [*GOOD, *extra], **options)
    if change is not None:
        content = json.loads(file.read_text())
        change(content, images)
        write_json(file, content)
    return check_dataset(images, file)


def found(report) -> list[tuple]:
    return [(d.kind, d.file, d.annotation) for d in report.defects]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (annotation(9, 1, 1, [1, 1, 0, 5]), ("empty box", "1.png", 9)),
        (annotation(9, 1, 1, [1, 1, 5, 0]), ("empty box", "1.png", 9)),
        (annotation(9, 1, 1, [10, 10, -5, 5]), ("negative box", "1.png", 9)),
        (annotation(9, 1, 1, [10, 10, 5, -5]), ("negative box", "1.png", 9)),
        (annotation(9, 1, 1, [math.nan, 1, 5, 5]), ("non-finite box", "1.png", 9)),
        (annotation(9, 1, 1, [1, 1, math.inf, 5]), ("non-finite box", "1.png", 9)),
        (annotation(9, 1, 1, [30, 5, 12, 5]), ("box outside the image", "1.png", 9)),
        (annotation(9, 1, 1, [5, 27, 5, 5]), ("box outside the image", "1.png", 9)),
        (annotation(9, 1, 1, [-2, 5, 5, 5]), ("box outside the image", "1.png", 9)),
        (annotation(9, 1, 1, [5, -2, 5, 5]), ("box outside the image", "1.png", 9)),
        (annotation(9, 1, 1, [-1, -1, 1, 1]), ("box outside the image", "1.png", 9)),  # all zeros in Pascal VOC
        (annotation(9, 1, 1, [40, 5, 1, 5]), ("box outside the image", "1.png", 9)),
        (annotation(9, 1, 1, [2, 2, 10, 10]), ("doubled box", "1.png", 9)),
        (annotation(9, 1, 1, [1, 1, 5]), ("malformed box", "1.png", 9)),
        (annotation(9, 1, 1, ["1", 1, 5, 5]), ("malformed box", "1.png", 9)),
        (annotation(9, 1, 1, None), ("malformed box", "1.png", 9)),
        (annotation(9, 1, 5, [1, 1, 5, 5]), ("unknown category", "1.png", 9)),
        (annotation(9, 8, 1, [1, 1, 5, 5]), ("unknown image", None, 9)),
        (annotation(2, 1, 1, [1, 1, 5, 5]), ("duplicate annotation id", "1.png", 2)),
        (annotation(9, 1, [1], [1, 1, 5, 5]), ("malformed annotation", "1.png", 9)),
        (annotation(9, [1], 1, [1, 1, 5, 5]), ("malformed annotation", None, 9)),
        ({"id": 9, "image_id": 1, "bbox": [1, 1, 5, 5]}, ("malformed annotation", "1.png", 9)),
        ({"id": 9, "category_id": 1, "bbox": [1, 1, 5, 5]}, ("malformed annotation", None, 9)),
        ({"id": 9, "image_id": 1, "category_id": 1}, ("malformed annotation", "1.png", 9)),
        ({"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}, ("malformed annotation", "1.png", "(entry 2)")),
        ("text", ("malformed annotation", None, None)),
        (annotation(9, 1, 1, [1, 1, 5, 5], area=0), ("area", "1.png", 9)),
        (annotation(9, 1, 1, [1, 1, 5, 5], area=-1), ("area", "1.png", 9)),
        (annotation(9, 1, 1, [1, 1, 5, 5], area=math.nan), ("area", "1.png", 9)),
        (annotation(9, 1, 1, [1, 1, 5, 5], area="25"), ("area", "1.png", 9)),
        (annotation(9, 1, 1, [1, 1, 5, 5], area=[25]), ("area", "1.png", 9)),
        (annotation(9, 1, 1, [1, 1, 5, 5], area=50), ("area", "1.png", 9)),
        (annotation(9, 1, 1, [1, 1, 5, 5], iscrowd="0"), ("iscrowd", "1.png", 9)),
        (annotation(9, 1, 1, [1, 1, 5, 5], iscrowd=2), ("iscrowd", "1.png", 9)),
        (annotation(9, 1, 1, [1, 1, 5, 5], iscrowd=[]), ("iscrowd", "1.png", 9)),
        (annotation(9, "1", 1, [1, 1, 5, 5]), ("id of another type", "1.png", 9)),
        (annotation(9, 1, "01", [1, 1, 5, 5]), ("id of another type", "1.png", 9)),
        (annotation(9, True, 1, [1, 1, 5, 5]), ("malformed annotation", None, 9)),
        (annotation(9, 1, 1, [1, 1, 10**400, 5]), ("non-finite box", "1.png", 9)),
    ],
)
def test_every_defect_of_an_annotation_is_found_once_at_its_place(tmp_path, entry, expected):
    assert found(check(tmp_path, [entry])) == [expected]


def add_image(entry):
    return lambda content, folder: content["images"].append(entry)


def add_category(entry):
    return lambda content, folder: content["categories"].append(entry)


def truncate(content, folder):
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:200])


def no_picture(content, folder):
    (folder / "2.png").write_text("text")


def remove(content, folder):
    (folder / "2.png").unlink()


def resize(content, folder):
    picture(31, 40).save(folder / "2.png")


def state_text(content, folder):
    content["images"][1]["width"] = "30"


def no_list(content, folder):
    content["images"][1]["neg_category_ids"] = "7"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (no_list, ("malformed image entry", "2.png", None)),
        (truncate, ("unreadable image", "2.png", None)),
        (no_picture, ("unreadable image", "2.png", None)),
        (remove, ("missing image", "2.png", None)),
        (resize, ("size mismatch", "2.png", None)),
        (state_text, ("malformed image entry", "2.png", None)),
        (add_image({"id": 7}), ("malformed image entry", None, None)),
        (add_image({"file_name": "1.png"}), ("malformed image entry", None, None)),
        (add_image({"id": [], "file_name": "1.png"}), ("malformed image entry", None, None)),
        (add_image({"id": 7, "file_name": 5}), ("malformed image entry", None, None)),
        (add_image("text"), ("malformed image entry", None, None)),
        (add_image({"id": 2, "file_name": "new.png"}), ("duplicate image id", "new.png", None)),
        (add_image({"id": 7, "file_name": "1.png"}), ("image listed twice", "1.png", None)),
        (add_category({"id": 2, "name": "star"}), ("duplicate category id", None, None)),
        (add_category({"id": 3, "name": "square"}), ("duplicate category name", None, None)),
        (add_category({"id": 3}), ("malformed category", None, None)),
        (add_category({"id": 3, "name": None}), ("malformed category", None, None)),
        (add_category({"id": True, "name": "star"}), ("malformed category", None, None)),
        (add_category({"name": "star"}), ("malformed category", None, None)),
        (add_category({"id": {}, "name": "star"}), ("malformed category", None, None)),
    ],
)
def test_every_defect_of_images_and_categories_is_found_once(tmp_path, change, expected):
    assert found(check(tmp_path, change=change)) == [expected]


def test_defects_say_where_they_are(tmp_path):
    report = check(tmp_path, [annotation(9, 1, 1, [30, 5, 15, 5])])
    text = report.text()
    assert "image 1.png, annotation 9: bbox [30, 5, 15, 5] is 5 pixels outside 40x30" in text
    assert "defects       1" in text


def test_all_defects_are_listed_however_many_are_shown(tmp_path):
    report = check(tmp_path, [annotation(10 + i, 1, 1, [i, 1, 0, 5]) for i in range(7)])
    assert len(report.to_dict()["defects"]) == 7
    text = report.text(show=3)
    assert [f"annotation {10 + i}:" in text for i in range(7)] == [True] * 3 + [False] * 4
    assert "and 4 more" in text


def test_several_defects_of_one_annotation_are_all_found(tmp_path):
    report = check(tmp_path, [annotation(2, 8, 5, [1, 1, 0, 5])])
    kinds = ["duplicate annotation id", "unknown image", "unknown category", "empty box"]
    assert found(report) == [(kind, None, 2) for kind in kinds]


def test_rounding_of_a_pixel_and_crowds_are_no_defects(tmp_path):
    extra = [
        annotation(3, 1, 1, [-1, 0, 42, 31]),
        annotation(4, 1, 1, [2, 2, 10, 10], iscrowd=1),
        annotation(5, 2, 1, [3, 3, 12, 9]),  # another class in the place of annotation 2
    ]
    report = check(tmp_path, extra)
    assert found(report) == []
    assert report.crowds == 1


def test_what_may_stand_in_a_good_file_is_no_defect(tmp_path):
    extra = [
        annotation(3, 1, 1, [1, 1, 5, 5], area=30, iscrowd=False),  # whole pixels of a segment
        annotation(4.0, 1.0, 2.0, [2, 1, 5, 5], area=3, iscrowd=0.0),
        annotation("five", 1, 2, [3, 1, 5, 5], area=None, iscrowd=None),
    ]
    assert found(check(tmp_path, extra)) == []


def test_objects_whose_ids_are_text_are_counted(tmp_path):
    report = check(tmp_path, [annotation(3, "1", "1", [1, 1, 5, 5]), annotation(4, "1", 1, [2, 2, 10, 10])])
    assert report.objects_of_class == {"circle": 3, "square": 1} and report.objects_per_image == (0, 1.0, 3)
    assert ("doubled box", "1.png", 4) in found(report)


def test_a_list_of_images_alone_is_checked(tmp_path):
    report = check(tmp_path, change=lambda content, folder: content.pop("annotations"))
    assert found(report) == [] and not report.annotated
    assert "annotations   not known: the file has no list 'annotations'" in report.text()
    assert report.image_sizes == {"40x30": 1, "30x40": 1, "36x36": 1}


def test_images_without_stated_size_are_measured(tmp_path):
    def forget(content, folder):
        for image in content["images"]:
            del image["width"], image["height"]
        content["images"][2]["width"] = content["images"][2]["height"] = None

    report = check(tmp_path, [annotation(9, 3, 1, [30, 30, 5, 15])], change=forget)
    assert found(report) == [("box outside the image", "3.png", 9)]
    assert report.image_sizes == {"40x30": 1, "30x40": 1, "36x36": 1}


def test_counts(tmp_path):
    objects = [
        annotation(1, 1, 1, [0, 0, 20, 20]),
        annotation(2, 1, 2, [0, 0, 31, 33]),  # 1023 pixels: small
        annotation(3, 1, 2, [0, 0, 32, 32]),
        annotation(4, 2, 2, [0, 0, 96, 95]),
        annotation(5, 2, 2, [0, 0, 96, 96]),
        annotation(6, 3, 1, [0, 0, 50, 50], iscrowd=1),
    ]
    sizes = ((100, 100), (100, 100), (100, 100), (120, 100))
    images, file = write_coco(tmp_path, objects, sizes, [*SHAPES, {"id": 3, "name": "star"}])
    report = check_dataset(images, file)
    assert found(report) == []
    assert (report.images, report.annotations, report.crowds, report.without_objects) == (4, 6, 1, 2)
    assert report.objects_of_class == {"circle": 1, "square": 4, "star": 0}
    assert report.image_sizes == {"100x100": 3, "120x100": 1}
    assert report.box_sizes == {"small": 2, "medium": 2, "large": 1}
    assert report.objects_per_image == (0, 1.0, 3)
    assert (report.annotation_file, report.image_folder) == (str(file), str(images))
    assert json.loads(json.dumps(report.to_dict()))["images"] == 4


def exif_rotated(orientation=6, names=("1.jpg",)):
    """Makes the first images, 40 wide and 30 high as they are stored, JPEGs of this orientation."""

    def change(content, folder):
        for entry, name in zip(content["images"], names):
            entry["file_name"] = name
            save(folder / name, orientation=orientation)

    return change


def test_an_exif_rotated_picture_at_unrotated_size_is_listed_unless_a_box_or_the_option_tells(tmp_path):
    report = check(tmp_path, change=exif_rotated())
    assert found(report) == [("EXIF-rotated, annotated at unrotated size", "1.jpg", None)]
    assert "--data.exif is upright" in report.text() and report.image_sizes["40x30"] == 1
    file = tmp_path / "annotations" / "instances_train2017.json"
    for exif, sizes in (("upright", {"30x40": 2, "36x36": 1}), ("raw", {"40x30": 1, "30x40": 1, "36x36": 1})):
        report = check_dataset(tmp_path / "train2017", file, exif)
        assert (found(report), report.image_sizes) == ([], sizes)
    report = check(tmp_path, [annotation(9, 1, 1, [3, 30, 9, 9])], change=exif_rotated())
    assert (found(report), report.image_sizes) == ([], {"30x40": 2, "36x36": 1})  # nor is the box outside


def test_a_square_picture_that_is_turned_is_listed(tmp_path):
    def change(content, folder):
        content["images"][2]["file_name"] = "3.jpg"
        save(folder / "3.jpg", (36, 36), orientation=3)

    assert found(check(tmp_path, change=change)) == [("EXIF-rotated, annotated on either view", "3.jpg", None)]


def test_names_that_are_written_otherwise_are_listed(tmp_path):
    def change(content, folder):
        content["images"][0]["file_name"] = "images\\1.png"

    report = check(tmp_path, change=change)
    assert found(report) == [("file name written otherwise", "images\\1.png", None)]
    assert str(tmp_path / "train2017" / "1.png") in report.text() and report.image_sizes["40x30"] == 1


def test_all_missing_is_one_defect(tmp_path):
    def change(content, folder):
        for path in list(folder.iterdir()):
            path.unlink()

    report = check(tmp_path, change=change)
    assert found(report) == [("all images missing", None, None)]
    assert "all 3 images are missing" in report.text() and "holds no files" in report.text()


def test_generated_shapes_have_no_defects(tmp_path):
    folder = generate(tmp_path / "shapes", train=6, val=1, size=48)
    report = check_dataset(folder / "train2017", folder / "annotations" / "instances_train2017.json")
    assert report.defects == []
    assert report.images == 6
    assert sum(report.objects_of_class.values()) == report.annotations > 6


@pytest.mark.parametrize(
    ("content", "said"), [("{", "not JSON"), ("[]", "no list 'images'"), ('{"images": []}', "no list 'annotations'")]
)
def test_a_file_that_is_not_coco_is_refused(tmp_path, content, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=said):
        check_dataset(tmp_path, tmp_path / "a.json")


def test_missing_file_and_folder_are_named(tmp_path):
    images, file = write_coco(tmp_path, [])
    with pytest.raises(UserError, match=r"gone\.json"):
        check_dataset(images, tmp_path / "gone.json")
    with pytest.raises(UserError, match="nowhere"):
        check_dataset(tmp_path / "nowhere", file)
