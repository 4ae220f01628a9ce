"""`scripts/compare_backbones.py`: a row for each checkpoint and box, and one sentence for bad input."""

import re

import pytest
from PIL import Image

from datasets.shapes import generate
from main import main as train
from scripts.compare_backbones import main
from tests.test_main import SMALL


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    generate(folder / "shapes", train=4, val=2, size=64)
    (folder / "small.yaml").write_text(SMALL)
    for dcn in ("none", "v2"):
        argv = ("train", "--config", folder / "small.yaml", "--data.root", folder / "shapes")
        argv += ("--train.output", folder / dcn, "--model.backbone.dcn", dcn, "--train.fast_dev_run")
        assert train([str(a) for a in argv]) == 0
    Image.new("RGB", (80, 60), (90, 140, 40)).save(folder / "picture.png")
    with Image.open(folder / "picture.png") as picture:
        picture.paste((200, 20, 60), (10, 20, 50, 45))
        picture.save(folder / "picture.png")
    return folder


def compare(place, *options: object) -> int:
    both = [f"{label}={place / dcn / 'fast_dev_run' / 'last.pth'}" for label, dcn in (("plain", "none"), ("v2", "v2"))]
    argv = ["--checkpoint", *both, "--input", place / "picture.png", "--device", "cpu", *options]
    return main([str(a) for a in argv])


def test_figure_and_table(place, tmp_path, capsys):
    assert compare(place, "--box", "10,20,50,45", "60,5,75,15", "--output", tmp_path / "two.png") == 0
    printed = capsys.readouterr().out
    assert "box 10,20,50,45, 21% of the picture" in printed and "80 x 60" in printed  # 40 * 25 of 4800
    lines = re.findall(r"^\| (plain|v2) \| (\w+) \| ([\d,]+) \| (\d+)% \| ([\d.]+) \| ([\d.]+) \|$", printed, re.M)
    assert len(lines) == 2 * 2 * 5 and {line[1] for line in lines} == {"2", "3", "4", "5", "all"}
    for _, _, count, inside, median, most in lines:
        assert int(count.replace(",", "")) > 0 and 0 <= int(inside) <= 100 and float(median) <= float(most)
    assert compare(place, "--pixel", "79,0", "--level", 0, "--output", tmp_path / "one.png") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\| v2 \| 2 \| [\d,]+ \|  \| ", printed, re.M) and "| 5 |" not in printed
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "one.png") as one:
        assert two.height > 1.5 * one.height and two.width > one.width > 500


def test_a_box_of_the_whole_picture_has_everything_but_what_lies_beyond(place, tmp_path, capsys):
    assert compare(place, "--box", "0,0,80,60", "--pixel", "40,30", "--output", tmp_path / "all.png") == 0
    printed = capsys.readouterr().out
    assert "the unit, 100% of the picture" in printed
    assert float(re.search(r"\| plain \| 2 \| [\d,]+ \| (\d+)%", printed)[1]) > 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --box X0,Y0,X1,Y1 for the object to look at, or --pixel X,Y"),
        (("--box", "1,2,3"), "--box is '1,2,3'; give 4 numbers"),
        (("--box", "1,2,3,nan"), "give 4 numbers"),
        (("--box", "10,20,90,45"), "within the picture, which is 80 wide and 60 high"),
        (("--box", "30,20,20,45"), "--box 30,20,20,45 must be X0,Y0,X1,Y1"),
        (("--pixel", "80,3"), "outside of the picture, which is 80 wide and 60 high"),
        (("--pixel", "a,3"), "--pixel is 'a,3'; give 2 numbers"),
        (("--pixel", "1,3", "--box", "0,0,9,9", "1,1,9,9"), "--pixel goes with one --box at most"),
        (("--pixel", "1,3", "--level", "7"), "plain: there is no level 7; this backbone returns levels 0 to 1"),
        (("--pixel", "1,3", "--points", "0"), "--points is 0; give 1 or more"),
        (("--pixel", "1,3", "--output", "nowhere/x.png"), "give a .png file in a folder that exists"),
        (("--pixel", "1,3", "--output", "x.tif"), "give a .png file"),
        (("--pixel", "1,3", "--checkpoint", "a.pth"), "--checkpoint 'a.pth' must be LABEL=PATH"),
        (("--pixel", "1,3", "--checkpoint", "a=nothing.pth"), "nothing.pth"),
        (("--pixel", "1,3", "--input", "nothing.png"), "nothing.png"),
    ],
)
def test_one_sentence_for_bad_input(place, tmp_path, capsys, options, message):
    assert compare(place, "--output", tmp_path / "x.png", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
