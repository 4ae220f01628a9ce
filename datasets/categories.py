"""The classes of a model and of a data set; `datasets.matching` says which of one is which of the other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from datasets.annotations import CategoryEntry, Id
from datasets.coco_names import COCO_HEADS, COCO_NAMES
from util.errors import UserError


@dataclass
class Category:
    """A class: the model's label, the id in annotation files, and the name."""

    label: int
    id: Id
    name: str


def categories_of(entries: Iterable[CategoryEntry], category_ids: str = "contiguous") -> list[Category]:
    """The classes of an annotation file in label order.

    Args:
        entries: the classes as the file lists them.
        category_ids: `contiguous` labels 0..C-1 in the order of ids, or the file's `original` ids as labels.

    Raises:
        UserError: an id that cannot be a label.
    """
    # Numbers before text, each in its own order.
    ordered = sorted(entries, key=lambda c: (isinstance(c.id, str), c.id))
    if category_ids == "original":
        unfit = [c.id for c in ordered if isinstance(c.id, str) or c.id < 0]
        if unfit:
            raise UserError(f"category id {unfit[0]!r} cannot be a label; take data.category_ids contiguous")
        return [Category(int(c.id), c.id, c.name) for c in ordered]
    return [Category(label, c.id, c.name) for label, c in enumerate(ordered)]


def distinct_names(categories: Iterable[Category | CategoryEntry]) -> list[str]:
    """Names of classes to tell them apart by: the id is added to a name that an earlier one has."""
    names: list[str] = []
    seen: set[str] = set()
    for category in categories:
        names.append(f"{category.name} ({category.id})" if category.name in seen else category.name)
        seen.add(names[-1])
    return names


def foreign_categories(num_classes: int, names: dict[int, str], contiguous: bool = False) -> list[Category]:
    """The classes of a checkpoint that keeps none itself: labels are ids; a name is empty where it has none.

    Where labels count classes instead, 80 without names are COCO's.

    Args:
        num_classes: classes C of its heads.
        names: class names by label, if the checkpoint has them.
        contiguous: whether labels count the classes in the order of their ids, from 0.
    """
    if contiguous and not names and num_classes == len(COCO_NAMES):
        return [Category(label, i, name) for label, (i, name) in enumerate(COCO_NAMES.items())]
    return [Category(i, i, names.get(i, "")) for i in range(num_classes)]


def assume_coco(categories: Sequence[Category]) -> list[Category]:
    """The 80 classes of COCO, if 91 classes have no names, as in released checkpoints; else the same classes."""
    if len(categories) != COCO_HEADS or any(c.name for c in categories):
        return list(categories)
    return [Category(i, i, name) for i, name in COCO_NAMES.items()]


def rename_by_id(categories: Sequence[Category], entries: Sequence[CategoryEntry], source: str) -> list[Category]:
    """The same classes with the names that an annotation file has for their ids; others keep their own.

    Raises:
        UserError: the file, named `source`, has none of the ids.
    """
    names = {entry.id: entry.name for entry in entries}
    if not any(c.id in names for c in categories):
        ids = ", ".join(str(i) for i in list(names)[:5])
        raise UserError(f"'{source}' names classes with the ids {ids}, of which the checkpoint has none")
    return [replace(c, name=names.get(c.id, c.name)) for c in categories]
