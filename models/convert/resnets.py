"""The ResNets of foreign checkpoints, by the names and numbers of their tensors."""

import re
from collections.abc import Mapping

from torch import Tensor

from models.convert.common import count
from util.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from util.errors import UserError

RESNET = r"(?:conv1|bn1|layer[1-4]\.\d+\.(?:conv[123]|bn[123]|downsample\.[01]))\.(?:weight|bias|running_\w+)"


def resnet_config(
    state: Mapping[str, Tensor], path: str, dilated: bool = False, name: str | None = None
) -> BackboneConfig:
    """The `model.backbone` section of a ResNet of torchvision's kind, for images normalised as ImageNet's.

    Args:
        state: tensors by our names.
        path: named in errors.
        dilated: whether the last stage is (DC5).
        name: what the file says that it is, in timm's or torchvision's names; None goes by the tensors.

    Raises:
        UserError: a backbone whose names are not those of a ResNet.
    """
    for key in state if name is None else ():
        if key.startswith("backbone.body.") and not re.fullmatch(r"backbone\.body\." + RESNET, key):
            raise UserError(
                f"'{path}' has a backbone that is no plain ResNet ('{key.removeprefix('backbone.body.')}'); "
                "names of others are not translated to timm's"
            )
    return BackboneConfig(
        name=torchvision_name(name or resnet_of(state)),
        weights="none",
        output_stride=16 if dilated else None,
        mean=list(IMAGENET_MEAN),
        std=list(IMAGENET_STD),
    )


def resnet_of(state: Mapping[str, Tensor]) -> str:
    """ResNet by the number and kind of blocks in its third layer; 50 is what was published."""
    blocks = count(state, "backbone.body.layer3")
    if blocks and "backbone.body.layer3.0.conv3.weight" not in state:
        return {2: "resnet18"}.get(blocks, "resnet34")
    return {6: "resnet50", 23: "resnet101", 36: "resnet152"}.get(blocks, "resnet50")


def torchvision_name(name: str) -> str:
    """timm's name of a backbone with the weights from which the original repository starts: torchvision's first."""
    known = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
    return f"{name}.tv_in1k" if name in known else name
