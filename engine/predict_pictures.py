"""What a detector finds in picture files: drawn, and listed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.pictures import read_each
from engine.predictor import Predictor
from util.errors import UserError
from util.files import unused_name
from util.fonts import legend_of


def predict_pictures(
    predictor: Predictor, pictures: Sequence[Path], output: Path, threshold: float, top_k: int
) -> list[dict[str, Any]]:
    """Draw what is found in every picture that can be read.

    Args:
        predictor: a detector.
        pictures: files; those that cannot be read, or that the detector does not take, are named on stderr and left
            out.
        output: folder for the drawn ones, which is there.
        threshold: smallest score to keep.
        top_k: most detections for each picture.

    Returns:
        For each picture its drawn file, itself, its width and height, and its detections, as plain data.

    Raises:
        UserError: the pictures lie in `output`, and could be overwritten; or nothing could be looked at.
    """
    if any(path.resolve().parent == output.resolve() for path in pictures):
        raise UserError(f"output '{output}' is the folder of the pictures, which the drawn ones could overwrite")
    listed: list[dict[str, Any]] = []
    names = {"classes"}  # --save_txt writes labels/classes.txt beside a text of each drawn picture
    refused: UserError | None = None
    for path, picture in read_each(pictures, "predict"):
        try:
            found = predictor(picture, threshold, top_k)
        except UserError as error:  # too small for an exported file, say: no reason to lose the others
            refused = error
            print(f"left out: '{path}': {error}", file=sys.stderr)
            continue
        drawn = unused_name(path.stem, names) + ".png"
        predictor.draw(picture, found).save(output / drawn)
        size = {"width": picture.width, "height": picture.height}
        listed.append({"drawn": drawn, "file": str(path), **size, "detections": predictor.describe(found)})
    if refused and not listed:
        raise refused
    found_labels = {d["label"] for entry in listed for d in entry["detections"]}
    if legend := legend_of({k: name for k, name in predictor.names.items() if k in found_labels}):
        print(legend, file=sys.stderr)
    return listed
