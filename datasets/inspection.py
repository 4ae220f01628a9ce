"""Looks at every image file of a data set before anything is made of it: in seconds, for only headers are read."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.annotations import ImageEntry
from datasets.filenames import FileNames
from datasets.frames import Frame, Rotated, frames_of
from datasets.headers import Header, decode, read_header
from datasets.orientation import UPRIGHT
from datasets.picture_file import BrokenImage, MissingImage
from util.errors import UserError
from util.progress import progress


class SizeMismatch(UserError):
    """A picture is of another size than its annotations say."""


THREADS = 8  # what is slow is to wait for a disk or a network
AT_ONCE = 32  # files that a thread takes


@dataclass(slots=True)
class Look:
    """What was found at one image.

    Attributes:
        entry: the image as its annotations list it.
        path: its file; where it was looked for, if there is none.
        as_written: whether the file has the name that the annotations give.
        header: its header; None if it cannot be opened.
        fault: why it cannot be used, if it cannot.
        frame: whether an EXIF rotation is applied or left out.
        guessed: whether nothing tells which it should be.
        lenient: whether what can be decoded of a damaged file is taken.
    """

    entry: ImageEntry
    path: Path
    as_written: bool = True
    header: Header | None = None
    fault: UserError | None = None
    frame: Frame = "upright"
    guessed: bool = False
    lenient: bool = False

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels in its frame."""
        if self.header is None:
            return None
        return self.header.upright_size if self.frame == "upright" else self.header.size

    @property
    def at_unrotated_size(self) -> bool:
        """Whether the annotations state the size of the stored picture, which is not that of the upright one."""
        return self.header is not None and self.entry.size == self.header.size != self.header.upright_size


def inspect(
    folder: Path,
    entries: Sequence[ImageEntry],
    boxes_of: Callable[[Sequence[int]], list[np.ndarray]],
    exif: str = "auto",
    whole: bool = False,
    mend: bool = False,
    description: str = "checking images",
) -> list[Look]:
    """Look at the file of each image.

    Args:
        folder: the image folder.
        entries: the images as annotations list them.
        boxes_of: positions of images to the boxes of each, `[N, 4]`, [x, y, width, height]; asked for those that EXIF
            rotates.
        exif: see `frames.frames_of`.
        whole: decode every picture; otherwise only those whose end looks damaged.
        mend: see whether something can be decoded of damaged ones.
        description: left of the progress bar.
    """
    names = FileNames(folder)
    looks: list[Look] = []
    chunks = [entries[i : i + AT_ONCE] for i in range(0, len(entries), AT_ONCE)]
    with ThreadPoolExecutor(THREADS) as pool, progress(None, description, total=len(entries)) as bar:
        try:
            for found in pool.map(lambda some: [_look(names, entry, whole, mend) for entry in some], chunks):
                looks += found
                bar.update(len(found))
        except BaseException:  # Ctrl-C, which would otherwise wait for all that is left
            pool.shutdown(cancel_futures=True)
            raise
    _refuse_shared(looks)
    _choose_frames(looks, boxes_of, exif)
    return looks


def _look(names: FileNames, entry: ImageEntry, whole: bool, mend: bool) -> Look:
    look = Look(entry, names.folder / entry.file_name)
    try:
        look.path, look.as_written = names.find(entry.file_name)
        look.header = read_header(look.path)
        if whole or not look.header.whole:
            decode(look.path)
    except UserError as error:
        look.fault = error
        look.lenient = mend and isinstance(error, BrokenImage) and _is_mendable(look)
    return look


def _is_mendable(look: Look) -> bool:
    try:
        decode(look.path, lenient=True)
        look.header = look.header or read_header(look.path, lenient=True)
    except UserError:
        return False
    return True


def _refuse_shared(looks: Sequence[Look]) -> None:
    """Refuse a file that was found for several names: at most one of them can be meant."""
    names = defaultdict(set)
    for look in looks:
        names[look.path].add(look.entry.file_name)
    for look in looks:
        if not look.as_written and len(names[look.path]) > 1:
            others = sorted(names[look.path] - {look.entry.file_name})
            look.header = None
            look.fault = MissingImage(
                f"no image '{look.entry.file_name}'; '{look.path}' may be meant, but so it may by '{others[0]}'"
            )


def _choose_frames(looks: Sequence[Look], boxes_of: Callable[[Sequence[int]], list[np.ndarray]], exif: str) -> None:
    """Choose the frame of each EXIF-rotated picture, then compare the size of each with the stated one."""
    turned = [i for i, look in enumerate(looks) if look.header and look.header.orientation != UPRIGHT]
    turned = [i for i in turned if looks[i].entry.size in (None, *_sizes(looks[i]))]
    pictures = [
        Rotated(*_sizes(looks[i]), looks[i].entry.size, boxes)
        for i, boxes in zip(turned, boxes_of(turned) if turned else [])
    ]
    for i, (frame, guessed) in zip(turned, frames_of(pictures, exif)):
        looks[i].frame, looks[i].guessed = frame, guessed
    may_differ = set(turned)
    for i, look in enumerate(looks):
        stated, size = look.entry.size, look.size
        if (look.fault is None or look.lenient) and size and stated not in (None, size) and i not in may_differ:
            look.lenient, look.fault = (
                False,
                SizeMismatch(
                    f"image '{look.entry.file_name}' is {size[0]}x{size[1]} pixels, but annotated as "
                    f"{look.entry.width}x{look.entry.height}"
                ),
            )


def _sizes(look: Look) -> tuple[tuple[int, int], tuple[int, int]]:
    assert look.header is not None
    return look.header.size, look.header.upright_size
