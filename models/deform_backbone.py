"""Deformable convolutions in place of a backbone's ordinary ones."""

from collections.abc import Sequence
from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from ops import DeformConv2d, ModulatedDeformConv2d
from util.errors import UserError


def deform_stages(
    body: Any,
    version: str,
    stages: Sequence[int] = (3, 4, 5),
    offset_groups: int = 1,
    initial_modulation: float = 0.5,
) -> None:
    """Replace every 3x3 convolution in the blocks of some stages of a ResNet or ResNeXt, in place.

    Weights stay as they are and keep their names; offsets are predicted by new layers, `*.sampling_offsets`, that start
    at zero (arXiv 1811.11168, section 3.1, which takes stages 3 to 5; 1703.06211 took three layers of stage 5).

    Args:
        body: a timm `features_only` network of ResNet's blocks, with any groups, strides and dilations.
        version: `v1`, or `v2` (modulated).
        stages: which, counted as papers do: 1 is the stem, 2 to 5 the four stages of blocks (conv2_x to conv5_x).
        offset_groups: see `DeformConv2d`.
        initial_modulation: initial modulation of v2, see `ModulatedDeformConv2d`.

    Raises:
        UserError: not a ResNet, or no such stage, or channels that the offset groups do not divide.
    """
    if not stage_convolutions(body, range(2, 6)):
        raise UserError(
            "model.backbone.dcn replaces the 3x3 convolutions of a ResNet or ResNeXt; this backbone has no blocks of "
            "that kind, take another model.backbone.name, or --model.backbone.dcn none"
        )
    if not stages or not set(stages) <= {2, 3, 4, 5}:
        raise UserError(f"model.backbone.dcn_stages is {list(stages)}; it must list some of [2, 3, 4, 5]")
    for name, _, layer in stage_convolutions(body, stages):
        body.set_submodule(name, _deformed(layer, version, offset_groups, initial_modulation))


def stage_convolutions(body: Any, stages: Sequence[int]) -> list[tuple[str, int, nn.Conv2d]]:
    """Name, stage and layer of every 3x3 convolution in the blocks of some stages, in the order in which they run.

    The layers may be deformable or not; a network that is no ResNet has none. Arguments: see `deform_stages`.
    """
    found: list[tuple[str, int, nn.Conv2d]] = []
    if body.feature_info.module_name()[1:] != ["layer1", "layer2", "layer3", "layer4"]:
        return found  # others (HRNet) have such blocks in stages that mean something else
    for name, block in body.named_modules():
        stage = next((i for i in stages if name.startswith(f"layer{i - 1}.")), None)
        if stage is not None and isinstance(block, (BasicBlock, Bottleneck)):
            layers = [(child, m) for child, m in block.named_children() if isinstance(m, nn.Conv2d)]
            found += [(f"{name}.{child}", stage, m) for child, m in layers if m.kernel_size == (3, 3)]
    return found


def _deformed(layer: nn.Conv2d, version: str, offset_groups: int, initial_modulation: float) -> DeformConv2d:
    try:
        if version == "v1":
            return DeformConv2d.from_conv(layer, offset_groups)
        return ModulatedDeformConv2d.from_conv(layer, offset_groups, initial_modulation=initial_modulation)
    except ValueError as error:
        raise UserError(f"model.backbone.dcn: {error}") from None
