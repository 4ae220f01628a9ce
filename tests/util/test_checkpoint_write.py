"""Checkpoints are written once, under one name or two, and what stood there before stays whole."""

from pathlib import Path

import pytest
import torch

from util.checkpoint_write import save_checkpoint, save_newest


def refuse(self, target):
    raise OSError(95, "not supported")


@pytest.mark.parametrize("links", [True, False])
def test_two_names_for_what_is_written_once(tmp_path, monkeypatch, links):
    """Where a file system has no hard links it is copied. A later checkpoint leaves the file with the other name."""
    if not links:
        monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    written, save = [], torch.save
    monkeypatch.setattr("util.checkpoint_write.torch.save", lambda *args: written.append(1) or save(*args))
    best, last = tmp_path / "best.pth", tmp_path / "last.pth"
    (tmp_path / "best.pth.tmp").write_bytes(b"of a kill")
    save_newest(tmp_path, {"epoch": 1}, also=best)
    assert written == [1] and best.samefile(last) == links
    assert best.read_bytes() == last.read_bytes()
    save_checkpoint(last, {"epoch": 2})
    found = [torch.load(path, weights_only=True)["epoch"] for path in (best, last)]
    assert found == [1, 2] and sorted(p.name for p in tmp_path.iterdir()) == ["best.pth", "last.pth"]


def test_a_kill_between_the_two_names_leaves_the_best_one_alone(tmp_path, monkeypatch):
    """What the kill leaves beside it is the same file by another name: no checkpoint is written into it."""
    best, rename = tmp_path / "best.pth", Path.replace

    def killed(self, target):
        if Path(target).name == "newest.pth":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        save_newest(tmp_path, {"epoch": 1}, also=best)
    assert best.samefile(tmp_path / "newest.pth.tmp")
    save_newest(tmp_path, {"epoch": 2})
    found = [torch.load(tmp_path / name, weights_only=True)["epoch"] for name in ("best.pth", "last.pth")]
    assert found == [1, 2]
