"""The detector that is exported, and what belongs to it."""

from dataclasses import asdict, dataclass

from datasets.categories import Category
from engine.predict import categories_of, named
from models.detector import DeformableDETR
from models.load import load_detector
from util.command_config import ExportConfig
from util.config import EvalDataConfig, ModelConfig
from util.exported import Exported
from util.options import from_dict


@dataclass
class Source:
    """What a format starts from.

    Attributes:
        checkpoint: path of the checkpoint, as it was given.
        model: the detector, in evaluation mode, on the CPU.
        config: the model section that it was built from.
        categories: its classes.
        data: the data section of its training, with the sizes that images are brought to.
    """

    checkpoint: str
    model: DeformableDETR
    config: ModelConfig
    categories: list[Category]
    data: EvalDataConfig

    def describe(self, options: ExportConfig, smallest_side: int, fixed: tuple[int, int] | None) -> Exported:
        """What a file with this detector says of itself; arguments as of `Exported`."""
        return Exported(
            [asdict(category) for category in self.categories],
            self.data.eval_size,
            self.data.max_size,
            options.top_k,
            options.threshold,
            smallest_side,
            fixed,
        )


def read_source(checkpoint: str, options: ExportConfig) -> Source:
    """Read a checkpoint of any known layout.

    Raises:
        UserError: no such checkpoint or weights, or a file of classes that names none of them.
    """
    loaded = load_detector(checkpoint, options.weights)
    categories, data = categories_of(loaded), from_dict(EvalDataConfig, loaded.data)
    if options.size:
        data.eval_size = options.size
    return Source(checkpoint, loaded.model, loaded.config, named(categories, checkpoint, options.classes), data)
