"""Detections in COCO result format, read by their types and matched with the truth that they are scored against."""

from collections import Counter
from dataclasses import dataclass, field
from math import isfinite

from datasets.annotations import Annotations, Id
from datasets.ids import counterparts, remark_on, some_ids
from datasets.values import as_box, as_float, is_id, typed
from util.errors import UserError

KEYS = ("image_id", "category_id", "bbox", "score")


@dataclass
class Results:
    """Detections that can be scored.

    Attributes:
        entries: `[{"image_id", "category_id", "bbox": [x, y, w, h], "score"}, ...]`, with ids as the truth has them;
            those of classes that the truth does not list are still there.
        remarks: a sentence on each kind of detection that was left out or read as something else than it says.
    """

    entries: list[dict]
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
    read, remarks = [_read(result, f"{of}detection {i}") for i, result in enumerate(results)], []
    for key, listed in (("image_id", annotations.images), ("category_id", annotations.categories)):
        found = counterparts((r[key] for r in read), (entry.id for entry in listed))
        if found:
            remarks.append(remark_on(found, f"{of}{key}", f"'{annotations.source}'"))
            for result in read:
                result[key] = found.get(result[key], result[key])
    if source and not read:
        remarks.append(f"{of}there are no detections in it")
    images = {image.id: None for image in annotations.images}
    for i, result in enumerate(read):
        if result["image_id"] not in images:
            raise UserError(
                f"{of}detection {i} is of image {typed(result['image_id'])}, which '{annotations.source}' "
                f"does not list; the ids of its images are {some_ids(images)}"
            )
    remarks += _remarks_on_categories(read, annotations, of)
    finite = [all(map(isfinite, (*r["bbox"], r["score"]))) for r in read]
    # A box of no width is a wrong detection, as pycocotools counts it; what has no meaning at all is left out.
    sound = [f and min(r["bbox"][2:]) >= 0 for r, f in zip(read, finite)]
    if not all(sound):
        counts = {"not finite": finite.count(False), "of negative size": finite.count(True) - sound.count(True)}
        kinds = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
        remarks.append(f"{of}{sound.count(False)} of {len(read)} detections are left out of the scores ({kinds})")
    return Results([r for r, good in zip(read, sound) if good], remarks)


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


def _remarks_on_categories(results: list[dict], annotations: Annotations, of: str) -> list[str]:
    """What to say of detections whose class the truth does not list.

    Raises:
        UserError: no class of any detection is listed.
    """
    counts: Counter[Id] = Counter(r["category_id"] for r in results)
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
