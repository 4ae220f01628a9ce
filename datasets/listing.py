"""What folders hold: pictures and label files by their names without suffix, and the lists of classes beside them."""

import os
from collections.abc import Iterable
from pathlib import Path

from datasets.pictures import picture_suffixes
from util.errors import UserError

CLASS_LISTS = ("classes.txt", "obj.names")  # LabelImg, Label Studio; Darknet


def files_below(folder: Path, suffixes: Iterable[str]) -> dict[str, list[str]]:
    """Files of these suffixes in a folder and all its folders, without hidden ones and without following links.

    Returns:
        Paths relative to the folder by what they are without suffix, in order, both with `/`.
    """
    wanted = frozenset(suffixes)
    found: dict[str, list[str]] = {}
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inner = os.path.relpath(place, folder).replace(os.sep, "/")
        for file in sorted(files):
            stem, suffix = os.path.splitext(file)  # noqa: PTH122 (118,000 of them)
            if suffix.lower() in wanted and not file.startswith("."):
                prefix = "" if inner == "." else f"{inner}/"
                found.setdefault(prefix + stem, []).append(prefix + file)
    return dict(sorted(found.items()))


def pictures_below(folder: Path) -> dict[str, list[str]]:
    """The pictures in a folder and all its folders, by their paths without suffix."""
    return files_below(folder, picture_suffixes())


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file in UTF-8, with or without a byte order mark, without the spaces around them.

    Raises:
        UserError: no such file, or no such text; names the line.
    """
    if not path.is_file():
        raise UserError(f"no {what} '{path}'")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{what} '{path}', line {line}: not UTF-8 text (byte {data[error.start]:#04x}); save it as UTF-8"
        ) from None
    return [line.strip() for line in text.splitlines()]


def read_class_list(path: Path) -> list[str]:
    """The names of classes, one a line, in the order of their numbers from 0.

    Raises:
        UserError: an empty line between two names, or no name; a name that is listed twice.
    """
    names = read_lines(path, "list of classes")
    while names and not names[-1]:
        names.pop()
    if not names:
        raise UserError(f"list of classes '{path}' is empty; it has the name of a class on each line")
    for number, name in enumerate(names, 1):
        if not name:
            raise UserError(f"list of classes '{path}', line {number}: empty; a class's number is that of its line")
        if name in names[: number - 1]:
            raise UserError(f"list of classes '{path}', line {number}: '{name}' is listed twice")
    return names


def class_list_near(folder: Path, levels: int = 2) -> Path | None:
    """A list of classes in a folder or in so many of those around it."""
    for place in (folder, *folder.absolute().parents[:levels]):
        for name in CLASS_LISTS:
            if (place / name).is_file():
                return place / name
    return None
