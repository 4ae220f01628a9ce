"""Reading and writing checkpoints: atomically, and never running code from a file."""

import argparse
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from util import cli
from util.config import IMAGENET_MEAN, IMAGENET_STD, Config
from util.errors import UserError
from util.exported import check_no_export, is_exported, read_exported
from util.files import matches
from util.remarks import say_once


class Ignored:
    """Stands in a file for an object that is not read, whatever it is made of."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass


FORMAT = "deformable-detr/1"
# What mmengine keeps of a training in its checkpoints, beside the weights. Nothing of it is needed, or made.
_OF_NUMPY = ("multiarray._reconstruct", "multiarray.scalar")
IGNORED = [
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "builtins.getattr",  # by which methods are written down
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in _OF_NUMPY),
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool", "UInt8")),
]
KEPT = r"last(?:\.(\d+))?\.pth"  # a run's newest checkpoints; the larger the number, the older


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


def save_checkpoint(path: str | Path, content: dict[str, Any], also: str | Path | None = None) -> None:
    """Write to a temporary file beside `path`, then rename: a kill or a full disk leaves the old file whole.

    Args:
        path: where.
        content: what; no file is written twice.
        also: a second name for the same file, in the same folder, which it gets before the first.

    Raises:
        UserError: it cannot be written; names the reason.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    second = None if also is None else Path(also).with_name(Path(also).name + ".tmp")
    try:
        partial.unlink(missing_ok=True)  # of a kill; `also` may be another name of it, and is not to be written into
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        if also is not None and second is not None:
            _link(partial, second)
            second.replace(also)
        partial.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter when the disk is full
        for unfinished in (partial, second):
            if unfinished is not None:
                unfinished.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise UserError(f"cannot write checkpoint '{path}': {reason}; those before are untouched") from None


def _link(file: Path, name: Path) -> None:
    """Another name for a file that nobody writes into any more; a copy where the file system has no hard links."""
    name.unlink(missing_ok=True)  # of a kill
    try:
        name.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, name)
        with name.open("rb") as copy:
            os.fsync(copy.fileno())


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def kept_checkpoints(folder: str | Path) -> list[Path]:
    """The run's checkpoints in a folder, newest first: last.pth, last.1.pth, ...

    Before them newest.pth, which is only there if a kill came before it was given its place.
    """
    fresh = Path(folder) / "newest.pth"
    numbered = {int(m[1] or 0): p for p in Path(folder).glob("last*.pth") if (m := re.fullmatch(KEPT, p.name))}
    return [fresh] * fresh.is_file() + [numbered[i] for i in sorted(numbered)]


def save_newest(folder: str | Path, content: dict[str, Any], keep: int = 1, also: str | Path | None = None) -> None:
    """Write last.pth; the one before becomes last.1.pth, and so on, until `keep` are there.

    `also` is a second name for it, as in `save_checkpoint`. A kill at any moment leaves whole files: the new one is
    renamed last, when it is on the disk.
    """
    last = Path(folder) / "last.pth"
    fresh = last.with_name("newest.pth")
    save_checkpoint(fresh, content, also)
    kept = kept_checkpoints(folder)[1:]
    for path in kept[max(keep - 1, 0) :]:
        if path != last:
            path.unlink()
    for i in reversed(range(len(kept[: keep - 1]))):
        kept[i].replace(last.with_name(f"last.{i + 1}.pth"))
    fresh.replace(last)
    _sync_folder(last.parent)


def read_newest(folder: str | Path) -> "RawCheckpoint | None":
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


def state_dict_in(content: Any) -> dict[str, Any]:
    """The tensors of a file by their plain keys: in a wrapper (`model`, `state_dict`), or the file itself; or none."""
    for wrapper in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            return plain_keys(content[wrapper])
    bare = content if isinstance(content, dict) else {}
    return plain_keys({key: value for key, value in bare.items() if isinstance(value, torch.Tensor)})


def plain_keys(state: dict[Any, Any]) -> dict[str, Any]:
    """A state dict without what wrappers of a model (DataParallel, DDP, torch.compile) put before every key."""
    plain = {str(key): value for key, value in state.items()}
    wrapper = r"(?:module|_orig_mod|model)\."
    while plain and all(re.match(wrapper, key) for key in plain):
        shorter = {re.sub(f"^{wrapper}", "", key): value for key, value in plain.items()}
        if len(shorter) < len(plain):  # two parts were told apart by it
            break
        plain = shorter
    return plain


