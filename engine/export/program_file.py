"""What the formats that are one program a file share: a file for each size, kept only if it finds the same."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from engine.export.compare import compare, sample_batches
from engine.export.graph import ImagesToDetections
from engine.export.source import Source
from util.command_config import ExportConfig
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


def checked(path: Path, save: Callable, open_it: Callable, detector: ImagesToDetections, batches: list) -> str:
    """Write a file under another name, compare it with the detector, and give it its name if it is right.

    Args:
        path: the file; one that is there stays until the new one is right.
        save: writes to a path.
        open_it: from a path to what runs the file.
        detector: what the file was made of.
        batches: images to compare on.

    Returns:
        The difference, to print.

    Raises:
        UserError: it differs, or cannot be run.
    """
    unchecked = path.with_name(f"unchecked_{path.name}")
    try:
        save(str(unchecked))
        difference = compare(detector, open_it(unchecked), batches)
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)
    return difference.text()
