import os
import re
from pathlib import Path

import pytest
from PIL import Image

from datasets.pictures import list_media, list_pictures, picture_suffixes, read_each
from util.errors import UserError

SMALL = Image.new("RGB", (8, 6), "red")


def write(path: Path, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    SMALL.save(path, format=kind)
    return path


def names(found: list[Path]) -> list[str]:
    return [p.name for p in found]


def test_a_file_a_folder_and_a_pattern(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt", "d.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "inner.png").mkdir()
    (tmp_path / "inner.png" / "e.png").touch()
    assert list_pictures(str(tmp_path / "c.txt")) == [tmp_path / "c.txt"]
    assert names(list_pictures(tmp_path)) == ["a.JPG", "b.png", "d.tiff"]
    assert list_pictures(str(tmp_path / "*.png")) == [tmp_path / "b.png"]
    assert list_pictures(str(tmp_path / "*" / "*.png")) == [tmp_path / "inner.png" / "e.png"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("a.jfif", "JPEG"), ("a.jpe", "JPEG"), ("a.gif", "GIF"), ("a.jp2", "JPEG2000"), ("a.mpo", "JPEG")),
        *(("a.ppm", "PPM"), ("a.pgm", "PPM"), ("a.apng", "PNG"), ("a.AVIF", "AVIF"), ("a.tga", "TGA"), ("a", "JPEG")),
        *(("a.jpg_large", "JPEG"), ("2024.01.31", "PNG"), ("a.heic", "JPEG"), ("a b", "WEBP"), ("a.bin", "BMP")),
    ],
)
def test_what_pillow_opens_is_listed_by_suffix_or_else_by_content(tmp_path, capsys, name, kind):
    if kind == "AVIF" and ".avif" not in picture_suffixes():
        pytest.skip("this Pillow has no AVIF")
    write(tmp_path / name, kind)
    assert [picture.size for _, picture in read_each(list_pictures(tmp_path), "read")] == [(8, 6)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".pdf", ".eps", ".h5", ".fits", ".wmf", ".mpg", ".grib", ".txt", ".json", ""])
def test_documents_and_data_are_no_pictures(suffix):
    assert suffix not in picture_suffixes()


def test_what_is_left_out_of_a_folder_is_counted_by_kind(tmp_path, capsys):
    write(tmp_path / "a.png")
    write(tmp_path / "deep" / "b.png")
    for name in ("a.txt", "b.TXT", "c.txt", "d.heic", "e.mp4", "README", ".DS_Store", "._a.png"):
        (tmp_path / name).write_text("nothing")
    SMALL.save(tmp_path / "raw.dng", format="TIFF")  # as the small preview in a camera's file
    assert names(list_pictures(tmp_path)) == ["a.png"]
    said = capsys.readouterr().err
    assert "3 .txt, 1 .dng, 1 .heic, 1 .mp4, 1 without a suffix, 1 folder, 2 hidden" in said and said.count("\n") == 1
    assert f"'{tmp_path}/**/*' also reaches" in said
    assert "convert .dng, .heic to JPEG or PNG" in said and "extract the frames of .mp4" in said


def test_a_whole_folder_is_listed_without_a_word(tmp_path, capsys):
    write(tmp_path / "a.png")
    list_pictures(tmp_path)
    assert capsys.readouterr().err == ""


def test_patterns_reach_any_depth(tmp_path, capsys):
    for name in ("a.jpg", "b/c.jpg", "b/d/e/f.jpg"):
        write(tmp_path / name)
    (tmp_path / "b" / "note.txt").touch()
    assert names(list_pictures(f"{tmp_path}/**/*.jpg")) == ["a.jpg", "c.jpg", "f.jpg"]
    assert capsys.readouterr().err == ""
    assert names(list_pictures(f"{tmp_path}/**/*")) == ["a.jpg", "c.jpg", "f.jpg"]
    assert "1 .txt" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["[2024]", "a [1-3] b", "what?", "star*", "[]", "[!x]"])
def test_a_path_that_exists_is_no_pattern(tmp_path, monkeypatch, folder):
    write(tmp_path / folder / "in" / "a[1].jpg")
    write(tmp_path / "2" / "in" / "other.jpg")
    monkeypatch.chdir(tmp_path)
    for source in ("in", "in/a[1].jpg", "in/*.jpg", "**/*.jpg"):
        assert names(list_pictures(f"{folder}/{source}")) == ["a[1].jpg"], source
        assert names(list_pictures(f"{tmp_path}/{folder}/{source}")) == ["a[1].jpg"], source


def test_brackets_after_a_star_are_a_choice_or_else_themselves(tmp_path):
    write(tmp_path / "x" / "[2024]" / "a.jpg")
    assert names(list_pictures(f"{tmp_path}/*/[2024]/*.jpg")) == ["a.jpg"]
    write(tmp_path / "x" / "2" / "b.jpg")
    assert names(list_pictures(f"{tmp_path}/*/[2024]/*.jpg")) == ["b.jpg"]
    assert names(list_pictures(f"{tmp_path}/x/[2024]/*.jpg")) == ["a.jpg"]


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "photos" / "a.jpg")
    for source in ("~/photos", "~/photos/a.jpg", "~/photos/*.jpg", "~/**/*"):
        assert list_pictures(source) == [tmp_path / "photos" / "a.jpg"]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "~" / "b.jpg")
    assert names(list_pictures("~")) == ["b.jpg"]


