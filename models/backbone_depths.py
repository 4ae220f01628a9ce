"""How far below the top of a backbone each parameter is, by timm's own grouping of its layers."""

from typing import Any

import timm
import torch
from timm.models import group_parameters

from models.backbone import Backbone
from util.errors import UserError


def parameter_depths(backbone: Backbone) -> dict[str, int]:
    """Depth of every parameter of timm's network, by name: 0 in its last layer, 1 in the layer before, and so on.

    A vision transformer's layers are its blocks, and below them what makes its tokens. Of other networks they are what
    timm says, such as the blocks of a ConvNeXt. What predicts the offsets of a deformable convolution is in its layer.

    Raises:
        UserError: timm says nothing about this network.
    """
    try:
        with torch.device("meta"):  # a feature extractor lacks the grouping; the whole network costs nothing here
            whole: Any = timm.create_model(backbone.name)
        layers = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
    except (AttributeError, NotImplementedError, RuntimeError):
        raise UserError(
            f"train.layer_decay: timm does not group the layers of '{backbone.name}'; leave it out, or take another "
            "backbone"
        ) from None
    by_name = {_plain(name): layer for name, layer in layers.items()}
    found = {}
    for name, _ in backbone.body.named_parameters():
        of_convolution = name.replace(".sampling_offsets.bias", ".weight").replace(".sampling_offsets.", ".")
        found[name] = by_name[_plain(of_convolution.removeprefix("model."))]
    top = max(found.values())
    return {name: top - layer for name, layer in found.items()}


def _plain(name: str) -> str:
    """Feature extractors flatten `stages.0` to `stages_0`."""
    return name.replace(".", "_")
