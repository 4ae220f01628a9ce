"""What `main.py visualize` does: one detector or two, and every picture that can be read."""

from collections.abc import Sequence
from pathlib import Path

from analysis.looks.explorer.explore import short_name
from analysis.looks.look import Look
from datasets.pictures import read_each
from engine.predict import load_predictor, untrained_predictor
from engine.predictor import Predictor
from util.command_config import VisualizeConfig
from util.files import make_folder, unused_name


def predictors_of(options: VisualizeConfig) -> tuple[Predictor, Predictor | None]:
    """The detector to look at, with random weights if no checkpoint is given, and the one to compare it with.

    Raises:
        UserError: a checkpoint that cannot be read, or no such device.
    """
    chosen = options.device, options.size, options.weights
    if options.checkpoint:
        predictor = load_predictor(options.checkpoint, *chosen, classes=options.classes)
    else:
        predictor = untrained_predictor(options.model, options.num_classes, options.device, options.size)
    other = load_predictor(options.compare, *chosen, classes=options.classes) if options.compare else None
    return predictor, other


def look_at_pictures(
    predictor: Predictor,
    pictures: Sequence[Path],
    output: Path,
    config: VisualizeConfig,
    other: Predictor | None = None,
) -> int:
    """Draw the maps of every picture that can be read. Several pictures each get their own folder in `output`.

    Args:
        predictor: the detector.
        pictures: files.
        output: an existing folder.
        config: what to choose and what to draw.
        other: the detector beside it in the explorer.

    Returns:
        The number of pictures that were read.
    """
    used: set[str] = set()
    for path, picture in read_each(pictures, "visualize"):
        look, name = Look(predictor, picture, config), unused_name(path.stem, used)
        folder = output if len(pictures) == 1 else make_folder(output / name, "output")
        written = look.draw(folder)
        if config.explore:
            titles = [short_name(config.checkpoint or "untrained"), short_name(config.compare or "")]
            look.explore(folder / "explorer.html", path.name, titles, other)
            written.append("explorer.html")
        print(f"{path}: {', '.join(written)} in {folder}", *look.remarks, sep="\n  ")
    if len(used) < len(pictures):
        print(f"{len(used)} of {len(pictures)} pictures could be read")
    return len(used)
