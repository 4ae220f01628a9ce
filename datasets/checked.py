"""What becomes of images whose files were looked at: problems are refused or passed over, doubts are said."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets.annotations import Annotations
from datasets.by_image import ByImage
from datasets.filenames import FileNames
from datasets.image_table import ImageTable
from datasets.inspection import Look, inspect
from datasets.picture_file import BrokenImage, MissingImage
from util.errors import UserError

SHOWN = 5  # problems that a refusal lists
REMEDY = "give --data.broken_images mend (what can be decoded of a few images is used) or skip (they are left out)"
BROKEN_SHARE = 0.01  # of the images may be broken: with more, it is the disk that is


@dataclass
class Checked:
    """A split of a data set whose files were looked at.

    Attributes:
        looks: at the images that are used.
        remarks: sentences about what was passed over or guessed.
        refusal: why the split cannot be used; "" if it can.
        mendable: whether `data.broken_images` could help.
    """

    looks: list[Look]
    remarks: list[str]
    refusal: str = ""
    mendable: bool = False


def look_at_files(folder: Path, annotations: Annotations, exif: str, broken: str, split: str) -> list[Look]:
    """Look at the file of each image; see `inspection.inspect`.

    Unless `broken` is `stop`, every picture is decoded: which of them are broken must be known before any is trained
    on, for the order of images and a resumed run depend on it.
    """

    def boxes_of(positions: Sequence[int]) -> list[np.ndarray]:
        return boxes_of_images(annotations, positions)

    return inspect(
        folder, annotations.images, boxes_of, exif, broken != "stop", broken == "mend", f"checking {split} images"
    )


def agreed(machines: Sequence[list[Look]]) -> list[Look]:
    """One list from those of several machines, which may have disks of their own: a fault of one is a fault."""
    first, *others = machines
    return [next((look for look in same if look.fault is not None), same[0]) for same in zip(first, *others)]


def settle(looks: Sequence[Look], folder: Path, broken: str, split: str) -> Checked:
    """Decide what is used, as `data.broken_images` says.

    Args:
        looks: at every image of the split.
        folder: the image folder.
        broken: `stop`, `mend` or `skip`.
        split: `train` or `val`, for messages.
    """
    damaged = [look for look in looks if isinstance(look.fault, BrokenImage)]
    passed_over = [look for look in damaged if broken == "skip" or look.lenient]
    most = max(1, int(BROKEN_SHARE * len(looks)))
    if len(passed_over) > most:
        said = "; ".join(str(look.fault) for look in passed_over[:SHOWN])
        return Checked(
            [],
            [],
            f"{split}: {len(passed_over)} of {len(looks)} images are broken; data.broken_images {broken} is for at "
            f"most 1 % ({most} here), for with more it is rather the disk or the copy: {said}",
        )
    over = {id(look) for look in passed_over}
    faults = [look for look in looks if look.fault is not None and id(look) not in over]
    used = [look for look in looks if look.fault is None or look.lenient]
    if faults:
        mendable = broken == "stop" and any(isinstance(look.fault, BrokenImage) for look in faults)
        return Checked([], [], _refusal(faults, len(looks), folder, split), mendable)
    if not used:
        return Checked([], [], f"{split}: no image is left, since the only ones are broken: {damaged[0].fault}")
    return Checked(used, [f"{split}: {remark}" for remark in _remarks(used, passed_over, broken, split)])


def refuse(splits: Sequence[Checked]) -> None:
    """Refuse all that cannot be used of all splits, at once.

    Raises:
        UserError: there is something.
    """
    said = [checked.refusal for checked in splits if checked.refusal]
    if not said:
        return
    if any(checked.mendable for checked in splits):
        said.append(f"For broken images {REMEDY}")
    raise UserError(". ".join([*said, "The command check-data lists all that is wrong"]))


def keep(annotations: Annotations, looks: Sequence[Look]) -> Annotations:
    """The annotations of the images that are used, with their sizes in the frame that they are read in."""
    images = ImageTable.of(replace(k.entry, width=k.size[0], height=k.size[1]) if k.size else k.entry for k in looks)
    if len(images) == len(annotations.images):
        return replace(annotations, images=images)
    # The last is of images that are not listed: their position is -1.
    left_out = np.append(annotations.images.ids.positions_in(images.ids) < 0, False)
    return replace(annotations.of_objects(np.flatnonzero(~left_out[annotations.image_at])), images=images)


def boxes_of_images(annotations: Annotations, positions: Sequence[int]) -> list[np.ndarray]:
    """The boxes `[N, 4]`, as written, of the images at these positions."""
    place = np.full(len(annotations.images) + 1, -1)  # the last is of images that are not listed, whose position is -1
    place[list(positions)] = np.arange(len(positions))
    of = place[annotations.image_at]
    return list(ByImage(annotations.boxes[of >= 0], of[of >= 0], len(positions)))


def all_missing(looks: Sequence[Look], folder: Path, split: str) -> str | None:
    """A sentence that sums up that there is no image at all; None if there is one."""
    if not looks or not all(isinstance(look.fault, MissingImage) for look in looks):
        return None
    return (
        f"all {len(looks)} images are missing; the first is looked for at '{looks[0].path}'; data.{split}_images (or "
        f"data.root) names '{folder}', which {FileNames(folder).holds()}"
    )


def _refusal(faults: Sequence[Look], count: int, folder: Path, split: str) -> str:
    if len(faults) == count and (missing := all_missing(faults, folder, split)):
        return f"{split}: {missing}"
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return (
        f"{split}: {_number(faults)} of {count} cannot be used: "
        + "; ".join(str(look.fault) for look in faults[:SHOWN])
        + more
    )


def _remarks(used: Sequence[Look], passed_over: Sequence[Look], broken: str, split: str) -> list[str]:
    remarks = []
    renamed = [look for look in used if not look.as_written]
    if renamed:
        remarks.append(
            f"found under a name that is written otherwise: {_number(renamed)}, such as "
            f"'{renamed[0].entry.file_name}', which is '{renamed[0].path}'"
        )
    remarks += exif_remarks(used)
    if passed_over and broken == "skip":
        objects = ", whose objects do not count in the scores" if split == "val" else ""
        remarks.append(f"broken and left out{objects}: {_listed(passed_over)}")
    elif passed_over:
        remarks.append(f"broken, and what can be decoded is used: {_listed(passed_over)}")
    return remarks


def exif_remarks(looks: Sequence[Look]) -> list[str]:
    """Sentences about EXIF-rotated images whose annotations leave open, or hide, what they were made on."""
    remarks = []
    for frame, read, other in (("raw", "as they are stored", "upright"), ("upright", "upright", "raw")):
        guessed = [look for look in looks if look.guessed and look.frame == frame]
        if guessed:
            sized = " annotated at unrotated size" if guessed[0].at_unrotated_size else ""
            remarks.append(
                f"EXIF-rotated{sized} and read {read}: {_listed(guessed)}; nothing tells whether the boxes were drawn "
                f"on that view; if not, give --data.exif {other}"
            )
    swapped = [look for look in looks if look.entry.size not in (None, look.size)]
    if swapped:
        read = "upright" if swapped[0].frame == "upright" else "as they are stored"
        remarks.append(
            f"EXIF-rotated and read {read}, against the annotated size, as boxes or data.exif say: {_listed(swapped)}"
        )
    return remarks


def _listed(looks: Sequence[Look]) -> str:
    more = ", ..." if len(looks) > SHOWN else ""
    names = ", ".join(f"'{look.entry.file_name}'" for look in looks[:SHOWN])
    return f"{_number(looks)} ({names}{more})"


def _number(looks: Sequence[Look]) -> str:
    return "1 image" if len(looks) == 1 else f"{len(looks)} images"
