"""Which class of a model is which of a data set, or of another model. Names decide; nothing is guessed from a count.

A checkpoint of 91 classes without names may be a released one, whose labels are COCO's ids, or one that somebody
trained on own ids and left at 91 heads. The data set tells: if its classes are COCO's, so are the model's; if they
plainly are not, labels are the data set's own ids; else the user has to say.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from datasets.annotations import Id
from datasets.categories import Category, assume_coco
from datasets.coco_names import COCO_HEADS, COCO_NAMES
from util.errors import UserError

SHOWN = 8  # names in a remark


@dataclass
class Matching:
    """What was matched.

    Attributes:
        category_of: the category id of the data set that each label of the model stands for.
        remarks: sentences for the user: how classes were matched if that is not plain, and which were not.
    """

    category_of: dict[int, Id]
    remarks: list[str] = field(default_factory=list)


def match_categories(
    of_model: Sequence[Category],
    of_data: Sequence[Category],
    whose: str = "checkpoint",
    of: str = "data set",
    how: str = "auto",
) -> Matching:
    """The category id in a data set that each label of a model stands for.

    Classes are matched by name, so that a data set whose ids were renumbered is still scored rightly. Spelling counts:
    `rbc` is not `RBC`, but a remark says that they are alike.

    Args:
        of_model: the model's classes; without names, labels are ids.
        of_data: the data set's classes.
        whose: where the model's classes come from, for remarks and errors.
        of: where the data set's come from.
        how: `names`, `ids`, or `auto`: by name if the model has any, else as the data set tells.

    Raises:
        UserError: they have no class in common, or a model without names could be matched either way.
    """
    remarks = []
    nameless = not any(c.name for c in of_model)
    by_ids = how == "ids" or (how == "auto" and nameless and not _is_coco(of_model, of_data))
    if nameless and not by_ids:
        if len(of_model) != COCO_HEADS:
            raise UserError(f"the {whose} keeps no class names to match by; take --match ids")
        of_model = assume_coco(of_model)
    pairs = [*_by_id(of_model, of_data).items()] if by_ids else same_names(of_model, of_data)
    if not pairs:
        raise UserError(_none_in_common(of_model, of_data, whose, by_ids))
    if nameless:
        other = ""
        if len(of_model) == COCO_HEADS and by_ids and how == "auto":
            other = " (if it is a released one, --match names gives it COCO's names)"
        by = "id" if by_ids else "COCO's names, which are assumed"
        remarks.append(f"the {whose} keeps no class names: {len(pairs)} classes are matched by {by}{other}")
    elif by_ids:
        differ = [f"'{a.name}' is '{b.name}'" for a, b in _categories(pairs, of_model, of_data) if a.name != b.name]
        also = f", though names differ: {some(differ)}" if differ else ""
        remarks.append(f"{len(pairs)} classes are matched by id{also}")
    remarks += _not_matched(pairs, [] if nameless else of_model, of_data, whose, of)
    return Matching(dict(pairs), remarks)


def same_names(ours: Sequence[Category], theirs: Sequence[Category]) -> list[tuple[int, Id]]:
    """(label of ours, id of theirs) of the classes that have one name; of doubled names, those with one id too."""
    named, pairs = {c.name: c.id for c in reversed(theirs)}, {(c.id, c.name) for c in theirs}
    if all((c.id, c.name) in pairs for c in ours):  # the same file, or one like it; names may even be doubled
        return [(c.label, c.id) for c in ours]
    doubled = {name for name, count in Counter(c.name for c in theirs).items() if count > 1}
    return [
        (c.label, c.id if c.name in doubled and (c.id, c.name) in pairs else named[c.name])
        for c in ours
        if c.name and c.name in named
    ]


def alike(name: str) -> str:
    """A name without what spellings differ in: capitals, spaces, `_` and `-`."""
    return re.sub(r"[\s_-]+", "", name.casefold())


def hint_at(name: str, others: Sequence[str]) -> str:
    """` (did you mean 'RBC'?)`, if one of the others is spelt almost so; else nothing."""
    by_spelling = {alike(other): other for other in reversed(others)}
    near = get_close_matches(alike(name), by_spelling, n=1, cutoff=0.9)
    return f" (did you mean '{by_spelling[near[0]]}'?)" if near else ""


def _by_id(of_model: Sequence[Category], of_data: Sequence[Category]) -> dict[int, Id]:
    ids = {c.id for c in of_data}
    return {c.label: c.id for c in of_model if c.id in ids}


def _is_coco(of_model: Sequence[Category], of_data: Sequence[Category]) -> bool:
    """Whether a model without names is one of COCO, as far as a data set tells.

    Raises:
        UserError: it might be; the data set has COCO's names, but under other ids.
    """
    if len(of_model) != COCO_HEADS:
        return False
    coco, ids = set(COCO_NAMES.values()), set(COCO_NAMES.items())
    if {c.name for c in of_data} == coco or {(c.id, c.name) for c in of_data} <= ids:
        return True
    if {alike(c.name) for c in of_data} <= {alike(name) for name in coco}:
        raise UserError(
            f"the checkpoint has {COCO_HEADS} classes without names, and the data set has some of COCO's names under "
            "ids of its own; if the checkpoint is of COCO, take --match names; if it was trained on these ids, "
            "--match ids"
        )
    return False


def _categories(
    pairs: Sequence[tuple[int, Id]], of_model: Sequence[Category], of_data: Sequence[Category]
) -> list[tuple[Category, Category]]:
    by_label, by_id = {c.label: c for c in of_model}, {c.id: c for c in of_data}
    return [(by_label[label], by_id[of]) for label, of in pairs]


def _not_matched(
    pairs: Sequence[tuple[int, Id]], of_model: Sequence[Category], of_data: Sequence[Category], whose: str, of: str
) -> list[str]:
    """A sentence on the classes that only one side has."""
    labels, ids = {label for label, _ in pairs}, {found for _, found in pairs}
    ours = [c.name for c in of_model if c.label not in labels and c.name not in ("", "N/A")]  # which fills gaps
    theirs = [c.name for c in of_data if c.id not in ids]
    parts = []
    if ours:
        parts.append(f"of the {whose} {some([f'{name!r}' for name in ours])}")
    if theirs:
        listed = some([f"{name!r}{hint_at(name, ours)}" for name in theirs])
        parts.append(f"of the {of} {listed}, which nothing can find")
    return [f"not matched: {'; '.join(parts)}"] if parts else []


def _none_in_common(of_model: Sequence[Category], of_data: Sequence[Category], whose: str, by_ids: bool) -> str:
    def shown(categories: Sequence[Category]) -> str:
        more = ", ..." if len(categories) > 5 else ""
        return ", ".join(str(c.id) if by_ids or not c.name else c.name for c in categories[:5]) + more

    hints = [hint for c in of_data if (hint := hint_at(c.name, [m.name for m in of_model if m.name]))]
    text = f"the classes of the {whose} ({shown(of_model)}) and of the data set ({shown(of_data)}) have none in common"
    text += f", matched by {'id' if by_ids else 'name'}"
    if not by_ids and hints:
        return text + hints[0]
    other = "names" if by_ids else "ids"
    has_other = not by_ids or any(c.name for c in of_model) or len(of_model) == COCO_HEADS
    return f"{text}; --match {other} goes by {other} instead" if whose == "checkpoint" and has_other else text


def some(items: Sequence[str]) -> str:
    """A list to print: all of a few; of many the first, and how many there are."""
    more = f", ... ({len(items)} in all)" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
