"""What transformers computes of a folder that was exported, beside the detector itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from datasets.pictures import list_pictures, read_each
from datasets.shapes import draw_scene
from engine.export.compare import MOST
from engine.export.source import Source
from engine.predict import make_predictor
from util.command_config import ExportConfig
from util.errors import UserError

TOLERANCE = 1e-4  # of logits, and of boxes in [0, 1]
LARGEST = 320  # mean side in pixels of those that are drawn; they are resized as all are


@dataclass
class Differences:
    """The largest ones so far, absolute.

    Attributes:
        logits: of class logits.
        boxes: of boxes in [0, 1].
        pixels: of normalised images, as each side prepares them, where both resize to one size.
        other_size: pictures that transformers resizes to another size.
    """

    logits: float = 0.0
    boxes: float = 0.0
    pixels: float = 0.0
    other_size: int = 0


def compare(source: Source, options: ExportConfig, folder: Path) -> str:
    """Run both on pictures, and say by how much they differ.

    Raises:
        UserError: transformers cannot load the folder, or differs by more than `TOLERANCE`.
    """
    with _quiet():
        try:
            theirs = transformers.AutoModelForObjectDetection.from_pretrained(folder, local_files_only=True).eval()
            processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"what was written is not kept: transformers {transformers.__version__} cannot load it: {reason}"
            ) from None
    pictures = pictures_to_compare(options.images, source.data.eval_size)
    found = differences(source, theirs, processor, pictures)
    said = (
        f"beside transformers {transformers.__version__} on {len(pictures)} picture{'s' * (len(pictures) > 1)}, "
        f"largest differences: {found.logits:.1e} of logits, {found.boxes:.1e} of boxes in [0, 1]"
    )
    if found.logits > TOLERANCE or found.boxes > TOLERANCE:
        raise UserError(f"what was written is another detector, and is not kept: {said}; {TOLERANCE} would be rounding")
    if found.other_size < len(pictures):
        said += f", {found.pixels:.1e} of normalised pixels"
    if found.other_size:
        said += (
            f"\n{found.other_size} of them meet the limit of the longer side ({source.data.max_size}), where "
            "transformers rounds sizes in another way; boxes differ a little there"
        )
    return said


@torch.inference_mode()
def differences(source: Source, theirs, processor, pictures: list[Image.Image]) -> Differences:
    """Compare both models on the same batches, and what both make of the pictures.

    Args:
        source: the detector.
        theirs: transformers' model.
        processor: transformers' image processor.
        pictures: RGB.
    """
    predictor = make_predictor(deepcopy(source.model), source.categories, source.data, "cpu", None)
    found = Differences()
    for picture in pictures:
        batch = predictor.batch_of([picture])
        ours = predictor.model(batch.images, batch.padding_mask)
        outputs = theirs(pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long())
        pairs = (ours.logits[-1], outputs.logits), (ours.boxes[-1], outputs.pred_boxes)
        logits, boxes = _of_ranked(*pairs) if source.model.queries.ranked else [_largest(*pair) for pair in pairs]
        found.logits, found.boxes = max(found.logits, logits), max(found.boxes, boxes)
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        if pixels.shape == batch.images.shape:
            found.pixels = max(found.pixels, _largest(pixels, batch.images))
        else:
            found.other_size += 1
    return found


def pictures_to_compare(pattern: str | None, size: int) -> list[Image.Image]:
    """The first pictures of a file, folder or pattern; or three of shapes, of about `size` pixels."""
    if pattern is not None:
        return [picture for _, picture in read_each(list_pictures(pattern)[:MOST], "compare")]
    rng = np.random.default_rng(0)
    return [draw_scene(rng, min(size, LARGEST))[0] for _ in range(3)]


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _of_ranked(logits: tuple[Tensor, Tensor], boxes: tuple[Tensor, Tensor]) -> list[float]:
    """The same for queries that stand in the order of their scores, where rounding exchanges neighbours.

    Each query is compared with the one on the other side that is most like it, and those of both sides are.
    """
    ours, theirs = (torch.cat([logits[i], boxes[i]], -1) for i in (0, 1))  # [1, Q, C + 4]
    distances = torch.cdist(ours.double(), theirs.double(), p=float("inf"))[0]
    found = [0.0, 0.0]
    for dim in (0, 1):
        like = distances.argmin(dim)
        a, b = (ours[0][like], theirs[0]) if dim == 0 else (ours[0], theirs[0][like])
        parts = _largest(a[:, :-4], b[:, :-4]), _largest(a[:, -4:], b[:, -4:])
        found = [max(pair) for pair in zip(found, parts)]
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and remarks of transformers while it loads, such as those on weights that are not tied."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
