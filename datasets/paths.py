"""Where the files of a data set are."""

from pathlib import Path

from datasets.yolo_layout import description_in, image_folder, read_description
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
        return root_layout(data.root, split)
    return None


def root_layout(root: str, split: str) -> tuple[Path, Path]:
    """Image folder and annotation file of a split in a folder that holds a whole data set of COCO, YOLO or Pascal VOC.

    Raises:
        UserError: a `data.yaml` of YOLO names no image folder for the split, or Pascal VOC has no list of it.
    """
    images, annotations = coco_layout(root, split)
    if images.exists() or annotations.exists() or not Path(root).is_dir():
        return images, annotations
    if description := description_in(Path(root)):
        return image_folder(description, read_description(description), split), description
    listed = Path(root, "ImageSets", "Main", f"{split}.txt")
    if listed.exists():
        return Path(root, "JPEGImages"), listed
    if any(inner.name == "Annotations" for inner in Path(root).iterdir()):  # some file systems know no capitals
        raise UserError(
            f"'{root}' looks like Pascal VOC, but it has no '{listed.relative_to(root)}', which lists the pictures of "
            f"the split; without lists, name data.{split}_images and data.{split}_annotations instead of data.root"
        )
    return images, annotations


def coco_layout(root: str, split: str) -> tuple[Path, Path]:
    """Image folder and annotation file of a split in the layout of COCO 2017."""
    return Path(root) / f"{split}2017", Path(root) / "annotations" / f"instances_{split}2017.json"
