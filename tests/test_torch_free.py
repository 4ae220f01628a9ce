"""What answers without torch, whose import takes seconds: help, mistakes on the command line, and check-data."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.datasets.helpers import annotation, write_coco

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "torchvision", "timm", "scipy", "pycocotools", "matplotlib", "tensorboard"}


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
    ],
)
def test_commands(data, argv, code, said):
    done, packages = started("main.py", *(str(data) if a == "DATA" else a for a in argv))
    assert done.returncode == code and said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr and not HEAVY & packages


@pytest.mark.parametrize(
    "module",
    ["main", "util.command", "datasets.readers", "datasets.categories", "datasets.metrics", "datasets.defects"],
)
def test_modules(module):
    done, packages = started("-c", f"import {module}")
    assert done.returncode == 0 and not HEAVY & packages


def test_an_import_of_torch_would_be_seen():
    assert "torch" in started("-c", "import util.objects")[1]