def load_plain(path: Path) -> Any:
    """Read tensors and plain containers, and the original repository's argparse.Namespace, from .pth or .safetensors.

    Objects of `IGNORED` kinds are passed over: something empty stands in their place.

    Raises:
        UserError: truncated, no such file at all, or holding anything else (of which nothing runs).
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace, *((Ignored, name) for name in IGNORED)]):
            # Mapped, not read: only what is used comes from the disk (files older than torch 1.6 are no zip archives).
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except PermissionError:
        raise UserError(f"'{path}' may not be read; check its permissions") from None
    except Exception as error:  # torch raises many types for broken files; every one means the file is unusable
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise UserError(
                f"'{path}' was refused: it wants to run '{foreign.group(1)}', and a checkpoint may hold only data"
            ) from None
        raise UserError(
            f"'{path}' is no file of tensors, or not a whole one; it may be truncated, or hold more than data"
        ) from None


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


@cache
def code_version() -> str:
    """The commit that is checked out, with `+` if files differ from it; `unknown` outside a checkout.

    Asked once a process: files that are edited during a run are not what it runs.
    """
    here = Path(__file__).resolve().parent.parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.stdout.strip() or "unknown"


def saved_config(path: str | Path, keep_paths: bool = True) -> dict[str, Any]:
    """The configuration that a checkpoint was trained with; of other layouts only the image sizes, if they say them.

    Args:
        path: path of the checkpoint.
        keep_paths: whether the data's explicit paths stay in; without them `data.root` decides.
    """
    raw = read_checkpoint(path)
    if raw.format != "native":
        return {"data": image_sizes(raw)}
    config = raw.content["config"]
    paths = ("train_images", "train_annotations", "val_images", "val_annotations")
    data = {k: v for k, v in config["data"].items() if keep_paths or k not in paths}
    return {**config, "data": data, "train": {**config["train"], "fast_dev_run": False}}


def load_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Fill the whole model.

    Raises:
        UserError: keys or shapes differ; names the first.
    """
    missing, misfit, surplus = _compare(model, state)
    if missing or misfit or surplus:
        first = (missing + misfit + surplus)[0]
        raise UserError(
            f"the weights in '{path}' do not fit the model: {len(missing)} missing, {len(misfit)} of another shape, "
            f"{len(surplus)} unexpected (the first: {first})"
        )
    model.load_state_dict(state, strict=False)  # checked above; only batch counters may be absent


def load_matching_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> list[str]:
    """Fill what fits, for fine-tuning; the rest keeps its initial values.

    Returns:
        One line for each tensor of the model or the file that was not loaded, with the reason.

    Raises:
        UserError: nothing fits.
    """
    missing, misfit, surplus = _compare(model, state)
    fitting = {k: v for k, v in state.items() if k not in misfit and k not in surplus}
    if not fitting:
        raise UserError(f"nothing in '{path}' fits the model")
    own = model.state_dict()
    model.load_state_dict(fitting, strict=False)
    return (
        [f"{k}: {list(state[k].shape)} in the file, {list(own[k].shape)} here; starts anew" for k in misfit]
        + [f"{k}: not in the file; starts anew" for k in missing]
        + [f"{k}: only in the file; left out" for k in surplus]
    )


def _compare(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> tuple[list[str], list[str], list[str]]:
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    misfit = [k for k in own if k in state and state[k].shape != own[k].shape]
    surplus = [k for k in state if k not in own]
    return missing, misfit, surplus


def described_options(path: str, option: str, argv: Sequence[str], by_pattern: bool = False) -> dict[str, Any]:
    """What a checkpoint on the command line says: the whole run to resume it, its data section to evaluate it.

    Args:
        path: checkpoint, or run's folder; `auto` for the newest in the run's own folder.
        option: the option that names it, `train.resume` or `checkpoint`.
        argv: the other options; `data.root` wins over the checkpoint's explicit paths.
        by_pattern: whether `path` may be a pattern, of whose matches the first counts.
    """
    resume = option == "train.resume"
    if resume and path == "auto":
        path = cli.peek(argv, "train.output") or Config().train.output
        if not kept_checkpoints(path):
            return {}
    elif by_pattern:
        path = checkpoints_of(path)[0]
    if not resume and is_exported(path):
        said = read_exported(path)
        return {"data": {"eval_size": said.size, "max_size": said.max_size}}
    config = saved_config(path, keep_paths=not cli.peek(argv, "data.root"))
    return config if resume else {k: config[k] for k in config if k == "data"}


def checkpoints_of(pattern: str) -> list[str]:
    """A checkpoint, or those that a pattern matches, in order.

    Raises:
        UserError: none.
    """
    if Path(pattern).exists():
        return [pattern]
    found = [str(path) for path in matches(pattern)]
    if not found:
        raise UserError(f"no checkpoint, folder or pattern '{pattern}'")
    return found
