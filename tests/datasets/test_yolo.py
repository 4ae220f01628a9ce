import warnings

import numpy as np
import pytest
from PIL import Image

from datasets.dataset import CocoDetection
from datasets.defects import check_dataset
from datasets.readers import read_annotations, reader_of
from datasets.yolo import read_yolo
from tests.datasets.formats import save_pictures, write
from tests.datasets.helpers import picture
from util.errors import UserError


def yolo(tmp_path, line="", names="names: [circle, square]\n", pictures=("a.png",)):
    """A data set with labels of the first picture, as Ultralytics lays it out; the folder of labels."""
    save_pictures(tmp_path / "images" / "train", *pictures)
    write(tmp_path / "data.yaml", f"train: images/train\n{names}")
    write(tmp_path / "labels" / "train" / f"{pictures[0].rpartition('.')[0]}.txt", line)
    return tmp_path / "labels" / "train"


def test_boxes_by_hand(tmp_path):
    """Of 40 x 30 pixels: the whole picture, and a box from (6, 9) to (14, 21)."""
    read = read_yolo(yolo(tmp_path, "\ufeff0 0.5 0.5 1 1\r\n\r\n1.0 0.25 0.5 0.2 0.4\n"))
    assert read.boxes == pytest.approx(np.array([[0, 0, 40, 30], [6, 9, 8, 12]]), abs=1e-12)
    assert read.category_ids == [0, 1] and [(c.id, c.name) for c in read.categories] == [(0, "circle"), (1, "square")]
    assert [(i.id, i.file_name, i.size) for i in read.images] == [(1, "a.png", (40, 30))] and not read.remarks


def test_polygons_become_boxes_and_scores_are_left_out(tmp_path):
    """By hand: a polygon with a corner at each side of the box from (4, 3) to (20, 24)."""
    read = read_yolo(yolo(tmp_path, "1 0.1 0.3 0.3 0.1 0.5 0.5 0.25 0.8\n0 0.5 0.5 0.2 0.2 0.93\n"))
    assert read.boxes == pytest.approx(np.array([[4, 3, 16, 21], [16, 12, 8, 6]]), abs=1e-12)
    assert read.remarks == [
        f"'{tmp_path}/labels/train': objects are polygons; the boxes around them are taken: 1 (a.txt, line 1)",
        f"'{tmp_path}/labels/train': lines have a sixth number, a score, which is left out: 1 (a.txt, line 2)",
    ]


