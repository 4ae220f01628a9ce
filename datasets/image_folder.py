"""Reads the pictures that annotations list."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from datasets.annotations import ImageEntry
from datasets.filenames import FileNames
from datasets.images import read_image
from datasets.inspection import Look


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
        self._known = {look.entry.id: (look.path, look.frame, look.lenient) for look in looks or ()}

    def read(self, entry: ImageEntry) -> Image.Image:
        """An RGB image, in the frame of its annotations.

        Raises:
            UserError: see `images.read_image`.
        """
        if entry.id in self._known:
            path, frame, lenient = self._known[entry.id]
            return read_image(path, frame=frame, lenient=lenient)
        path, _ = self._names.find(entry.file_name)
        if self.exif == "auto":
            return read_image(path, entry.size)
        return read_image(path, frame="raw" if self.exif == "raw" else "upright")
