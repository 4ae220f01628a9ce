"""Reads the pictures that annotations list."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.annotations import ImageEntry
from datasets.filenames import FileNames
from datasets.frames import Frame
from datasets.id_column import IdColumn
from datasets.images import read_image
from datasets.inspection import Look
from datasets.texts import Texts


class Pictures:
    """The pictures of an image folder.

    Args:
        folder: the image folder.
        exif: `upright` or `raw` decides for every picture; `auto` goes by the size that its entry states.
        looks: what an inspection has found, which decides instead; None looks for each file as it is asked for.

    Attributes:
        folder: the image folder.
    """

    def __init__(self, folder: Path, exif: str = "auto", looks: Iterable[Look] | None = None):
        self.folder, self.exif = folder, exif
        self._names = FileNames(folder)
        self._known = _Known(folder, list(looks or ()))

    def read(self, entry: ImageEntry) -> Image.Image:
        """An RGB image, in the frame of its annotations.

        Raises:
            UserError: see `images.read_image`.
        """
        known = self._known.find(entry)
        if known is not None:
            path, frame, lenient = known
            return read_image(path, frame=frame, lenient=lenient)
        path, _ = self._names.find(entry.file_name)
        if self.exif == "auto":
            return read_image(path, entry.size)
        return read_image(path, frame="raw" if self.exif == "raw" else "upright")


class _Known:
    """What an inspection has found at each image, in columns."""

    def __init__(self, folder: Path, looks: list[Look]):
        self.folder, self.ids = folder, IdColumn.of([look.entry.id for look in looks])
        self.raw = np.array([look.frame == "raw" for look in looks], dtype=bool)
        self.lenient = np.array([look.lenient for look in looks], dtype=bool)
        # A path is kept where it is not that of the written name. Those two columns are of a byte each image.
        self.paths = Texts.of("" if look.path == folder / look.entry.file_name else str(look.path) for look in looks)

    def find(self, entry: ImageEntry) -> tuple[Path, Frame, bool] | None:
        """The file, its frame, and whether what can be decoded of it is taken; None if it was not looked at."""
        row = self.ids.find(entry.id)
        if row < 0:
            return None
        path = self.paths[row]
        frame: Frame = "raw" if self.raw[row] else "upright"
        return Path(path) if path else self.folder / entry.file_name, frame, bool(self.lenient[row])
