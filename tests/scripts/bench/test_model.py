"""The benchmark of a whole detector runs as a script, and its contenders agree."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_it_compares_with_transformers():
    command = [sys.executable, ROOT / "scripts" / "bench" / "model.py", "--size", "64", "96", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip() for row in rows] == ["ours, cpu", "ours, reference", "transformers"]
    assert all(float(row[3]) < 1e-4 for row in rows)
