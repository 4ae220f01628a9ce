"""Predictions in files: JSON, and what other tools read, YOLO text and COCO results with the images they are of."""

import json
import os
from pathlib import Path
from typing import Any

from datasets.annotations import CategoryEntry
from datasets.categories import distinct_names
from datasets.pictures import list_media
from engine.predictor import Predictor
from util.command import required
from util.command_config import PredictConfig
from util.errors import UserError
from util.files import make_folder

LABELS, RESULTS, IMAGES = "labels", "coco_results.json", "coco_images.json"


def media_of(options: PredictConfig) -> tuple[list[Path], list[Path]]:
    """The pictures and videos of `--input`.

    Raises:
        UserError: there are none, or videos alone, with options that only pictures have files for.
    """
    pictures, videos = list_media(required(options.input, "input"))
    asked = [name for name in ("save_txt", "save_conf", "save_coco") if getattr(options, name)]
    if asked and not pictures:
        raise UserError(
            f"--{asked[0]} is for pictures, and '{options.input}' holds videos alone, whose boxes are in NAME.jsonl; "
            "leave the option out"
        )
    return pictures, videos


def save_predictions(
    options: PredictConfig, listed: list[dict[str, Any]], given: int, predictor: Predictor, output: Path
) -> str:
    """Write `predictions.json`, and the other forms that are asked for, into the output folder; a line on it.

    Args:
        options: `save_txt`, `save_conf` and `save_coco` count.
        listed: the pictures and their detections, as `predict_pictures` returns them.
        given: pictures, those that could not be read among them.
        predictor: names the classes.
        output: the folder.
    """
    (output / "predictions.json").write_text(json.dumps(listed, indent=1))
    if options.save_txt or options.save_conf:
        folder = make_folder(output / LABELS, "output")
        for entry in listed:
            lines = yolo_lines(entry, options.save_conf)
            (folder / entry["drawn"]).with_suffix(".txt").write_text("".join(f"{line}\n" for line in lines))
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in _class_lines(listed, predictor)), "utf-8")
    if options.save_coco:
        results, images = to_coco_files(listed, predictor)
        (output / RESULTS).write_text(json.dumps(results))
        (output / IMAGES).write_text(json.dumps(images))
    boxes = sum(len(entry["detections"]) for entry in listed)
    count = len(listed) if len(listed) == given else f"{len(listed)} of {given}"
    return f"{boxes} boxes on {count} pictures; the drawn pictures and predictions.json are in {output}"


def yolo_lines(entry: dict[str, Any], scores: bool) -> list[str]:
    """A line `label x y width height [score]` for each detection: centre and size as shares of the picture's size.

    Boxes are cut to the picture, since readers of YOLO refuse shares below 0 and above 1. What is not on it is left
    out.
    """
    lines = []
    for found in entry["detections"]:
        width, height = entry["width"], entry["height"]
        x0, y0, x1, y1 = (min(max(v, 0), side) for v, side in zip(found["box_xyxy"], (width, height) * 2))
        if x1 > x0 and y1 > y0:
            shares = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            score = (found["score"],) if scores else ()
            lines.append(" ".join([str(found["label"]), *(f"{v:.9g}" for v in (*shares, *score))]))
    return lines


def to_coco_files(listed: list[dict[str, Any]], predictor: Predictor) -> tuple[list[dict], dict[str, list[dict]]]:
    """Detections in COCO result format, and the images and classes that their ids are of.

    Images are numbered from 1, and named from the folder that holds them all; classes have the ids of the data that the
    checkpoint was trained on.
    """
    labels = sorted({*predictor.names, *(d["label"] for entry in listed for d in entry["detections"])})
    id_of = {label: predictor.category_of.get(label, label) for label in labels}
    parents = {os.path.abspath(Path(entry["file"]).parent) for entry in listed}  # noqa: PTH100 (links stay)
    root = os.path.commonpath(parents) if parents else "."
    results, images = [], []
    for number, entry in enumerate(listed, 1):
        name = Path(os.path.relpath(entry["file"], root)).as_posix()
        images.append({"id": number, "file_name": name, "width": entry["width"], "height": entry["height"]})
        for found in entry["detections"]:
            x0, y0, x1, y1 = found["box_xyxy"]
            box = [x0, y0, x1 - x0, y1 - y0]
            results.append(
                {"image_id": number, "category_id": id_of[found["label"]], "bbox": box, "score": found["score"]}
            )
    categories = [{"id": id_of[label], "name": predictor.names.get(label, str(label))} for label in labels]
    return results, {"images": images, "categories": categories}


def _class_lines(listed: list[dict[str, Any]], predictor: Predictor) -> list[str]:
    """The names of classes in the order of their labels, all different; the number where a label has no name.

    Each is on one line, whose number is the label: line breaks within a name become spaces.
    """
    labels = [*predictor.names, *(d["label"] for entry in listed for d in entry["detections"])]
    all_labels = range(max(labels, default=-1) + 1)
    names = {label: " ".join(name.split()) for label, name in predictor.names.items()}
    return distinct_names(CategoryEntry(label, names.get(label) or str(label)) for label in all_labels)
