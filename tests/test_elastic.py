"""torchrun's elastic agent as the engine of restarts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.processes import Launched
from tests.test_resume import assert_same_outcome, options, place  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[1]


def children_of(pid: int) -> list[int]:
    """Process ids, in the order in which they were started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [int(p) for p in found]


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_result_is_the_same(place, tmp_path):  # noqa: F811
    whole, output = tmp_path / "whole", tmp_path / "run"
    launched = Launched(options(place, whole), tmp_path / "whole.log", 2)
    assert launched.wait() == [0, 0], launched.printed()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv = [*torchrun, "--max-restarts", "2", "main.py", *map(str, options(place, output))]
    with (tmp_path / "log").open("w") as log:
        agent = subprocess.Popen(argv, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not (output / "last.pth").exists():
            assert agent.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.01)
        stopped_at = torch.load(output / "last.pth", weights_only=True)["schedule"]["step"]
        os.kill(children_of(agent.pid)[-1], signal.SIGKILL)
        assert agent.wait(180) == 0, (tmp_path / "log").read_text()
    finally:
        agent.kill()
    assert stopped_at < 28
    assert_same_outcome(output, whole)
