"""The scripts that other tests do not run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_gpu_check_says_that_there_is_no_gpu(tmp_path):
    done = subprocess.run(
        [ROOT / "scripts" / "gpu_check.sh", tmp_path / "with space"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "sees no GPU here" in done.stderr
    assert "sees no GPU here" in (tmp_path / "with space" / "summary.txt").read_text()


def test_bench_model_compares_with_transformers():
    command = [sys.executable, ROOT / "scripts" / "bench_model.py", "--size", "64", "96", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip() for row in rows] == ["ours, cpu", "ours, reference", "transformers"]
    assert all(float(row[3]) < 1e-4 for row in rows)
