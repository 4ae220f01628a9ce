"""The benchmark of the deformable family: its table, and that it notices who computes something else."""

import pytest

from scripts.bench import deform


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(deform, "CONVOLUTIONS", [(1, 8, 6, 7, 1), (1, 8, 5, 5, 4)])
    monkeypatch.setattr(deform, "POOLED", (2, 4, 9, 8))


def test_the_table(capsys):
    assert deform.main(["--repeats", "1"]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4 * 3 and {len(row) for row in rows} == {9}
    assert [row[2] for row in rows[2:5]] == ["`torchvision`", "`sampling`", "`conv2d`"]
    for row in rows[2:]:
        assert all(float(cell) > 0 for cell in row[3:])
        assert row[2] != "`torchvision`" or float(row[4]) == float(row[6]) == 1


@pytest.mark.parametrize("name", ["deform_conv2d", "deform_roi_pool", "ps_roi_pool"])
def test_wrong_results_are_noticed(monkeypatch, capsys, name):
    right = getattr(deform, name)

    def wrong(*args, **options):
        out = right(*args, **options)
        # Only one of the two backends of the convolution errs.
        return out * 1.01 if not isinstance(args[-1], str) or args[-1] == "sampling" else out

    monkeypatch.setattr(deform, name, wrong)
    assert deform.main(["--repeats", "1"]) == 1
    assert "does not compute what torchvision does" in capsys.readouterr().err


def test_bad_options(capsys):
    for argv in (["--repeats", "0"], ["--device", "abacus"]):
        with pytest.raises(SystemExit) as ended:
            deform.main(argv)
        assert ended.value.code == 2
    assert "abacus" in capsys.readouterr().err
