"""The sweep that trains nothing: a checkpoint evaluated with less at inference."""

from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from models.detector import DeformableDETR
from models.reduce import reduce_model
from util.errors import UserError

OF_MODEL = tuple(
    f"model.{k}" for k in ("num_points", "encoder_points", "decoder_points", "decoder_layers", "num_queries")
)
OF_DATA = ("data.eval_size", "data.max_size")


def checkpoints_of(pattern: str) -> list[str]:
    """A checkpoint, or those that a pattern matches, in order.

    Raises:
        UserError: none.
    """
    if Path(pattern).exists():
        return [pattern]
    found = sorted(glob(pattern, recursive=True))  # noqa: PTH207 (an absolute pattern)
    if not found:
        raise UserError(f"no checkpoint, folder or pattern '{pattern}'")
    return found


def check_reducible(keys: Sequence[str]) -> None:
    """Refuse options that mean nothing for a model that is trained already."""
    for key in keys:
        if key not in OF_MODEL + OF_DATA:
            raise UserError(
                f"{key} cannot change without training; with eval_only there are {', '.join(OF_MODEL + OF_DATA)}"
            )


def reduced(model: DeformableDETR, values: Mapping[str, Any]) -> DeformableDETR:
    """A copy of the model, reduced as a variant's `model.` options say."""
    return reduce_model(model, **{k.removeprefix("model."): v for k, v in values.items() if k in OF_MODEL})


def identity(checkpoint: str, values: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation was made of, for its record: that file as it was, and what was changed."""
    file = Path(checkpoint)
    written = [p.stat().st_mtime_ns for p in ([file] if file.is_file() else sorted(file.glob("*")))]
    of_model = {k.removeprefix("model."): v for k, v in values.items() if k in OF_MODEL}
    return {
        "model": of_model,
        "data": dict(data),
        "train": {"checkpoint": str(file.resolve()), "written": max(written, default=0)},
    }
