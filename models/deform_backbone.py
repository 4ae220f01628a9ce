"""Deformable convolutions in place of a backbone's ordinary ones."""

from collections.abc import Sequence

from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from ops import DeformConv2d, ModulatedDeformConv2d
from util.errors import UserError


def deform_stages(
    body: nn.Module,
    version: str,
    stages: Sequence[int] = (3, 4, 5),
    offset_groups: int = 1,
    initial_modulation: float = 0.5,
) -> None:
    """Replace every 3x3 convolution in the blocks of some stages of a ResNet or ResNeXt, in place.

    Weights stay as they are and keep their names; offsets are predicted by new layers, `*.sampling_offsets`, that start
    at zero (arXiv 1703.06211, section 3.1, for the choice of layers; 1811.11168, section 3.1, for stages 3 to 5).

    Args:
        body: a timm `features_only` network of ResNet's blocks, with any groups, strides and dilations.
        version: `v1`, or `v2` (modulated).
        stages: which, counted as papers do: 1 is the stem, 2 to 5 the four stages of blocks (conv2_x to conv5_x).
        offset_groups: see `DeformConv2d`.
        initial_modulation: of v2, see `ModulatedDeformConv2d`.

    Raises:
        UserError: not a ResNet, or no such stage, or channels that the offset groups do not divide.
    """
    if not any(isinstance(m, (BasicBlock, Bottleneck)) for m in body.modules()):
        raise UserError(
            "model.backbone.dcn replaces the 3x3 convolutions of a ResNet or ResNeXt; this backbone has no blocks of "
            "that kind, take another model.backbone.name, or --model.backbone.dcn none"
        )
    names = [name.replace(".", "_") for name in body.feature_info.module_name()]
    if not stages or not set(stages) <= set(range(2, len(names) + 1)):
        raise UserError(
            f"model.backbone.dcn_stages is {list(stages)}; it must list some of {list(range(2, len(names) + 1))}"
        )
    for stage in sorted(set(stages)):
        # As timm names it when it extracts features: with underscores for dots.
        within = [m for name, m in body.named_modules() if name.replace(".", "_").startswith(names[stage - 1])]
        blocks = [m for m in within if isinstance(m, (BasicBlock, Bottleneck))]
        for block in blocks:
            for name, layer in list(block.named_children()):
                if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                    setattr(block, name, _deformed(layer, version, offset_groups, initial_modulation))


def _deformed(layer: nn.Conv2d, version: str, offset_groups: int, initial_modulation: float) -> DeformConv2d:
    try:
        if version == "v1":
            return DeformConv2d.from_conv(layer, offset_groups)
        return ModulatedDeformConv2d.from_conv(layer, offset_groups, initial_modulation=initial_modulation)
    except ValueError as error:
        raise UserError(f"model.backbone.dcn: {error}") from None
