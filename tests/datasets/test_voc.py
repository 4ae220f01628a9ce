import json
import warnings

import numpy as np
import pytest
import torch

from datasets.dataset import CocoDetection
from datasets.defects import check_dataset
from datasets.paths import root_layout
from datasets.readers import reader_of
from datasets.voc import read_voc
from tests.datasets.formats import save_pictures, voc_file, voc_object, write
from tests.datasets.helpers import extent
from util.errors import UserError


def voc(tmp_path, *objects, **options):
    """What one XML file with these objects says."""
    write(tmp_path / "a.xml", voc_file(objects, **options))
    return read_voc(tmp_path)


def test_a_box_reaches_around_the_pixels_at_its_corners():
    """By hand: columns 3 to 6 and rows 2 to 4, counted from 1, of a picture of 8 x 6 pixels."""
    pixels = torch.zeros(6, 8, dtype=torch.bool)
    pixels[2 - 1 : 4, 3 - 1 : 6] = True  # Python counts from 0 and leaves out the end
    x0, y0, x1, y1 = extent(pixels)
    assert [x0, y0, x1 - x0, y1 - y0] == [2, 1, 4, 3] and pixels.sum() == 4 * 3


def test_boxes_by_hand(tmp_path):
    """The whole picture, the box above, one pixel, a fraction, and what tools call empty: it is one pixel."""
    corners = [(1, 1, 40, 30), (3, 2, 6, 4), (7, 7, 7, 7), ("10.5", " 20.25 ", "30", "25")]
    read = voc(tmp_path, *(voc_object("a", c) for c in corners))
    assert read.boxes.tolist() == [[0, 0, 40, 30], [2, 1, 4, 3], [6, 6, 1, 1], [9.5, 19.25, 20.5, 5.75]]
    assert read.areas.tolist() == [1200, 12, 1, 20.5 * 5.75] and read.remarks == []
    assert read.images[0].size == (40, 30) and read.images[0].file_name == "a.png" and read.ids == [1, 2, 3, 4]
    edges = read_voc(tmp_path, corners="edges")
    assert edges.boxes.tolist() == [[1, 1, 39, 29], [3, 2, 3, 2], [7, 7, 0, 0], [10.5, 20.25, 19.5, 4.75]]


def test_supervision_reads_the_same_boxes(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        supervision = pytest.importorskip("supervision")
        images = save_pictures(tmp_path / "images", "a.png", "b.png")
        rng = np.random.default_rng(0)
        low = rng.integers(1, 20, (12, 2))
        corners = np.concatenate([low, low + rng.integers(0, 10, (12, 2))], 1).tolist()
        for name, some in (("a", corners[:7]), ("b", corners[7:])):
            objects = [voc_object("xyz"[i % 3], c) for i, c in enumerate(some)]
            write(tmp_path / "xml" / f"{name}.xml", voc_file(objects, f"{name}.png"))
        theirs = supervision.DetectionDataset.from_pascal_voc(str(images), str(tmp_path / "xml"))
        ours = read_voc(tmp_path / "xml", images)
        found = [[(*b, theirs.classes[c]) for b, c in zip(d.xyxy.tolist(), d.class_id)] for _, _, d in theirs]
    name_of = {c.id: c.name for c in ours.categories}
    expected: list[list] = [[], []]
    for image, kind, (x, y, w, h) in zip(ours.image_ids, ours.category_ids, ours.boxes.tolist()):
        expected[image - 1].append((x, y, x + w, y + h, name_of[kind]))
    assert found == expected and sum(map(len, found)) == 12


def test_difficult_objects_are_left_alone(tmp_path):
    """They are crowds: not learned from, and to find one is neither right nor wrong."""
    save_pictures(tmp_path, "a.png")
    objects = [voc_object("cat", (1, 1, 9, 9)), voc_object("dog", (5, 5, 20, 20), 1), voc_object("dog", (2, 2, 9, 9))]
    assert voc(tmp_path, *objects).crowds.tolist() == [False, True, False]
    dataset = CocoDetection.from_file(tmp_path, tmp_path)
    assert dataset[0].objects.labels.tolist() == [0, 1] and dataset.dropped == 0
    assert (report := check_dataset(tmp_path, tmp_path)).crowds == 1 and not report.defects


def test_parts_are_no_objects_and_what_has_no_box_is_left_out(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    turned = "<object><name>cat</name><robndbox><cx>1</cx></robndbox></object>\n"
    read = voc(tmp_path, voc_object("cat", (1, 1, 9, 9), more=part), turned)
    assert len(read) == 1 and [c.name for c in read.categories] == ["cat"]
    assert read.remarks == [f"'{tmp_path}': objects without <bndbox> are left out: 1 (a.xml, line 14)"]


def test_values_that_say_nothing_are_named(tmp_path):
    assert voc(tmp_path, voc_object("cat", (0, 3, 9, 9)), size=(2**31, 10)).images[0].size is None
    read = voc(tmp_path, voc_object("cat", (0, 3, 9, 9)), size=(0, 0))
    assert read.images[0].size is None and read.boxes.tolist() == [[-1, 2, 10, 7]]
    assert [r.split("': ")[1] for r in read.remarks] == [
        "files state no possible size; it is read from the pictures: 1 (a.xml)",
        "boxes that begin before pixel 1, as of tools that count edges from 0 (convert-data --voc_corners edges reads "
        "those): 1 (a.xml, line 4)",
    ]


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        (voc_object("cat", (1, "two", 9, 9)), r"a.xml', line 9: <ymin> is 'two'; it must be a number"),
        (voc_object("cat", (1, 2, 9)), r"a.xml', line 7: <ymax> is missing"),
        (voc_object("", (1, 2, 9, 9)), r"a.xml', line 4: the object has no <name>"),
        (voc_object("cat", (1, 2, 9, 9), "Unspecified"), r"a.xml', line 4: <difficult> of the object must be 0 or 1"),
        ("<object>", r"a.xml', line 4: not XML: mismatched tag"),
    ],
)
def test_malformed_files_are_named_with_the_line(tmp_path, objects, said):
    with pytest.raises(UserError, match=said):
        voc(tmp_path, objects)


