"""Killed, stopped, out of disk: a resumed run ends with the same weights to the last bit, and nothing is lost."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from datasets.entries import ImageEntry
from datasets.image_folder import Pictures
from main import main
from tests.processes import Launched
from tests.test_main import small_place
from util.checkpoint import read_newest
from util.checkpoint_write import kept_checkpoints
from util.signals import STOPPED

SETTINGS = {
    "model.dropout": 0.1,
    "data.workers": 2,
    "data.color_jitter": 0.2,
    "train.batch_size": 4,
    "train.epochs": 4,
    "train.eval_every": 2,
    "train.log_every": 2,
    "train.save_every": 2,
    "train.ema_decay": 0.9,
    "train.freeze": "[neck]",
    "train.early_stop": 9,
    "train.resume": "auto",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return small_place(tmp_path_factory.mktemp("resume"), train=28, val=5)


def options(place: Path, output: Path, **more: object) -> list[object]:
    settings = {"data.root": place / "shapes", "train.output": output, **SETTINGS, **more}
    return ["train", "--config", place / "small.yaml", *(f"--{k}={v}" for k, v in settings.items())]


@pytest.fixture(scope="module")
def whole(place) -> Path:
    """An uninterrupted run: 4 epochs of 7 steps."""
    launched = Launched(options(place, place / "whole"), place / "whole.log")
    assert launched.wait() == [0], launched.printed()
    return place / "whole"


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_outcome(folder: Path, whole: Path) -> None:
    """Weights, their average, the optimizer's moments, the best checkpoint and the log."""
    for name in ("last.pth", "best.pth"):
        resumed, exact = (torch.load(f / name, weights_only=True) for f in (folder, whole))
        for part in ("model", "ema"):
            for key, tensor in exact[part].items():
                assert torch.equal(resumed[part][key], tensor), f"{name}: {part} {key}"
        for i, moments in exact["optimizer"]["state"].items():
            for key, tensor in moments.items():
                assert torch.equal(resumed["optimizer"]["state"][i][key], tensor), f"{name}: {key} of parameter {i}"
        for key in ("epoch", "schedule", "best", "stale"):
            assert resumed[key] == exact[key], key
    assert lines_of(folder) == lines_of(whole)
    assert not list(folder.glob("*.tmp"))


def newest_change(folder: Path) -> int:
    """Of the newest checkpoint, in nanoseconds; a file may be renamed while one looks."""
    try:
        return (folder / "last.pth").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_kill_9_at_random_moments_five_times(place, whole, tmp_path):
    output, moments = tmp_path / "run", random.Random(7)
    kills = 0
    while kills < 5:
        launched, before = Launched(options(place, output), tmp_path / "log"), newest_change(output)
        deadline = time.monotonic() + 60
        while newest_change(output) in (0, before):  # it gets on by a checkpoint at least, or this would never end
            assert launched.processes[0].is_alive() and time.monotonic() < deadline, launched.printed()
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.15))
        launched.signal(signal.SIGKILL)
        assert launched.wait(20) == [-signal.SIGKILL]
        kills += 1
    launched = Launched(options(place, output), tmp_path / "log")
    assert launched.wait() == [0], launched.printed()
    assert_same_outcome(output, whole)


