"""Folders that the program writes into."""

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