def test_another_kind_of_xml(tmp_path):
    write(tmp_path / "a.xml", "<project><x/></project>")
    with pytest.raises(UserError, match=r"line 1: <project> is no <annotation> of Pascal VOC"):
        read_voc(tmp_path)


def devkit(tmp_path):
    """A folder as the development kit has it: three pictures, of which the lists name two and one."""
    root = tmp_path / "VOC2007"
    save_pictures(root / "JPEGImages", "a.png", "b c.png", "d.png")
    for name, kind in (("a", "dog"), ("b c", "cat"), ("d", "ant")):
        write(root / "Annotations" / f"{name}.xml", voc_file([voc_object(kind, (1, 1, 9, 9))], f"{name}.png"))
    write(root / "ImageSets" / "Main" / "train.txt", "d\nb c\n\n")
    write(root / "ImageSets" / "Main" / "dog_val.txt", "a  1\nb c -1\n")
    return root


def test_lists_of_names(tmp_path):
    """Their order, and the class numbers of the whole folder, so that two lists agree."""
    root = devkit(tmp_path)
    for name, files, kinds in (("train", ["d.png", "b c.png"], [1, 2]), ("dog_val", ["a.png", "b c.png"], [3, 2])):
        read = reader_of(root / "ImageSets" / "Main" / f"{name}.txt")(root / "ImageSets" / "Main" / f"{name}.txt")
        assert [i.file_name for i in read.images] == files and read.category_ids == kinds
        assert [(c.id, c.name) for c in read.categories] == [(1, "ant"), (2, "cat"), (3, "dog")]
    assert len(read_voc(root)) == 3
    listed = write(root / "ImageSets" / "Main" / "val.txt", "a\nz\n")
    with pytest.raises(UserError, match=r"val.txt', line 2: there is no '.*z.xml'"):
        read_voc(listed)
    write(listed, "a\na\n")
    assert len(read := read_voc(listed)) == 1 and "second time, and are left out: 1 (line 2)" in read.remarks[0]
    with pytest.raises(UserError, match="there is no folder 'Annotations' near it"):
        read_voc(write(tmp_path / "far" / "list.txt", "a\n"))


def test_a_list_of_classes_numbers_them(tmp_path):
    root = devkit(tmp_path)
    write(root / "Annotations" / "classes.txt", "dog\ncat\nant\nbee\n")
    assert read_voc(root).category_ids == [1, 2, 3]
    write(root / "Annotations" / "classes.txt", "dog\ncat\n")
    with pytest.raises(UserError, match=r"d.xml', line 4: the class 'ant' is not listed in '.*classes.txt'"):
        read_voc(root)


@pytest.mark.parametrize(
    ("stated", "taken", "said"),
    [
        ("a.png", "a.png", None),
        ("C:\\me\\a.png", "a.png", None),
        ("a.PNG", "a.PNG", None),  # whoever reads the picture finds it
        ("before_renaming.png", "a.png", "files name another picture than the one that has their own name"),
        ("a", "a.png", "files name no picture; the one that has their own name is taken"),
        ("", "a.png", "files name no picture; the one that has their own name is taken"),
    ],
)
def test_which_picture_a_file_is_of(tmp_path, stated, taken, said):
    save_pictures(tmp_path / "images", "a.png", "z.png")
    write(tmp_path / "xml" / "a.xml", voc_file(filename=stated))
    read = read_voc(tmp_path / "xml", tmp_path / "images")
    assert [i.file_name for i in read.images] == [taken]
    assert len(read.remarks) == bool(said) and all(said in remark for remark in read.remarks)


def test_two_files_of_one_picture(tmp_path):
    for name in "bc":
        write(tmp_path / f"{name}.xml", voc_file(filename="z.png"))
    with pytest.raises(UserError, match=r"b.xml' and '.*c.xml' are both of the picture 'z.png'"):
        read_voc(tmp_path)


def test_check_data_lists_and_mends(tmp_path):
    images = save_pictures(tmp_path / "images", "a.png", "b.png")
    write(tmp_path / "xml" / "a.xml", voc_file([voc_object("cat", (9, 1, 3, 9)), voc_object("cat", (30, 1, 55, 9))]))
    write(tmp_path / "xml" / "b.xml", voc_file([voc_object("cat", (2, 2, 9, 9))], "b.png", (41, 30)))
    report = check_dataset(images, tmp_path / "xml", mended=tmp_path / "m.json")
    assert [(d.kind, d.file) for d in report.defects] == [
        ("size mismatch", "b.png"), ("negative box", "a.png"), ("box outside the image", "a.png"),
    ]  # fmt: skip
    mended = json.loads((tmp_path / "m.json").read_text())
    assert [a["bbox"] for a in mended["annotations"]] == [[29, 0, 11, 9], [1, 1, 8, 8]]


def test_a_root_without_lists_says_what_is_missing(tmp_path):
    (tmp_path / "Annotations").mkdir()
    said = r"looks like Pascal VOC, but it has no 'ImageSets/Main/val\.txt'.*name data\.val_images and data\.val_ann"
    with pytest.raises(UserError, match=said):
        root_layout(str(tmp_path), "val")
