import unicodedata

import pytest

from datasets.filenames import FileNames, parts_of
from datasets.picture_file import MissingImage


def folder(tmp_path, *files):
    for file in files:
        path = tmp_path / "img" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "img").mkdir(exist_ok=True)
    return tmp_path / "img"


NFD = unicodedata.normalize("NFD", "Zellén.jpg")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("images/x.jpg", "images\\x.jpg"),
        ("x.jpg", "images\\x.jpg"),
        ("x.jpg", "images/x.jpg"),
        ("x.jpg", "C:\\Users\\me\\data\\x.jpg"),
        ("a/x.jpg", "/home/me/data/a/x.jpg"),
        ("x.jpg", "file:///home/me/x.jpg"),
        ("x.jpg", "https://host/data/x.jpg?token=a%2Fb"),
        ("a/x.jpg", "/data/local-files/?d=project/a/x.jpg"),
        ("x.jpg", "../images/x.jpg"),
        ("x.jpg", "images//./x.jpg"),
        ("x.jpg", " x.jpg\n"),
        ("my photo.jpg", "my%20photo.jpg"),
        ("my photo.jpg", "my%2520photo.jpg"),
        ("my%20photo.jpg", "my photo.jpg"),
        ("Zellén.jpg", NFD),
        (NFD, "Zellén.jpg"),
        (NFD, "images\\Zell%C3%A9n.JPG"),
        ("x.JPG", "x.jpg"),
        ("IMG/x.jpg", "img/X.JPG"),
        ("a/x.jpg", "x.jpg"),
        ("images\\x.jpg", "images/x.jpg"),
        ("cat.jpg", "upload/1/3f2a1b9c-cat.jpg"),
        ("3f2a1b9c-cat.jpg", "cat.jpg"),
        ("x.jpg", "images/" * 30 + "x.jpg"),
    ],
)
def test_a_name_that_is_written_otherwise_is_found(tmp_path, file, name):
    there = folder(tmp_path, file, "other.jpg", "b/another.jpg")
    assert FileNames(there).find(name) == (there / file, False)


@pytest.mark.parametrize("name", ["x.jpg", "a/x.jpg", "./x.jpg", "a/../x.jpg", "my%20photo.jpg", "images\\x.jpg"])
def test_a_file_of_the_written_name_is_taken_without_a_look_at_others(tmp_path, name):
    there = folder(tmp_path, "x.jpg", "a/x.jpg", "my%20photo.jpg", "my photo.jpg", "images\\x.jpg", "images/x.jpg")
    names = FileNames(there)
    assert names.find(name) == (there / name, True)
    assert names._listed is None


def test_a_whole_path_is_taken_where_it_leads(tmp_path):
    folder(tmp_path, "x.jpg")
    assert FileNames(tmp_path).find(str(tmp_path / "img" / "x.jpg")) == (tmp_path / "img" / "x.jpg", True)


@pytest.mark.parametrize(
    "name",
    [
        "y.jpg",
        "train/x.jpg",
        "..\\secret.jpg",
        "a/..%2f..%2fsecret.jpg",
        "%2e%2e/secret.jpg",
        "a\0b.jpg",
        "x",
    ],
)
def test_what_is_not_there_or_lies_outside_is_missing(tmp_path, name):
    there = folder(tmp_path, "val/x.jpg", "a/z.jpg")
    (tmp_path / "secret.jpg").touch()
    with pytest.raises(MissingImage, match="no image"):
        FileNames(there).find(name)


def test_a_name_too_long_for_a_file_is_missing(tmp_path):
    with pytest.raises(MissingImage):
        FileNames(folder(tmp_path, "x.jpg")).find("x" * 5000)


@pytest.mark.parametrize(
    ("files", "name"),
    [(("a/x.jpg", "b/x.jpg"), "x.jpg"), (("X.jpg", "x.JPG"), "x.jpg"), (("a1b2c3d4-x.jpg", "00000000-x.jpg"), "x.jpg")],
)
def test_several_that_may_be_meant_are_named(tmp_path, files, name):
    with pytest.raises(MissingImage, match="several may be meant") as raised:
        FileNames(folder(tmp_path, *files)).find(name)
    assert all(file in str(raised.value) for file in files)


def test_the_longest_common_path_is_meant(tmp_path):
    there = folder(tmp_path, "a/x.jpg", "b/x.jpg", "x.jpg")
    assert FileNames(there).find("D:\\data\\b\\X.jpg")[0] == there / "b" / "x.jpg"


def test_links_in_circles_are_not_followed(tmp_path):
    there = folder(tmp_path, "x.jpg")
    (there / "again").symlink_to(there)
    assert FileNames(there).find("X.jpg") == (there / "x.jpg", False)
    assert FileNames(there).holds() == "holds 1 file, such as 'x.jpg'"


def test_nothing_of_the_parts_leads_upwards():
    assert parts_of("a/../../b/%2e%2e/c\\x.jpg") == ["c", "x.jpg"]
