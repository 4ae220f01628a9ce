"""What answers without torch, whose import takes seconds: help, mistakes on the command line, and check-data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from main import COMMANDS
from tests.datasets.helpers import annotation, write_coco
from util.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "torchvision", "timm", "scipy", "pycocotools", "faster_coco_eval", "matplotlib", "tensorboard"}


def started(*argv: object) -> tuple[subprocess.CompletedProcess, set[str]]:
    """Python run in a process of its own, and the packages that it imported."""
    command = [sys.executable, "-X", "importtime", *map(str, argv)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    modules = re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)
    assert "encodings" in modules  # they are listed at all
    return done, {module.partition(".")[0] for module in modules}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    for split in ("train", "val"):
        write_coco(folder, [annotation(1, 1, 1, [2, 2, 10, 10])], split=split)
    return folder


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["check-data", "--data.root", "DATA"], 0, "classes       2"),
        (["check-data", "--data.root", "nowhere"], 2, "error: no image folder 'nowhere/train2017'"),
        (["check-data"], 2, "error: nothing to check"),
        (["--help"], 0, "python main.py check-data"),
        (["train", "--help"], 0, "--train.best_metric"),
        (["eval", "--help"], 0, "--checkpoint"),
        (["trian"], 2, "did you mean 'train'"),
        (["train", "--train.lrr", "1"], 2, "did you mean 'train.lr'"),
        (["train", "--train.lr", "fast"], 2, "a number"),
        (["train", "--train.epochs", "0"], 2, "train.epochs is 0; it must be at least 1"),
        (
            ["train", "--model.num_heads", "3"],
            2,
            "model.num_heads is 3, which does not divide model.d_model 256; try 2",
        ),
        (
            ["train", "--train.freeze", "[backbone,heds]"],
            2,
            "train.freeze has 'heds'; did you mean 'heads'?",
        ),
        (["visualize", "--model.num_points", "[4,4]"], 2, "lists 2 numbers, but model.num_levels is 4"),
        (["profile", "--model.dropout", "1"], 2, "model.dropout is 1.0; it must be in [0, 1)"),
        (["profile", "--plan", "gpu=8"], 2, "--plan has an unknown key 'gpu'; did you mean 'gpus'?"),
    ],
)
def test_commands(data, argv, code, said):
    done, packages = started("main.py", *(str(data) if a == "DATA" else a for a in argv))
    assert done.returncode == code and said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr and not HEAVY & packages


def cpu_seconds(*argv: str) -> float:
    """What main.py takes of a processor."""
    process = subprocess.Popen(
        [sys.executable, "main.py", *argv], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, 2)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("argv", "most"),
    [
        (["--help"], 0.3),
        (["trian"], 0.3),
        (["train", "--help"], 1.5),
        (["train", "--train.lrr", "1"], 1.5),
        (["train", "--train.epochs", "0"], 1.5),
        (["train", "--model.num_heads", "3"], 1.5),
    ],
)
def test_answers_come_at_once(argv, most):
    assert min(cpu_seconds(*argv) for _ in range(3)) < most


@pytest.mark.parametrize("command", ["visualize", "profile"])
def test_a_model_that_a_checkpoint_brings_is_not_judged_by_options(command):
    argv = ["--checkpoint", "x.pth", "--model.num_heads", "3"]
    assert COMMANDS[command].parse(command, argv).checkpoint == "x.pth"
    with pytest.raises(UserError, match=r"model\.num_heads is 3"):
        COMMANDS[command].parse(command, argv[2:])


@pytest.mark.parametrize(
    "module",
    [
        "main",
        "util.command",
        "models.limits",
        "datasets.readers",
        "datasets.matching",
        "datasets.metrics",
        "datasets.defects",
    ],
)
def test_modules(module):
    done, packages = started("-c", f"import {module}")
    assert done.returncode == 0 and not HEAVY & packages


def test_an_import_of_torch_would_be_seen():
    assert "torch" in started("-c", "import util.objects")[1]
