"""Files of tensors: read without running code from them, and the state dict inside by plain keys."""

import argparse
import re
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from util.errors import UserError


class Ignored:
    """Stands in a file for an object that is not read, whatever it is made of."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass


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
