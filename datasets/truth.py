"""Which objects of an annotation file can be learned from and scored, and what to say about the others."""

from collections import Counter

import numpy as np

from datasets.annotations import Annotations
from datasets.boxes import clip_boxes
from datasets.doubles import rows_alike
from datasets.ids import check_listed
from util.errors import UserError


def sizes_of_objects(annotations: Annotations) -> np.ndarray:
    """`[N, 2]`, (width, height) of the image of each object in pixels; infinite where the file does not say."""
    # The last row is of images that are not listed: their position is -1.
    return np.append(annotations.images.sizes, [[np.inf, np.inf]], 0)[annotations.image_at]


def possible_objects(annotations: Annotations) -> np.ndarray:
    """`[N]`, whether the box of each object is finite, has a width and a height, and lies on its image.

    The others are no objects: nothing can be learned from them, and no detection can find them.
    """
    return clip_boxes(annotations.boxes, sizes_of_objects(annotations))[1]


def without_objects(annotations: Annotations) -> str | None:
    """Why there is nothing to learn from and nothing to score; None if there is an object."""
    file, objects = f"'{annotations.source}'", len(annotations)
    if not annotations.annotated:
        return f"{file} has no list 'annotations'"
    if not objects:
        return f"the list 'annotations' of {file} is empty"
    possible, crowds = possible_objects(annotations), annotations.crowds
    if (possible & ~crowds).any():
        return None
    if crowds.all():
        return f"all annotations of {file} ({objects}) are crowds (iscrowd is 1)"
    impossible = f"a box that is not finite, has no width or height, or lies outside its image ({(~crowds).sum()})"
    if not crowds.any():
        return f"all annotations of {file} have {impossible}"
    return f"all annotations of {file} are crowds (iscrowd is 1: {crowds.sum()}) or have {impossible}"


def check_learnable(annotations: Annotations) -> None:
    """Refuse to train on nothing.

    Raises:
        UserError: there is no object; says why.
    """
    if reason := without_objects(annotations):
        raise UserError(f"nothing to learn from: {reason}; check-data lists what is in the file")


def check_scorable(annotations: Annotations) -> None:
    """Refuse a truth that gives no score.

    Raises:
        UserError: there is no object; says why.
    """
    if reason := without_objects(annotations):
        raise UserError(f"nothing to score: {reason}; give a file with objects (--data.val_annotations)")


def remarks_on_truth(annotations: Annotations) -> list[str]:
    """A sentence on each thing in the truth that changes its scores unseen; none if there is nothing to score at all.

    Raises:
        UserError: an object is of an image or a class that the file does not list.
    """
    check_listed(annotations)
    if without_objects(annotations):
        return []
    source, remarks = f"'{annotations.source}'", []
    boxes, sizes = annotations.boxes, sizes_of_objects(annotations)
    possible = clip_boxes(boxes, sizes)[1]
    finite = np.isfinite(boxes).all(1)
    flat = finite & ~(boxes[:, 2:] > 0).all(1)
    counts = {"not finite": (~finite).sum(), "without width or height": flat.sum()}
    counts["outside their images"] = (~possible & finite & ~flat).sum()
    if not possible.all():
        kinds = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
        remarks.append(
            f"{source}: {(~possible).sum()} of {len(boxes)} boxes do not count as objects ({kinds}); check-data lists "
            "them"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        beyond = np.concatenate([-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sizes], 1).max(1, initial=-np.inf) > 1
    if (beyond & possible).any():
        remarks.append(
            f"{source}: {(beyond & possible).sum()} boxes reach more than a pixel beyond their images, and are scored "
            "as they are; check-data --fix clips them"
        )
    kept = possible & ~annotations.crowds
    columns = [annotations.image_at[kept], annotations.class_at[kept], *boxes[kept].T]
    alike = rows_alike(columns)
    doubled = sum(n - 1 for n in Counter(zip(*(column[alike].tolist() for column in columns))).values())
    if doubled:
        remarks.append(
            f"{source}: {doubled} boxes are doubled (the same image, class and box), so that a detection "
            "can find only one of them; check-data --fix removes them"
        )
    return remarks
