"""Folders and names of what the program writes."""

import os
from glob import escape, glob
from pathlib import Path

from util.errors import UserError


def at_home(path: str | os.PathLike) -> str:
    """The path with `~` at its start replaced by the home folder, as shells do where they see it.

    They do not in quotes, after an equals sign, or in a file of options. A path that exists as it stands is left so.
    """
    text = os.fspath(path)
    return text if not text.startswith("~") or Path(text).exists() else os.path.expanduser(text)  # noqa: PTH111


def matches(pattern: str) -> list[Path]:
    """The files and folders that a pattern matches, in order; `**` is any depth.

    As far as its folders exist as they are written, nothing in their names is taken for a pattern. Brackets behind that
    are a choice of characters, or themselves if nothing matches the choice.
    """
    parts = Path(pattern).parts
    exists = next(n for n in range(len(parts), -1, -1) if Path(*parts[:n]).exists())
    start, rest = escape(str(Path(*parts[:exists]))), str(Path(*parts[exists:]))
    for written in (rest, rest.replace("[", "[[]")):
        found = glob(str(Path(start, written)), recursive=True)  # noqa: PTH207 (an absolute pattern)
        if found:
            return sorted({Path(name) for name in found})
    return []


def make_folder(path: str | Path, option: str) -> Path:
    """The folder, made if it is not there yet."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise UserError(f"{option}: cannot make the folder '{path}': {reason}") from None
    return Path(path)


def unused_name(stem: str, used: set[str]) -> str:
    """A name for what is drawn of a picture, added to `used`: pictures of several folders may share one.

    Names that differ in capital letters alone are one to the file systems of macOS and Windows, and count as one in
    `used`, which holds them in small letters.
    """
    name, number = stem, 1
    while name.casefold() in used:
        number += 1
        name = f"{stem}_{number}"
    used.add(name.casefold())
    return name
