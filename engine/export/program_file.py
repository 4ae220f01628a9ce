"""What the formats that are one program a file share: a file for each size, kept only if it finds the same."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.export.compare import compare, sample_batches
from engine.export.graph import ImagesToDetections
from engine.export.source import Source
from engine.exported import Run
from util.command_config import ExportConfig
from util.errors import UserError
from util.exported import Exported
from util.profiling import image_size

Size = tuple[int, int] | None  # height and width in pixels; None for any
WriteOne = Callable[[ImagesToDetections, Path, Size, list[Tensor]], str]


def write_files(source: Source, options: ExportConfig, output: Path, suffix: str, write_one: WriteOne) -> str:
    """Write a file for images of any size, `model` and the suffix, or, for fixed sizes, `model_HEIGHTxWIDTH` each.

    Args:
        source: the detector.
        options: `fixed`, `images` and `top_k` count.
        output: the folder.
        suffix: of the files.
        write_one: from the detector, a path, a size and images to compare on; writes, and returns what there is to say.

    Raises:
        UserError: a size or images that cannot be read, or what `write_one` raises.
    """
    sizes: list[Size] = [image_size(text) for text in options.fixed]
    detector = ImagesToDetections(source.model, options.top_k).eval()
    said = []
    for size in sizes or [None]:
        path = output / (f"model_{size[0]}x{size[1]}{suffix}" if size else f"model{suffix}")
        batches = sample_batches(options.images, source.data, size)  # first, for a mistake to be told at once
        print(f"writing {path}; a large detector takes minutes", flush=True)
        said.append(write_one(detector, path, size, batches))
    return "\n".join(said)


def sizes_text(said: Exported) -> str:
    """Which images a file takes, to print."""
    if said.fixed:
        return f"any number of images of {said.fixed[0]}x{said.fixed[1]} pixels"
    return f"any number of images of any size from {said.smallest_side} pixels on"


def checked(
    path: Path,
    save: Callable[[str], None],
    open_it: Callable[[Path], Run],
    detector: Run,
    batches: list,
    said: Exported,
) -> str:
    """Write a file under another name, compare it with the detector, and give it its name if it is right.

    Args:
        path: the file; one that is there stays until the new one is right.
        save: writes to a path, with what `said` says at that time.
        open_it: from a path to what runs the file.
        detector: what the file was made of.
        batches: images to compare on.
        said: what the file says of itself; its smallest side becomes one that was tried.

    Returns:
        The difference, to print.

    Raises:
        UserError: it differs, or cannot be run.
    """
    unchecked = path.with_name(f"unchecked_{path.name}")
    try:
        save(str(unchecked))
        written = open_it(unchecked)
        difference = compare(detector, written, batches)
        least = said.smallest_side if said.fixed else smallest_square(detector, written, batches, said.smallest_side)
        if least > said.smallest_side:
            said.smallest_side = least
            save(str(unchecked))
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)
    return difference.text()


def smallest_square(detector: Run, written: Run, batches: list[Tensor], least: int) -> int:
    """The smallest side from which on a file gives for a square image what the detector gives, found by bisection.

    A graph has bounds of its two sides, and conditions that hang on both, which it does not list: where proposals are
    suppressed, it was traced with more tokens than queries, and is for images that have as many.

    Args:
        detector: what the file was made of.
        written: runs the file.
        batches: images `[B, 3, H, W]` in uint8 that the file is right for; the first is resized.
        least: the bound of both sides.

    Returns:
        `least` or more, at most the smallest side in `batches`.
    """

    def is_right(side: int) -> bool:
        square = F.interpolate(batches[0].float(), (side, side), mode="bilinear", antialias=True)
        try:
            compare(detector, written, [square.round().clamp(0, 255).to(torch.uint8)])
        except UserError:
            return False
        return True

    right = min(side for images in batches for side in images.shape[-2:])
    if right <= least or is_right(least):
        return least
    wrong = least
    while right - wrong > 1:
        middle = (wrong + right) // 2
        wrong, right = (wrong, middle) if is_right(middle) else (middle, right)
    return right
