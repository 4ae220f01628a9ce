"""The detector that is exported, and what belongs to it."""

from dataclasses import dataclass

from datasets.categories import Category
from engine.predict import load_model, named
from models.detector import DeformableDETR
from util.config import EvalDataConfig, ExportConfig


@dataclass
class Source:
    """What a format starts from.

    Attributes:
        checkpoint: path of the checkpoint, as it was given.
        model: the detector, in evaluation mode, on the CPU.
        categories: its classes.
        data: the data section of its training, with the sizes that images are brought to.
    """

    checkpoint: str
    model: DeformableDETR
    categories: list[Category]
    data: EvalDataConfig


def read_source(checkpoint: str, options: ExportConfig) -> Source:
    """Read a checkpoint of any known layout.

    Raises:
        UserError: no such checkpoint or weights, or a file of classes that names none of them.
    """
    model, categories, data = load_model(checkpoint, options.weights)
    if options.size:
        data.eval_size = options.size
    return Source(checkpoint, model, named(categories, checkpoint, options.classes), data)
