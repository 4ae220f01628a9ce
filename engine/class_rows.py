"""Rows of class heads go with the names of classes: taken from another model, or brought into another order.

The head of the two-stage proposals is a class head where it scores classes (model.proposal_head). Otherwise it is only
built like one: its channel 0 means "an object" of any class, so its rows keep their places.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.annotations import Id
from datasets.categories import Category, assume_coco, foreign_categories
from datasets.matching import hint_at, same_names, some
from engine.state import TrainingState
from models.detector import DeformableDETR
from models.load import LoadedDetector
from util.errors import UserError
from util.weights import load_matching_weights

# Also of a mimicking branch, and of what denoising queries are made of.
CLASS_ROWS = (
    r"(heads\.\d+\.classify|classify_region|classify_crop|training_queries\.denoising\.label_embed)\.(weight|bias)"
)
OF_PROPOSALS = r"(training_queries\.groups\.sources\.\d+|queries)\.head\.classify\.(weight|bias)"  # class rows or not
IN_PLACE = r"queries\.(head\.classify\.(weight|bias)|position|content|anchors)"  # rows that have no names


def start_from(model: DeformableDETR, source: LoadedDetector, categories: Sequence[Category], path: str) -> list[str]:
    """Fill a model with the weights of another, as far as they fit.

    Class heads take the rows of the classes that both have, by name (of a checkpoint without names: by COCO's, or by
    id); the rows of other classes keep their initial values. Of learned queries as many are taken as there are.

    Args:
        model: filled in place.
        source: the other one.
        categories: the classes of `model`.
        path: of the other one, for remarks and errors.

    Returns:
        What was taken and what was not, in lines to print.

    Raises:
        UserError: nothing fits.
    """
    state, own = source.model.state_dict(), model.state_dict()
    rows, of_classes = rows_by_name(source, categories)
    fitting = [key for key in own if key in state and own[key].shape[1:] == state[key].shape[1:]]
    by_class = model.queries.by_class
    unlike = [key for key in fitting if re.fullmatch(OF_PROPOSALS, key) and by_class != source.model.queries.by_class]
    by_name = [key for key in fitting if has_class_rows(key, by_class) and key not in unlike]
    misplaced = [key for key in fitting if re.fullmatch(IN_PLACE, key) and own[key].shape != state[key].shape]
    in_place = [key for key in misplaced if key not in (*by_name, *unlike)]
    lines = [f"weights from {path}", *(of_classes if by_name else [])]
    for key in unlike:
        change = "objects in the file, classes here" if by_class else "classes in the file, objects here"
        lines.append(f"{key}: scores {change}; starts anew")
        state[key] = own[key]
    for key in in_place:
        here, there = len(own[key]), len(state[key])
        lines.append(f"{key}: the first {min(here, there)} of {there} rows in the file and {here} here")
        state[key] = _with_rows(own[key], state[key], {i: i for i in range(min(here, there))})
    for key in by_name:
        state[key] = _with_rows(own[key], state[key], rows)
    left_out = load_matching_weights(model, state, path)
    return [*lines, f"not loaded: {len(left_out)}", *left_out]


def has_class_rows(key: str, by_class: bool) -> bool:
    """Whether a tensor has a row for each class; `by_class`: whether the head of the proposals, if any, scores them."""
    return bool(re.fullmatch(f"{CLASS_ROWS}|{OF_PROPOSALS}" if by_class else CLASS_ROWS, key))


def rows_by_name(source: LoadedDetector, categories: Sequence[Category]) -> tuple[dict[int, int], list[str]]:
    """Which row of another model's class heads each label takes, and lines that say so."""
    kept = [Category(**c) for c in source.categories]
    plain = kept or foreign_categories(source.model.num_classes, source.names, source.contiguous)
    theirs = assume_coco(plain)
    named = any(c.name for c in theirs)
    label_of: dict[Id, int] = {c.id: c.label for c in theirs}
    if named:
        pairs = same_names(categories, theirs)
    else:
        pairs = [(c.label, c.id) for c in categories if c.id in label_of]
    rows = {label: label_of[of] for label, of in pairs}
    copied = [c.name for c in categories if c.label in rows]
    names = [c.name for c in theirs if c.name]
    new = [f"{c.name}{hint_at(c.name, names)}" for c in categories if c.label not in rows]
    how = "by name" if named else "by id, for the file keeps no names"
    if theirs is not plain and theirs != plain:
        how = "by name; the file keeps none, and COCO's are assumed"
    lines = [f"class rows copied {how}: {len(copied)}" + (f" ({some(copied)})" if copied else "")]
    lines.append(f"class rows that start anew: {len(new)}" + (f" ({some(new)})" if new else ""))
    # Labels that are no class on either side, as with COCO's ids, have rows that learned to be silent.
    taken, classes = {c.label for c in categories}, {c.label for c in theirs} if named else set()
    gaps = set(range(max(taken))) - taken - classes
    return rows | {gap: gap for gap in gaps if gap < source.model.num_classes}, lines