def die_while_saving(moment: str, count: int, rank: int) -> None:
    """Kill this process in the middle of its `count`th checkpoint."""
    import util.checkpoint_write

    seen = 0

    def now() -> bool:
        nonlocal seen
        seen += 1
        return seen == count

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "half written":
        save = torch.save

        def half(content, file):
            if now():
                save(content, file)
                file.truncate(file.tell() // 2)
                file.flush()
                die()
            save(content, file)

        util.checkpoint_write.torch.save = half
    else:
        replace, before = Path.replace, moment.endswith("not renamed")
        of = "last.pth" if moment == "moved aside" else "newest.pth.tmp"

        def replaced(path, target):
            dies = path.name == of and now()
            if dies and before:
                die()
            replace(path, target)
            if dies:
                die()

        Path.replace = replaced


@pytest.mark.parametrize("moment", ["half written", "written, not renamed", "moved aside", "renamed"])
def test_killed_while_saving(place, whole, tmp_path, moment):
    output = tmp_path / "run"
    launched = Launched(options(place, output), tmp_path / "log", prepare=partial(die_while_saving, moment, 5))
    assert launched.wait() == [-signal.SIGKILL], launched.printed()
    assert kept_checkpoints(output), "nothing is left"
    assert read_newest(output) is not None
    launched = Launched(options(place, output), tmp_path / "log")
    assert launched.wait() == [0], launched.printed()
    assert "truncated" not in launched.printed()
    assert_same_outcome(output, whole)


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_lets_the_step_end_and_saves(place, whole, tmp_path, number, processes):
    output = tmp_path / "run"
    more = {"train.save_every": 1000}  # only the signal saves inside epochs
    launched = Launched(options(place, output, **more), tmp_path / "log", processes)
    deadline = time.monotonic() + 60
    while not (output / "metrics.jsonl").exists() or len(lines_of_partial(output)) < 5:
        assert time.monotonic() < deadline, launched.printed()
        time.sleep(0.01)
    launched.signal(number, rank=processes - 1)  # of two, only one is told
    assert launched.wait(60) == [STOPPED] * processes, launched.printed()
    assert "go on with --train.resume" in launched.printed()
    stopped = torch.load(output / "last.pth", weights_only=True)
    assert stopped["schedule"]["step"] < 28
    if processes == 1:
        launched = Launched(options(place, output), tmp_path / "log")
        assert launched.wait() == [0], launched.printed()
        assert_same_outcome(output, whole)


def lines_of_partial(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_a_truncated_checkpoint_falls_back_to_the_one_before(place, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    kept = kept_checkpoints(tmp_path / "run")
    assert [p.name for p in kept] == ["last.pth", "last.1.pth"]
    with kept[0].open("r+b") as file:
        file.truncate(kept[0].stat().st_size // 2)
    launched = Launched(options(place, tmp_path / "run"), tmp_path / "log")
    assert launched.wait() == [0], launched.printed()
    assert "'" + str(kept[0]) + "'" in launched.printed() and "going back to 'last.1.pth'" in launched.printed()
    assert_same_outcome(tmp_path / "run", whole)


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_as_asked_for_are_kept(place, tmp_path, keep):
    more = {"train.keep_checkpoints": keep, "train.epochs": 2, "data.workers": 0}
    launched = Launched(options(place, tmp_path, **more), tmp_path / "log")
    assert launched.wait() == [0], launched.printed()
    kept = kept_checkpoints(tmp_path)
    assert [p.name for p in kept] == ["last.pth", "last.1.pth", "last.2.pth"][:keep]
    steps = [torch.load(p, weights_only=True)["schedule"]["step"] for p in kept]
    assert steps == [14, 12, 10][:keep]  # at the epoch's end, and in time


def test_a_full_disk_leaves_the_checkpoints_whole(place, whole, tmp_path):
    disk, size = tmp_path / "disk", int(2.7 * (whole / "last.pth").stat().st_size)
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        more = {"train.epochs": 1, "train.save_every": 1, "data.workers": 0, "train.keep_checkpoints": 9}
        launched = Launched(options(place, disk / "run", **more), tmp_path / "log")
        assert launched.wait() == [2], launched.printed()
        assert "cannot write checkpoint" in launched.printed() and "Traceback" not in launched.printed()
        assert not list((disk / "run").glob("*.tmp"))
        kept = kept_checkpoints(disk / "run")
        assert [torch.load(p, weights_only=True)["schedule"]["step"] for p in kept] == [2, 1]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_other_processes_resume_with_other_dropout_only(place, tmp_path):
    """A run of one process goes on with two, in the middle of an epoch."""
    more = {"model.dropout": 0.0, "train.precision": "fp64", "model.backbone.norm": "frozen", "data.workers": 0}
    more["train.epochs"] = 2
    one, two = tmp_path / "one", tmp_path / "two"
    launched = Launched(options(place, one, **more), tmp_path / "log")
    assert launched.wait() == [0], launched.printed()
    die = partial(die_while_saving, "renamed", 3)
    assert Launched(options(place, two, **more), tmp_path / "log", prepare=die).wait() == [-signal.SIGKILL]
    launched = Launched(options(place, two, **more), tmp_path / "log", 2)
    assert launched.wait() == [0, 0], launched.printed()
    assert "saved by 1 processes, resumed by 2" in launched.printed()
    exact, resumed = (torch.load(f / "last.pth", weights_only=True)["model"] for f in (one, two))
    for key, tensor in exact.items():
        torch.testing.assert_close(resumed[key], tensor, rtol=1e-9, atol=1e-9)


def test_an_epoch_of_another_length_cannot_be_resumed_in_its_middle(place, tmp_path):
    die = partial(die_while_saving, "renamed", 3)
    assert Launched(options(place, tmp_path / "r"), tmp_path / "log", prepare=die).wait() == [-signal.SIGKILL]
    launched = Launched(options(place, tmp_path / "r", **{"train.batch_size": 7}), tmp_path / "log")
    assert launched.wait() == [2]
    assert "of an epoch of 7 steps; with this data, batch and seed it has 4" in launched.printed()


@pytest.mark.slow  # tests/datasets/test_loader.py has the loader's part of it
def test_resuming_in_the_middle_of_an_epoch_decodes_no_image_that_was_seen(place, tmp_path, monkeypatch):
    decoded, read = [], Pictures.read

    def recorded(pictures: Pictures, entry: ImageEntry) -> Image.Image:
        if pictures.folder == place / "shapes" / "train2017":
            decoded.append(entry.file_name)
        return read(pictures, entry)

    monkeypatch.setattr(Pictures, "read", recorded)
    more = {"data.workers": 0, "train.epochs": 1, "train.save_every": 3, "train.keep_checkpoints": 9}
    runs = []
    for name, resume in (("one", "auto"), ("two", tmp_path / "one" / "last.2.pth")):
        decoded.clear()
        assert main([str(a) for a in options(place, tmp_path / name, **more, **{"train.resume": resume})]) == 0
        runs.append(list(decoded))
    whole, rest = runs
    assert torch.load(tmp_path / "one" / "last.2.pth", weights_only=True)["schedule"]["step_in_epoch"] == 3
    assert len(set(whole)) == len(whole) == 28
    assert rest == whole[12:]  # 3 steps of 4 images were seen


def test_resuming_into_another_run_is_refused(place, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "other")
    argv = options(place, tmp_path / "other", **{"train.resume": whole / "last.pth"})
    assert main([str(a) for a in argv]) == 2
    assert "holds a run" in capsys.readouterr().err
