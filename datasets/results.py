"""Detections in COCO result format, read by their types and matched with the truth that they are scored against."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from datasets.annotations import Annotations, Id
from datasets.ids import counterparts, remark_on, renamed, some_ids
from datasets.values import as_box, as_float, is_id, typed
from util.errors import UserError

KEYS = ("image_id", "category_id", "bbox", "score")


@dataclass
class Results:
    """Detections that can be scored, as entries and in columns.

    Attributes:
        entries: `[{"image_id", "category_id", "bbox": [x, y, w, h], "score"}, ...]`, with ids as the truth has them;
            those of classes that the truth does not list are still there.
        image_ids, category_ids: image and class of each.
        boxes: `[N, 4]`, float64, [x, y, width, height] in pixels.
        scores: `[N]`, float64.
        remarks: a sentence on each kind of detection that was left out or read as something else than it says.
    """

    entries: list[dict]
    image_ids: list[Id]
    category_ids: list[Id]
    boxes: np.ndarray
    scores: np.ndarray
    remarks: list[str] = field(default_factory=list)


def sound_results(results: object, annotations: Annotations, source: str | None = None) -> Results:
    """Detections of a file as they can be scored; what cannot is left out, and named in the remarks.

    Args:
        results: the content of the file, which is not changed.
        annotations: the truth.
        source: the file, if they are of one, for errors and remarks.

    Raises:
        UserError: it is no list of COCO results, a result lacks a key or names an unknown image, or none has a known
            category.
    """
    of = f"'{source}': " if source else ""
    if not isinstance(results, list):
        raise UserError(f"{of}detections must be a list of COCO results, [{{{', '.join(KEYS)}}}, ...]{_shape(results)}")
    remarks: list[str] = []
    read = results if _is_plain(results) else [_read(result, f"{of}detection {i}") for i, result in enumerate(results)]
    columns = {key: [r[key] for r in read] for key in KEYS}
    for key, listed in (("image_id", annotations.images), ("category_id", annotations.categories)):
        found = counterparts(columns[key], (entry.id for entry in listed))
        if found:
            remarks.append(remark_on(found, f"{of}{key}", f"'{annotations.source}'"))
            columns[key] = renamed(columns[key], found)
            read = [r | {key: value} for r, value in zip(read, columns[key])]
    if source and not read:
        remarks.append(f"{of}there are no detections in it")
    images = {image.id: None for image in annotations.images}
    if not images.keys() >= set(columns["image_id"]):
        i, image = next((i, image) for i, image in enumerate(columns["image_id"]) if image not in images)
        raise UserError(
            f"{of}detection {i} is of image {typed(image)}, which '{annotations.source}' "
            f"does not list; the ids of its images are {some_ids(images)}"
        )
    remarks += _remarks_on_categories(columns["category_id"], annotations, of)
    boxes = np.fromiter(chain.from_iterable(columns["bbox"]), np.float64, 4 * len(read)).reshape(-1, 4)
    scores = np.array(columns["score"], dtype=np.float64)
    finite = np.isfinite(boxes).all(1) & np.isfinite(scores)
    # A box of no width is a wrong detection, as pycocotools counts it; what has no meaning at all is left out.
    sound = finite & (boxes[:, 2:] >= 0).all(1)
    if not sound.all():
        counts = {"not finite": (~finite).sum(), "of negative size": (finite & ~sound).sum()}
        kinds = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
        remarks.append(f"{of}{(~sound).sum()} of {len(read)} detections are left out of the scores ({kinds})")
        kept = np.flatnonzero(sound).tolist()
        read = [read[i] for i in kept]
        columns = {key: [column[i] for i in kept] for key, column in columns.items()}
    return Results(read, columns["image_id"], columns["category_id"], boxes[sound], scores[sound], remarks)


def _is_plain(results: list) -> bool:
    """Whether every value has the type that it mostly has, so that none needs to be read by itself."""
    try:
        image_ids, category_ids, boxes, scores = ([r[key] for r in results] for key in KEYS)
        numbers = {*map(type, chain.from_iterable(boxes)), *map(type, scores)}
        ids = {*map(type, image_ids), *map(type, category_ids)}
        whole = {*map(type, results)} <= {dict} and {*map(type, boxes)} <= {list} and {*map(len, boxes)} <= {4}
        # A whole number too large for a float is read as infinite elsewhere.
        huge = int in numbers and any(abs(v) > 2**1000 for v in chain(scores, *boxes) if type(v) is int)
        return whole and numbers <= {int, float} and ids <= {int, str} and not huge
    except (KeyError, TypeError, IndexError):
        return False


def _shape(content: object) -> str:
    """What a file holds in place of the list, for its error."""
    if not isinstance(content, dict):
        return ""
    keys = ", ".join(f"'{key}'" for key in list(content)[:8])
    lists = [key for key, value in content.items() if isinstance(value, list)]
    scored = [k for k in lists if content[k] and isinstance(content[k][0], dict) and "score" in content[k][0]]
    if scored:
        return f"; it is an object whose '{scored[0]}' may be that list: save it alone"
    kind = "; this may be an annotation file" if "annotations" in lists else ""
    return f"; it is an object with {keys or 'no keys'}{kind}"


def _read(result: object, where: str) -> dict:
    """One result by its types.

    Raises:
        UserError: it lacks a key, or a value is of another type.
    """
    missing = [key for key in KEYS if not isinstance(result, dict) or key not in result]
    if missing or not isinstance(result, dict):
        raise UserError(f"{where} has no '{missing[0]}'; each needs image_id, category_id, bbox and score")
    for key in ("image_id", "category_id"):
        if not is_id(result[key]):
            raise UserError(f"{where} has the {key} {typed(result[key])}; it must be a whole number, or text")
    bbox, score = as_box(result["bbox"]), as_float(result["score"])
    if bbox is None or score is None:
        raise UserError(f"{where} must have a bbox of four numbers and a numeric score")
    return {"image_id": result["image_id"], "category_id": result["category_id"], "bbox": bbox, "score": score}


def _remarks_on_categories(category_ids: Sequence[Id], annotations: Annotations, of: str) -> list[str]:
    """What to say of detections whose class, one of `category_ids`, the truth does not list.

    Raises:
        UserError: no class of any detection is listed.
    """
    counts: Counter[Id] = Counter(category_ids)
    listed = {category.id: category.name for category in annotations.categories}
    unlisted = [category for category in counts if category not in listed]
    if not unlisted:
        return []
    known = [c.id for c in annotations.categories if c.id not in counts]
    if len(unlisted) == len(counts):
        named = [c.id for c in annotations.categories if c.name == unlisted[0]]
        hint = f"; '{unlisted[0]}' is a name: give its id, {named[0]}" if named else ""
        raise UserError(
            f"{of}no detection has a category of '{annotations.source}': the first has {typed(unlisted[0])}, "
            f"the file lists {some_ids(listed)}{hint}"
        )
    some = ", ".join(map(repr, unlisted[:10])) + (", ..." if len(unlisted) > 10 else "")
    number = sum(counts[category] for category in unlisted)
    text = f"{of}{number} detections have categories that the file does not list: [{some}]"
    if known:
        names = ", ".join(f"{listed[c]} ({c})" for c in known[:10]) + (", ..." if len(known) > 10 else "")
        text += f"; not matched: {names}"
    first = min((c for c in listed if not isinstance(c, str)), default=None)
    if first is not None and set(unlisted) == {first - 1}:
        text += "; if the detections count classes from 0, add 1 to each"
    return [text]
