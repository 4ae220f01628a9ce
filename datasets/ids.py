"""Which listed id an id means that was written as text where numbers are, or the other way round."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from datasets.annotations import Annotations, Id
from datasets.values import as_whole, typed
from util.errors import UserError


def id_order(value: Id) -> tuple[bool, Id]:
    """Key to sort ids by: numbers before text, each in its own order."""
    return isinstance(value, str), value


def counterparts(used: Iterable[Id], listed: Iterable[Id]) -> dict[Id, Id]:
    """The listed id that each id stands for which is not listed as it is written.

    Text and number are the same where the text is that number ("7", "007", 7, 7.0). Ids that stand for none, or for
    several, are left out.

    Args:
        used: ids that refer to something.
        listed: ids of what there is.
    """
    known = dict.fromkeys(listed)
    of_number: dict[int, list[Id]] = {}
    for value in known:
        number = as_whole(value)
        if number is not None:
            of_number.setdefault(number, []).append(value)
    found = {}
    for value in dict.fromkeys(used):
        number = None if value in known else as_whole(value)
        if number is not None and len(of_number.get(number, [])) == 1:
            found[value] = of_number[number][0]
    return found


def renamed(column: Sequence[Id], found: Mapping[Id, Id]) -> list[Id]:
    """A column of ids with counterparts in the place of what stood for them."""
    return [found.get(value, value) for value in column] if found else list(column)


def remark_on(found: Mapping[Id, Id], column: str, whose: str) -> str:
    """A sentence on ids that were matched although their types differ.

    Args:
        found: from `counterparts`; not empty.
        column: the file and the key.
        whose: what has the listed ids.
    """
    written, meant = next(iter(found.items()))
    others = f", and {len(found) - 1} other values alike" if len(found) > 1 else ""
    return f"{column} {typed(written)} is taken for the id {typed(meant)} of {whose}{others}"


def some_ids(listed: Iterable[Id]) -> str:
    """The first ids, with their types, for errors."""
    ids = list(listed)
    return ", ".join(typed(i) for i in ids[:3]) + (", ..." if len(ids) > 3 else "") if ids else "none"


def check_listed(annotations: Annotations) -> None:
    """See that the file lists the image and the class of every object.

    Raises:
        UserError: it does not; quotes the id with its type, beside those of the file.
    """
    unlisted = np.flatnonzero((annotations.image_at < 0) | (annotations.class_at < 0))
    if not len(unlisted):
        return
    first = int(unlisted[0])
    where = f"annotation {annotations.ids[first]} in '{annotations.source}'"
    if annotations.image_at[first] < 0:
        raise UserError(
            f"{where} is of image {typed(annotations.image_ids[first])}, which the file does not list; the ids of its "
            f"images are {some_ids(annotations.images.ids)}"
        )
    raise UserError(
        f"{where} has the unknown category {typed(annotations.category_ids[first])}; the ids of the file's categories "
        f"are {some_ids(c.id for c in annotations.categories)}"
    )
