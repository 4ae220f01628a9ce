"""Reading checkpoints: this project's, the original repository's and its kin's, and transformers' folders."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from util.checkpoint_write import FORMAT, kept_checkpoints
from util.config import IMAGENET_MEAN, IMAGENET_STD
from util.errors import UserError
from util.exported import check_no_export
from util.remarks import say_once
from util.tensor_file import load_plain, plain_keys, state_dict_in


@dataclass
class RawCheckpoint:
    """A file's content before anything is made of it.

    Attributes:
        format: `native`, `original` (a file of the paper's repository, or of one that is known after it) or
            `transformers`.
        content: the file's dictionary; for `transformers` the tensors by key.
        config: config.json of a `transformers` model.
        path: the file or folder that was read.
        preprocessor: preprocessor_config.json of a `transformers` model, if it has one: how it takes images.
    """

    format: str
    content: dict[str, Any]
    config: dict[str, Any]
    path: Path
    preprocessor: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | Path) -> RawCheckpoint:
    """Read a checkpoint of any known layout.

    Raises:
        UserError: missing, truncated, of an unknown layout, or holding anything but plain data (nothing of it runs).
    """
    path = Path(path)
    if path.is_dir():
        if (path / "config.json").is_file():
            return _read_transformers(path)
        newest = read_newest(path)
        if newest is None:
            raise UserError(f"folder '{path}' holds neither last.pth of a run nor config.json of a transformers model")
        return newest
    if not path.is_file():
        raise UserError(f"no checkpoint '{path}'")
    check_no_export(path)
    content = load_plain(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        parts = {"model": dict, "config": dict, "categories": list, "epoch": int}
        wrong = [k for k, kind in parts.items() if not isinstance(content.get(k), kind) or content[k] in ({}, [])]
        wrong += [f"config.{k}" for k in ("model", "data") if not wrong and k not in content["config"]]
        if wrong:
            raise UserError(f"checkpoint '{path}' has no '{wrong[0]}' that can be used; it was not written by training")
        _fill_normalisation(content["config"]["model"])
        states = {k: plain_keys(content[k]) for k in ("model", "ema", "branch") if isinstance(content.get(k), dict)}
        return RawCheckpoint("native", content | states, {}, path)
    tensors = state_dict_in(content)
    if any(key.startswith(("transformer.", "bbox_head.")) for key in tensors):
        averages = (content.get(key) for key in ("ema_model", "ema_state"))  # DINO's, detrex's
        averaged = next((plain_keys(state) for state in averages if isinstance(state, dict) and state), {})
        return RawCheckpoint("original", {**content, "model": tensors, "ema": averaged}, {}, path)
    raise UserError(
        f"'{path}' is no detector checkpoint: neither this project's, nor the original repository's "
        "({'model': {'transformer.*': ...}}) or one like it, nor a transformers directory"
    )


def _fill_normalisation(model: dict[str, Any]) -> None:
    """Older checkpoints do not say what images were normalised by; it was always ImageNet's."""
    if isinstance(model.get("backbone"), dict) and "mean" not in model["backbone"]:
        model["backbone"] |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}


def read_newest(folder: str | Path) -> RawCheckpoint | None:
    """The newest whole checkpoint of a run's folder; says on stderr which ones are not. None if there is none at all.

    Raises:
        UserError: there are some, but none is whole.
    """
    kept = kept_checkpoints(folder)
    for i, path in enumerate(kept):
        try:
            return read_checkpoint(path)
        except UserError as error:
            if i + 1 == len(kept):
                raise
            say_once(f"{error}; going back to '{kept[i + 1].name}'")
    return None


def _read_transformers(path: Path) -> RawCheckpoint:
    config = _read_object(path / "config.json")
    if config.get("model_type") != "deformable_detr":
        kind = config.get("model_type")
        raise UserError(f"'{path}' holds a transformers model of type '{kind}'; only deformable_detr can be loaded")
    tensors: dict[str, Any] = {}
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(f"'{path}' has a config.json but no *.safetensors or pytorch_model.bin")
    for file in files:
        loaded = load_plain(file)
        if not isinstance(loaded, dict):
            raise UserError(f"'{file}' holds no state dict")
        tensors |= loaded
    preprocessor = (
        _read_object(path / "preprocessor_config.json") if (path / "preprocessor_config.json").is_file() else {}
    )
    return RawCheckpoint("transformers", tensors, config, path, preprocessor)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is not JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def image_sizes(raw: RawCheckpoint) -> dict[str, int]:
    """`eval_size` and `max_size` in pixels that a foreign checkpoint asks for; empty where it does not say."""
    size = raw.preprocessor.get("size")
    if not isinstance(size, dict):
        return {}
    ours = {"eval_size": size.get("shortest_edge"), "max_size": size.get("longest_edge")}
    return {option: value for option, value in ours.items() if isinstance(value, int) and value > 0}
