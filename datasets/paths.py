"""Where the files of a data set are."""

from pathlib import Path

from util.config import ValPaths
from util.errors import UserError


def dataset_paths(data: ValPaths, split: str) -> tuple[Path, Path] | None:
    """Image folder and annotation file of the `train` or `val` split; None if the configuration names neither.

    Raises:
        UserError: only one of the two is given.
    """
    images, annotations = (getattr(data, f"{split}_{part}", None) for part in ("images", "annotations"))
    if images and annotations:
        return Path(images), Path(annotations)
    if images or annotations:
        missing = f"data.{split}_annotations" if images else f"data.{split}_images"
        raise UserError(f"{missing} is missing: images and annotations are given together")
    if data.root:
        return Path(data.root) / f"{split}2017", Path(data.root) / "annotations" / f"instances_{split}2017.json"
    return None
