"""Folders and names of what the program writes."""

from pathlib import Path

from util.errors import UserError


def make_folder(path: str | Path, option: str) -> Path:
    """The folder, made if it is not there yet."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise UserError(f"{option}: cannot make the folder '{path}': {reason}") from None
    return Path(path)


def unused_name(stem: str, used: set[str]) -> str:
    """A name for what is drawn of a picture, added to `used`: pictures of several folders may share one."""
    name, number = stem, 1
    while name in used:
        number += 1
        name = f"{stem}_{number}"
    used.add(name)
    return name
