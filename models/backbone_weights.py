"""Backbone weights from a local file or from tensors in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from util.errors import UserError
from util.tensor_file import load_plain, state_dict_in


def load_backbone_weights(body: nn.Module, path: str) -> None:
    """Load a local file into a timm feature extractor; every parameter and statistic must be in it.

    Raises:
        UserError: no such file, not a file of tensors, or keys or shapes that do not fit.
    """
    if not Path(path).is_file():
        raise UserError(f"model.backbone.weights: no file '{path}'; give a path, 'timm' to download, or 'none'")
    try:
        found = load_plain(Path(path))
    except UserError as error:
        raise UserError(f"model.backbone.weights: {error}") from None
    found = state_dict_in(found)
    if not found:
        raise UserError(f"model.backbone.weights: '{path}' holds no state dict of tensors")

    fill_backbone(body, found, path)


def fill_backbone(body: nn.Module, found: Mapping[Any, Tensor], source: str) -> None:
    """Fill a timm feature extractor; tensors that it does not have, such as a classifier's, are left out.

    What predicts the offsets of deformable convolutions (`*.sampling_offsets.*`) may be missing, and stays as it is.

    Args:
        body: timm's network.
        found: tensors under timm's names; a prefix `module.` or `model.` does not matter.
        source: what errors name.

    Raises:
        UserError: keys or shapes that do not fit.
    """

    # timm flattens stages.0 to stages_0 when it extracts features; files have the dots.
    def plain(key: str) -> str:
        return key.removeprefix("model.").replace(".", "_")

    by_plain_name = {plain(key): tensor for key, tensor in found.items()}
    wanted = {key: tensor for key, tensor in body.state_dict().items() if not key.endswith("num_batches_tracked")}
    optional = [key for key in wanted if ".sampling_offsets." in key and plain(key) not in by_plain_name]
    wanted = {key: tensor for key, tensor in wanted.items() if key not in optional}
    missing = [key for key in wanted if plain(key) not in by_plain_name]
    misfit = [key for key in wanted if key not in missing and by_plain_name[plain(key)].shape != wanted[key].shape]
    if missing or misfit:
        raise UserError(
            f"model.backbone.weights: '{source}' is not of this backbone: {len(missing)} of {len(wanted)} tensors are "
            f"missing and {len(misfit)} differ in shape (the first: {(missing + misfit)[0]})"
        )
    body.load_state_dict({key: by_plain_name[plain(key)] for key in wanted}, strict=False)
