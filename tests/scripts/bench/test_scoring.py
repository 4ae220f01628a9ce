"""The benchmark of scoring runs, prints one table, and its contenders agree."""

import re

import pytest

from scripts.bench import scoring


@pytest.mark.slow
def test_a_small_run_prints_a_table(capfd):
    argv = ["--images", "8", "--found", "12", "--classes", "3", "--objects", "3", "--analyse"]
    assert scoring.main(argv) == 0
    out = capfd.readouterr().out
    assert re.match(r"8 images, 96 boxes, 3 classes, AP 0\.\d{6}", out)
    (table,) = re.findall(r"(?:^\|.*\n?)+", out, re.MULTILINE)
    _, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    names = ["the lists alone", "ours", "ours, with --analyse", "faster-coco-eval", "pycocotools"]
    assert [row[0] for row in rows] == names
    assert all(re.fullmatch(r"\d+\.\d \(\d+\.\d\)", row[1]) for row in rows[1:])


def test_the_same_seed_makes_the_same_lists():
    truth, results = scoring.make_lists(5, 3, 6, 4)
    assert scoring.make_lists(5, 3, 6, 4) == (truth, results)
    assert len(truth["images"]) == 5 and len(results) == 30
    assert scoring.make_lists(5, 3, 6, 4, seed=1)[1] != results
