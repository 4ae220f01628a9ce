"""The benchmark of the shifts runs, prints one table, and refuses wrong results and options."""

import re

import pytest
import torch

from ops import shift as shifts
from scripts.bench import shift, timing

TINY = ["--shape", "1x12x5x7", "--repeats", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def short_bursts(monkeypatch):
    monkeypatch.setattr(timing, "BURST", 1e-4)
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


def test_tiny_run_prints_a_table_and_the_machine(capsys):
    assert shift.main(TINY) == 0
    out = capsys.readouterr().out
    assert f"1 CPU threads, torch {torch.__version__}" in out and "fp32, medians of 2 rounds" in out
    (table,) = re.findall(r"(?:^\|.*\n)+", out, re.MULTILINE)
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert {len(row) for row in rows} == {len(header)} == {9}
    names = ["slice", "roll", "depthwise_conv", "deform_conv", "grid_sample"]
    assert [row[:3] for row in rows] == [["1x12x5x7", groups, f"`{n}`"] for groups in ("4", "12") for n in names]
    for i, row in enumerate(rows):
        forward, forward_ratio, both, both_ratio, peak, peak_both = (float(cell) for cell in row[3:])
        slice_forward, slice_both = float(rows[i // 5 * 5][3]), float(rows[i // 5 * 5][5])
        assert forward > 0 and both > 0
        assert forward_ratio == pytest.approx(forward / slice_forward, rel=0.02, abs=0.01)
        assert both_ratio == pytest.approx(both / slice_both, rel=0.02, abs=0.01)
        bytes_of_map = 12 * 5 * 7 * 4
        assert 2 * bytes_of_map / 2**20 - 5e-4 <= peak <= peak_both


def test_groups_are_what_they_are_called():
    assert sorted(shift.DIRECTIONS) == [(-1, 0), (0, -1), (0, 1), (1, 0)]
    assert sorted(shift.NEIGHBOURS) == [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]


@pytest.mark.parametrize("what", ["output", "gradient"])
def test_methods_that_disagree_end_the_run(monkeypatch, capsys, what):
    def wrong(x, moves):
        changed = shifts._roll(x, moves) * (1 + 1e-3)
        return changed if what == "output" else shifts._roll(x, moves) + (changed - changed.detach())

    monkeypatch.setitem(shifts.METHODS, "grid_sample", wrong)
    assert shift.main(TINY) == 1
    captured = capsys.readouterr()
    assert "|" not in captured.out
    assert captured.err.splitlines()[-1] == f"bench/shift.py: the {what} of grid_sample is not that of slice"


def test_help_tells_the_method(capsys):
    with pytest.raises(SystemExit) as stop:
        shift.main(["--help"])
    assert stop.value.code == 0 and "medians" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shape", "8x64x56"], "8x64x56"),
        (["--shape", "1x6x5x5"], "1x6x5x5"),
        (["--shape", "0x4x5x5"], "0x4x5x5"),
        (["--repeats", "0"], "--repeats"),
        (["--threads", "0"], "--threads"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_bad_options_are_one_sentence(capsys, options, said):
    with pytest.raises(SystemExit) as stop:
        shift.main(options)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert said in captured.err.splitlines()[-1]
