"""Backbone weights from a local file."""

from pathlib import Path

from torch import nn

from util.checkpoint import load_plain, state_dict_in
from util.errors import UserError


def load_backbone_weights(body: nn.Module, path: str) -> None:
    """Load a local file into a timm feature extractor; every parameter and statistic must be in it.

    What predicts the offsets of deformable convolutions (`*.sampling_offsets.*`) may be missing, and stays as it is.

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
            f"model.backbone.weights: '{path}' is not of this backbone: {len(missing)} of {len(wanted)} tensors are "
            f"missing and {len(misfit)} differ in shape (the first: {(missing + misfit)[0]})"
        )
    body.load_state_dict({key: by_plain_name[plain(key)] for key in wanted}, strict=False)
