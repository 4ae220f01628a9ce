"""From a file name as an annotation file writes it to the file that is meant.

Tools write backslashes, percent signs, the path on another machine, their own prefixes, letters composed otherwise.
Only where there is no file of the written name, one is looked for in the image folder whose name says the same; there
must be one alone.
"""

import errno
import os
import re
import unicodedata
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

from datasets.picture_file import MissingImage

SCHEME = re.compile(r"^[A-Za-z][\w+.-]+://")
LOCAL_FILE = "?d="  # Label Studio serves local files as /data/local-files/?d=PATH
UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")  # and puts eight digits before the names of uploaded ones


class FileNames:
    """Finds the files of an image folder.

    The folder is listed once, at the first name that is not there as it is written.

    Args:
        folder: the image folder; a written name is a path in it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._listed: dict[str, list[str]] | None = None

    def find(self, name: str) -> tuple[Path, bool]:
        """The file that a name means, and whether it is there as written.

        What lies outside the folder is found as written or not at all.

        Raises:
            MissingImage: there is none, or there are several.
        """
        written = self.folder / name
        if _is_there(written):
            return written, True
        parts = parts_of(name)
        plain = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        for spelt in (parts, [] if ".." in plain else plain):
            for first in range(len(spelt)):
                path = self.folder.joinpath(*spelt[first:])
                if _is_there(path) and not path.is_dir():
                    return path, False
        found = self._alike(parts) if parts else []
        if len(found) == 1:
            return self.folder / found[0], False
        several = f", and several may be meant: {', '.join(map(repr, found[:3]))}" if found else ""
        raise MissingImage(f"no image '{written}'{several}")

    def holds(self) -> str:
        """What is in the folder, in a few words."""
        names = sorted({path for paths in self._index().values() for path in paths})
        if not names:
            return "holds no files"
        return f"holds {len(names)} file{'s' if len(names) > 1 else ''}, such as '{names[0]}'"

    def _alike(self, parts: list[str]) -> list[str]:
        """The files, relative to the folder, whose path is an end of the name or has it for its end; the longest."""
        wanted = _key(parts)
        best: dict[str, int] = {}
        for shorten in (False, True):
            if shorten:
                wanted = [*wanted[:-1], UPLOADED.sub("", wanted[-1])]
            for path in self._index().get(wanted[-1], []):
                there = _key(parts_of(path))
                there = [*there[:-1], UPLOADED.sub("", there[-1])] if shorten else there
                common = min(len(there), len(wanted))
                if there[-common:] == wanted[-common:]:
                    best[path] = common
            if best:
                break
        return sorted(path for path, common in best.items() if common == max(best.values()))

    def _index(self) -> dict[str, list[str]]:
        """Paths relative to the folder by their last part, as `_key` has it, with and without an upload's prefix."""
        if self._listed is None:
            self._listed = defaultdict(list)
            for place, _, files in os.walk(self.folder):  # into no links: they may lead anywhere, or in circles
                for file in files:
                    path = os.path.relpath(os.path.join(place, file), self.folder)  # noqa: PTH118 (118,000 of them)
                    last = (_key(parts_of(path)) or [file])[-1]
                    for key in {last, UPLOADED.sub("", last)}:
                        self._listed[key].append(path)
        return self._listed


def parts_of(name: str) -> list[str]:
    """A written name as the parts of a path, leading ones perhaps too many; nothing of it leads upwards."""
    text = name.strip()
    if LOCAL_FILE in text:
        text = text.partition(LOCAL_FILE)[2]
    elif SCHEME.match(text):
        text = SCHEME.sub("", text).partition("?")[0]
    for _ in range(2):  # some are encoded twice
        text = unquote(text)
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
    upwards = max((i for i, part in enumerate(parts) if part == ".."), default=-1)
    return parts[upwards + 1 :]


def _key(parts: list[str]) -> list[str]:
    """Parts without the differences of composed and decomposed, of capital and small letters."""
    return [unicodedata.normalize("NFC", part).casefold() for part in parts]


def _is_there(path: Path) -> bool:
    """Whether something is there, be it a broken link, a folder, or what may not be looked at."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True