def _with_rows(here: Tensor, there: Tensor, rows: dict[int, int]) -> Tensor:
    """A copy of `here` `[C, ...]` with some rows of `there` `[C', ...]`, which `rows` gives by those of `here`."""
    mixed = here.clone()
    if rows:
        mixed[[*rows]] = there[[*rows.values()]].to(mixed)
    return mixed


def changed_order(saved: Sequence[dict[str, Any]], categories: Sequence[Category], path: Any) -> list[int] | None:
    """The row of a checkpoint's class heads that each label has now; None if all are where they were.

    Args:
        saved: the checkpoint's `categories`.
        categories: the classes of the data.
        path: of the checkpoint, for errors.

    Raises:
        UserError: the classes are not the same, or cannot be told apart.
    """
    before = {c["label"]: c["name"] for c in saved}
    now = {c.label: c.name for c in categories}
    if before == now:
        return None
    only_before = [name for name in before.values() if name not in now.values()]
    only_now = [name for name in now.values() if name not in before.values()]
    heads, count = 1 + max(before), 1 + max(now)
    doubled = len(set(now.values())) < len(now) or len(set(before.values())) < len(before)
    if only_before or only_now:
        parts = [f"only the checkpoint has {some(only_before)}"] if only_before else []
        parts += [f"only the data have {some([n + hint_at(n, only_before) for n in only_now])}"] if only_now else []
        what = "; ".join(parts)
    elif doubled or heads != count:
        what = f"labels reach to {heads - 1} in the checkpoint, to {count - 1} in the data"
        what = "several have one name, and their order differs" if doubled else what
    else:
        label_of = {name: label for label, name in before.items()}
        spare = iter(sorted(set(range(count)) - before.keys()))
        return [label_of[now[label]] if label in now else next(spare) for label in range(count)]
    raise UserError(
        f"train.resume: the classes of the training images are not those of '{path}': {what}; resume with the data it "
        "was trained on, or take its weights alone, --model.init_from"
    )


@torch.no_grad()
def reorder_classes(state: TrainingState, order: Sequence[int]) -> None:
    """Bring the class rows of a state into another order: weights, their average, and the optimizer's moments.

    Args:
        state: changed in place.
        order: the row that each label takes.
    """
    parts: list[nn.Module | None] = [state.model, state.branch, state.ema.module if state.ema else None]
    assert isinstance(state.model, DeformableDETR)
    index, by_class = torch.tensor(order, device=state.device), state.model.queries.by_class
    for part in parts:
        for name, parameter in part.named_parameters() if part is not None else ():
            if has_class_rows(name, by_class):
                parameter.copy_(parameter[index])
                for value in state.optimizer.state.get(parameter, {}).values():
                    if torch.is_tensor(value) and value.shape == parameter.shape:
                        value.copy_(value[index])
