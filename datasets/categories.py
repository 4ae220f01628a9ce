"""The classes of a model and of a data set, and which of one is which of the other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datasets.annotations import CategoryEntry, Id
from datasets.coco_names import COCO_NAMES
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


def foreign_categories(num_classes: int, names: dict[int, str]) -> list[Category]:
    """The classes of a checkpoint that keeps none itself.

    Args:
        num_classes: classes C of its heads; 91 without names is COCO with its original ids.
        names: class names by label, if the checkpoint has them.
    """
    if not names and num_classes == 91:
        return [Category(i, i, name) for i, name in COCO_NAMES.items()]
    return [Category(i, i, names.get(i, "")) for i in range(num_classes)]


def match_categories(
    of_model: Sequence[Category], of_data: Sequence[Category], whose: str = "checkpoint"
) -> dict[int, Id]:
    """The category id in a data set that each label of a model stands for.

    Classes are matched by name, so that a data set whose ids were renumbered is still scored rightly; by id if the
    model has no names. `whose` says in an error where the model's classes come from.

    Raises:
        UserError: they have no class in common.
    """
    both = {(c.id, c.name) for c in of_data}
    if all((c.id, c.name) in both for c in of_model):  # the same file, or one like it; names may even be doubled
        return {c.label: c.id for c in of_model}
    by_name = {c.name: c.id for c in of_data}
    matched = {c.label: by_name[c.name] for c in of_model if c.name in by_name}
    if matched:
        return matched
    ids = {c.id for c in of_data}
    matched = {c.label: c.id for c in of_model if c.id in ids and not c.name}
    if matched:
        return matched
    raise UserError(
        f"the classes of the {whose} ({', '.join(c.name or str(c.id) for c in of_model[:5])}, ...) and of the data set "
        f"({', '.join(c.name for c in of_data[:5])}, ...) have none in common"
    )
