"""From a checkpoint of any known layout to a model."""

from dataclasses import dataclass
from typing import Any

from models.convert import from_foreign, from_transformers
from models.detector import DeformableDETR
from models.from_config import build_model
from util.checkpoint import RawCheckpoint, image_sizes, read_checkpoint
from util.config import ModelConfig
from util.errors import UserError
from util.options import from_dict
from util.weights import load_weights


@dataclass
class LoadedDetector:
    """A model with its weights and what the checkpoint says of its classes.

    Attributes:
        model: the detector, in evaluation mode, on the CPU.
        config: the `model` section that it was built from.
        categories: `{"label", "id", "name"}` of each class; empty if the checkpoint does not say.
        names: class names by label, of a foreign checkpoint that has them.
        contiguous: whether a foreign checkpoint's labels count its classes from 0; else they are ids.
        data: the data section of the run that made it; empty if it does not say.
    """

    model: DeformableDETR
    config: ModelConfig
    categories: list[dict[str, Any]]
    names: dict[int, str]
    data: dict[str, Any]
    contiguous: bool = False


def load_detector(path: str, weights: str = "auto") -> LoadedDetector:
    """Build the model that a checkpoint describes and fill it.

    Args:
        path: this project's `.pth`, a run's folder, a `.pth` of a family that `models.convert` knows, or a transformers
            directory.
        weights: `ema` for the moving average, `model` for the weights themselves, `auto` for the former if it is there.

    Raises:
        UserError: no such weights, not a whole checkpoint of a known layout, or weights that are not finite.
    """
    raw = read_checkpoint(path)
    try:
        return _build(raw, weights)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"checkpoint '{raw.path}' cannot be made into a detector: a part of it has not the form that the "
            f"{raw.format} layout has ({type(error).__name__}: {error})"
        ) from None


def _build(raw: RawCheckpoint, weights: str) -> LoadedDetector:
    if weights == "ema" and not raw.content.get("ema"):
        raise UserError(
            f"checkpoint '{raw.path}' has no moving average of weights; it was trained without train.ema_decay"
        )
    contiguous = False
    if raw.format == "native":
        config = from_dict(ModelConfig, raw.content["config"]["model"])
        categories, state, names = raw.content["categories"], raw.content["model"], {}
        if weights != "model" and raw.content.get("ema"):
            state = raw.content["ema"]
        data = raw.content["config"]["data"]
        num_classes = 1 + max(c["label"] for c in categories)
    else:
        if raw.format == "transformers":
            converted = from_transformers(raw.content, raw.config, raw.preprocessor, str(raw.path))
        else:
            averaged = weights != "model" and raw.content.get("ema")
            content = {**raw.content, "model": raw.content["ema"]} if averaged else raw.content
            converted = from_foreign(content, str(raw.path))
        config, categories, state, names = converted.config, [], converted.state, converted.names
        num_classes, data, contiguous = converted.num_classes, image_sizes(raw), converted.contiguous
    model = build_model(config, num_classes, backbone_weights="none")
    load_weights(model, state, raw.path)
    _check_finite(model, str(raw.path))
    return LoadedDetector(model.eval(), config, categories, names, data, contiguous)


def _check_finite(model: DeformableDETR, path: str) -> None:
    """Refuse weights that are not numbers: such a detector finds nothing anywhere, without a word."""
    spoilt = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if spoilt:
        raise UserError(
            f"checkpoint '{path}' holds NaN or infinite weights in {len(spoilt)} tensors (the first: {spoilt[0]}); "
            "the run that wrote it may have diverged: take an earlier checkpoint, or another copy of the file"
        )
