"""The benchmark of inference runs, and its contenders agree."""

import re

import pytest

from scripts.bench import inference


@pytest.mark.slow
def test_a_small_run_prints_a_table(capfd):
    pytest.importorskip("transformers")
    assert inference.main(["--size", "64", "96", "--repeats", "1", "--threads", "1"]) == 0
    rows = re.findall(r"^\| (.+?) \|.* ([\d.]+e[+-]\d+) \|$", capfd.readouterr().out, re.MULTILINE)
    assert [name for name, _ in rows] == [inference.APART, inference.EACH, inference.ONCE, inference.THEIRS]
    assert all(float(deviation) < 1e-4 for _, deviation in rows)
