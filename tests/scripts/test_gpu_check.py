"""`scripts/gpu_check.sh` on a machine without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


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