def test_keypoints_stand_behind_boxes(tmp_path):
    """Of two keypoints with visibility; without kpt_shape, ten numbers behind a class would be a polygon."""
    line = "0 0.5 0.5 0.2 0.2 0.1 0.1 2 0.9 0.9 2"
    read = read_yolo(yolo(tmp_path, line, "names: {0: person}\nkpt_shape: [2, 3]\n"))
    assert (
        read.boxes == pytest.approx(np.array([[16, 12, 8, 6]])) and "keypoints, which are left out" in read.remarks[0]
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 1 1\n0 0.5 half 1 1", r"a.txt', line 2: 'half' is no number"),
        ("0 0.5 0.5 1", r"a.txt', line 1: 4 numbers; it must be 5"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", r"a.txt', line 1: 8 numbers; it must be 5"),
        ("2 0.5 0.5 1 1", r"a.txt', line 1: the class 2 is not one of the 2 that are named, 0 to 1"),
        ("-1 0.5 0.5 1 1", r"line 1: the class -1 is not"),
        ("0.5 0.5 0.5 1 1", r"line 1: the class 0.5 is not"),
        ("0,0.5,0.5,1,1", r"line 1: '0,0.5,0.5,1,1' is no number"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, said):
    with pytest.raises(UserError, match=said):
        read_yolo(yolo(tmp_path, line))


def test_bytes_that_are_no_text(tmp_path):
    (yolo(tmp_path) / "a.txt").write_bytes(b"0 0.5 0.5 1 1\n\xff\xfe")
    with pytest.raises(UserError, match=r"label file '.*a.txt', line 2: not UTF-8 text \(byte 0xff\)"):
        read_yolo(tmp_path / "labels" / "train")


def test_pictures_without_labels_stay_and_labels_without_pictures_do_not(tmp_path):
    labels = yolo(tmp_path, "0 0.5 0.5 1 1", pictures=("a.png", "b.jpg", "deep/c.png"))
    write(labels / "deep" / "c.txt", "1 0.5 0.5 1 1")
    write(labels / "gone.txt", "0 0.5 0.5 1 1")
    read = read_yolo(labels)
    assert [i.file_name for i in read.images] == ["a.png", "b.jpg", "deep/c.png"] and read.image_ids == [1, 3]
    assert read.remarks == [f"'{labels}': label files have no picture and are left out: 1 (gone.txt)"]


def test_shares_are_of_the_upright_picture(tmp_path):
    labels = yolo(tmp_path, "0 0.5 0.5 1 1")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(40, 30).save(tmp_path / "images" / "train" / "a.png", exif=exif)
    assert read_yolo(labels).boxes.tolist() == [[0, 0, 30, 40]]
    assert CocoDetection.from_file(tmp_path / "images" / "train", labels)[0].original_size == (40, 30)


def test_a_broken_picture_is_left_to_those_who_need_it(tmp_path):
    labels = yolo(tmp_path, "0 0.5 0.5 1 1", pictures=("a.png", "b.png"))
    (tmp_path / "images" / "train" / "a.png").write_bytes(b"no picture")
    read = read_yolo(labels)
    assert len(read) == 0 and read.images[0].size is None and "the objects are left out: 1 (a.png)" in read.remarks[0]
    assert [d.kind for d in check_dataset(tmp_path / "images" / "train", labels).defects] == ["unreadable image"]


@pytest.mark.parametrize("stated", ["images/train", "../images/train", "./images/train"])
def test_where_data_yaml_leads(tmp_path, stated):
    """A relative folder, Roboflow's one too many upwards, `path`, and the image folder that is known better."""
    labels = yolo(tmp_path, "0 0.5 0.5 1 1")
    expected = read_yolo(labels)
    description = write(tmp_path / "data.yaml", f"path: .\ntrain: {stated}\nnames:\n  0: circle\n  1: square\n")
    for path, images in ((description, None), (tmp_path, None), (description, tmp_path / "images" / "train")):
        read = reader_of(path, images)(path)
        assert read.boxes.tolist() == expected.boxes.tolist() and read.images == expected.images
    with pytest.raises(UserError, match=r"data.yaml' names nothing as 'val'; name one image folder, convert-data"):
        read_yolo(description, split="val")


def test_words_that_yaml_takes_for_truth_are_names(tmp_path):
    read = read_yolo(yolo(tmp_path, "1 0.5 0.5 0.5 0.5", "names: {0: on, 1: off, 2: No, 3: true, 4: 1.5}\n"))
    assert [c.name for c in read.categories] == ["on", "off", "No", "true", "1.5"]


def test_classes_of_a_text_beside_the_labels(tmp_path):
    """As LabelImg leaves it: everything in one folder."""
    save_pictures(tmp_path, "a.png")
    write(tmp_path / "a.txt", "1 0.5 0.5 1 1")
    with pytest.raises(
        UserError, match=r"nothing names the classes of the labels in '.*': put data.yaml or classes.txt"
    ):
        read_yolo(tmp_path)
    write(tmp_path / "classes.txt", "dog\ncat\n\n")
    read = read_annotations(tmp_path, tmp_path)
    assert [c.name for c in read.categories] == ["dog", "cat"] and read.category_ids == [1] and not read.remarks
    write(tmp_path / "classes.txt", "dog\n\ncat\n")
    with pytest.raises(UserError, match=r"classes.txt', line 2: empty"):
        read_yolo(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("names: [a\n", r"data.yaml', line 2: not YAML"),
        ("nc: 2\n", r"data.yaml' is taken for the data.yaml of a YOLO data set, but it has no 'names'"),
        ("names: {a: 0}\ntrain: images/train", r"'names' has 'a': 0; it needs the number of a class and its name"),
        ("names: [a]\ntrain: gone", r"names 'gone' as 'train', but there is no folder"),
        ("names: [a]\ntrain: [x, y]", r"names several folders as 'train'"),
        ("names: []\ntrain: images/train", r"but it has no 'names'"),
        ("names: [a]\ntrain: images/train\nkpt_shape: 17", r"kpt_shape is 17; it must be"),
        ("names: [a]\ntrain: images/train\ndate: 2023-13-01", r"data.yaml': not YAML: month must be in 1..12"),
        ("names: [a]\nx: " + "[" * 3000, r"data.yaml' is nested too deeply"),
        # Each list holds the one before ten times: written out, the last has ten thousand letters.
        (
            "a: &a [xxxxxxxxxx]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
            "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\nnames: [[*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]]\n"
            "train: images/train",
            r"'names' has 0: .{1,3000}; it needs",
        ),
        ("names: !!python/object/apply:os.system ['true']\n", r"not YAML"),
    ],
)
def test_malformed_descriptions(tmp_path, content, said):
    yolo(tmp_path)
    with pytest.raises(UserError, match=said):
        read_yolo(write(tmp_path / "data.yaml", content))


def test_folders_that_do_not_belong_together(tmp_path):
    labels = yolo(tmp_path)
    with pytest.raises(UserError, match=r"no picture of '.*other' has a label file in '.*train', which holds 1 label"):
        read_yolo(labels, save_pictures(tmp_path / "other", "z.png"))
    with pytest.raises(UserError, match="neither XML files of Pascal VOC nor texts of YOLO"):
        read_annotations(tmp_path / "images")
    with pytest.raises(UserError, match=r"x.odgt' is no data.yaml and no folder of YOLO's label files"):
        read_yolo(write(tmp_path / "x.odgt", "{}"))


def test_what_supervision_writes_is_read(tmp_path):
    """Boxes of its own writer, to the sixth decimal that it rounds shares to; and ours of its reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        supervision = pytest.importorskip("supervision")
        images = save_pictures(tmp_path / "images", "a.png", "b.png", size=(123, 77))
        rng = np.random.default_rng(1)
        corners = [
            np.concatenate([low := rng.uniform(0, 50, (5, 2)), low + rng.uniform(1, 20, (5, 2))], 1) for _ in "ab"
        ]
        found = {
            str(images / f"{name}.png"): supervision.Detections(xyxy=c, class_id=np.arange(5) % 3)
            for name, c in zip("ab", corners)
        }
        dataset = supervision.DetectionDataset(["x", "y", "z"], list(found), found)
        dataset.as_yolo(annotations_directory_path=str(tmp_path / "labels"), data_yaml_path=str(tmp_path / "data.yaml"))
    read = read_yolo(tmp_path / "labels")
    boxes = np.concatenate([read.boxes[:, :2], read.boxes[:, :2] + read.boxes[:, 2:]], 1)
    assert boxes == pytest.approx(np.concatenate(corners), abs=123 * 1e-5) and len(boxes) == 10
    assert read.category_ids == [0, 1, 2, 0, 1] * 2 and [c.name for c in read.categories] == ["x", "y", "z"]