@pytest.mark.parametrize("source", ["nothing", "*.jpg", "empty", "only_text", "only_text/*", "no/such/*.jpg"])
def test_a_source_without_pictures_is_named(tmp_path, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "only_text").mkdir()
    (tmp_path / "only_text" / "a.txt").touch()
    with pytest.raises(UserError, match=re.escape(str(tmp_path / source))) as raised:
        list_pictures(str(tmp_path / source))
    assert ("1 .txt" in str(raised.value)) == ("only_text" in source)


def test_a_pattern_of_folders_says_how_to_reach_what_is_in_them(tmp_path, capsys):
    write(tmp_path / "y1" / "a.jpg")
    with pytest.raises(UserError, match=re.escape(f"'{tmp_path}/y*/*' reaches")):
        list_pictures(f"{tmp_path}/y*")
    write(tmp_path / "y.png")
    assert names(list_pictures(f"{tmp_path}/y*")) == ["y.png"]
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    assert names(list_pictures(tmp_path)) == ["y.png"]
    assert "1 folder, 1 broken link" in capsys.readouterr().err


def test_a_folder_of_folders_says_how_to_reach_them(tmp_path):
    write(tmp_path / "in" / "a.jpg")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/**/*")):
        list_pictures(tmp_path)


@pytest.mark.parametrize(("name", "kind"), [("a.gif", "GIF"), ("a.tif", "TIFF"), ("a.mpo", "MPO"), ("a.png", "PNG")])
def test_the_first_of_several_frames_is_read_and_said_once(tmp_path, capsys, name, kind):
    for place in "xy":
        frames = [Image.new("RGB", (32, 32), colour) for colour in ("blue", "red")]
        (tmp_path / place).mkdir()
        frames[0].save(tmp_path / place / name, format=kind, save_all=True, append_images=frames[1:])
    found = [p for _, p in read_each(list_pictures(f"{tmp_path}/*/{name}"), "read")]
    assert all(p.getpixel((16, 16))[2] > 200 for p in found) and len(found) == 2
    assert capsys.readouterr().err.count("first frame") == 1


def test_no_word_of_frames_where_there_is_one(tmp_path, capsys):
    assert len(list(read_each([write(tmp_path / "a.gif"), write(tmp_path / "b.tif")], "read"))) == 2
    assert capsys.readouterr().err == ""


def test_none_that_can_be_read_is_an_error(tmp_path, capsys):
    good, bad, worse = write(tmp_path / "a.png"), tmp_path / "b.png", tmp_path / "c.png"
    bad.write_text("no")
    worse.touch()
    assert len(list(read_each([bad, good], "read"))) == 1
    with pytest.raises(UserError, match="none of the 2 pictures"):
        list(read_each([bad, worse], "read"))
    with pytest.raises(UserError, match=re.escape(str(bad))):
        list(read_each([bad], "read"))
    assert capsys.readouterr().err.count("left out") == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_an_error_of_the_system(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(OSError, match="closed"):
        list_pictures(tmp_path / "closed")


def test_videos_are_listed_beside_pictures_where_they_are_wanted(tmp_path, capsys, monkeypatch):
    for name in ("b.png", "a.MP4", "c.webm", "d.txt", "._e.mp4"):
        (tmp_path / name).touch()
    pictures, videos = list_media(tmp_path)
    assert names(pictures) == ["b.png"] and names(videos) == ["a.MP4", "c.webm"]
    said = capsys.readouterr().err
    assert "1 .txt, 1 hidden" in said and "extract" not in said
    assert list_media(tmp_path / "a.MP4") == ([], [tmp_path / "a.MP4"])
    assert list_media(tmp_path / "d.txt") == ([tmp_path / "d.txt"], [])
    assert [names(kind) for kind in list_media(f"{tmp_path}/*.[Mw]*")] == [[], ["a.MP4", "c.webm"]]
    with pytest.raises(UserError, match=r"a\.MP4' is a video; extract a frame"):
        list_pictures(tmp_path / "a.MP4")
    with pytest.raises(UserError, match=r"holds no pictures or videos, only 1 \.txt"):
        list_media(f"{tmp_path}/*.txt")
    with pytest.raises(UserError, match="no picture, video, folder or pattern"):
        list_media(tmp_path / "gone.mp4")
    monkeypatch.setattr("datasets.pictures.find_spec", lambda name: None)  # without PyAV
    assert [names(kind) for kind in list_media(tmp_path)] == [["b.png"], []]
    assert "left out of" in (said := capsys.readouterr().err) and "1 .mp4, 1 .webm; videos need PyAV" in said
    assert list_media(tmp_path / "a.MP4") == ([], [tmp_path / "a.MP4"])  # which is refused when it is opened
