"""What a checkpoint that the command line names says: the options that the others start from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.arguments import peek
from util.checkpoint import image_sizes, read_checkpoint
from util.checkpoint_write import kept_checkpoints
from util.config import Config
from util.errors import UserError
from util.exported import is_exported, read_exported
from util.files import matches


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
        path = peek(argv, "train.output") or Config().train.output
        if not kept_checkpoints(path):
            return {}
    elif by_pattern:
        path = checkpoints_of(path)[0]
    if not resume and is_exported(path):
        said = read_exported(path)
        return {"data": {"eval_size": said.size, "max_size": said.max_size}}
    config = saved_config(path, keep_paths=not peek(argv, "data.root"))
    return config if resume else {k: config[k] for k in config if k == "data"}


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
