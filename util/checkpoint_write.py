"""Writing checkpoints: to a temporary file, which then takes the name; and a run's newest ones in their order."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from util.errors import UserError

FORMAT = "deformable-detr/1"
KEPT = r"last(?:\.(\d+))?\.pth"  # a run's newest checkpoints; the larger the number, the older


def save_checkpoint(path: str | Path, content: dict[str, Any], also: str | Path | None = None) -> None:
    """Write to a temporary file beside `path`, then rename: a kill or a full disk leaves the old file whole.

    Args:
        path: where.
        content: what; no file is written twice.
        also: a second name for the same file, in the same folder, which it gets before the first.

    Raises:
        UserError: it cannot be written; names the reason.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    second = None if also is None else Path(also).with_name(Path(also).name + ".tmp")
    try:
        partial.unlink(missing_ok=True)  # of a kill; `also` may be another name of it, and is not to be written into
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        if also is not None and second is not None:
            _link(partial, second)
            second.replace(also)
        partial.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter when the disk is full
        for unfinished in (partial, second):
            if unfinished is not None:
                unfinished.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise UserError(f"cannot write checkpoint '{path}': {reason}; those before are untouched") from None


def _link(file: Path, name: Path) -> None:
    """Another name for a file that nobody writes into any more; a copy where the file system has no hard links."""
    name.unlink(missing_ok=True)  # of a kill
    try:
        name.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, name)
        with name.open("rb") as copy:
            os.fsync(copy.fileno())


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def kept_checkpoints(folder: str | Path) -> list[Path]:
    """The run's checkpoints in a folder, newest first: last.pth, last.1.pth, ...

    Before them newest.pth, which is only there if a kill came before it was given its place.
    """
    fresh = Path(folder) / "newest.pth"
    numbered = {int(m[1] or 0): p for p in Path(folder).glob("last*.pth") if (m := re.fullmatch(KEPT, p.name))}
    return [fresh] * fresh.is_file() + [numbered[i] for i in sorted(numbered)]


def save_newest(folder: str | Path, content: dict[str, Any], keep: int = 1, also: str | Path | None = None) -> None:
    """Write last.pth; the one before becomes last.1.pth, and so on, until `keep` are there.

    `also` is a second name for it, as in `save_checkpoint`. A kill at any moment leaves whole files: the new one is
    renamed last, when it is on the disk.
    """
    last = Path(folder) / "last.pth"
    fresh = last.with_name("newest.pth")
    save_checkpoint(fresh, content, also)
    kept = kept_checkpoints(folder)[1:]
    for path in kept[max(keep - 1, 0) :]:
        if path != last:
            path.unlink()
    for i in reversed(range(len(kept[: keep - 1]))):
        kept[i].replace(last.with_name(f"last.{i + 1}.pth"))
    fresh.replace(last)
    _sync_folder(last.parent)
