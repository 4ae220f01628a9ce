"""What DeformableDetrForObjectDetection of transformers cannot say, refused by name."""

from typing import Any

from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from models.backbone import Backbone
from util.config import ModelConfig
from util.errors import UserError

NORM_GROUPS, NORM_EPSILON = 32, 1e-5  # written in transformers' code

# Options of the model section of which that architecture has one value alone.
ONLY: dict[str, Any] = {
    "encoder": "deformable",
    "cross_level": True,
    "norm_groups": NORM_GROUPS,
    "ignore_padding": False,
    "query_selection": "position",
    "proposal_head": "objectness",
    "proposal_nms": None,
    "position_temperature": 10000.0,
    "position_offset": -0.5,
    "box_epsilon": 1e-5,
    "distribution_boxes": False,
    "memory_fusion": False,
    "relation": False,
    "decoder_query_position": "learned",
    "decoder_norm": False,
    "reference": "point",
}


def check_sayable(config: ModelConfig) -> None:
    """Refuse what transformers' architecture cannot say.

    Raises:
        UserError: names the option and the values that can be exported.
    """

    def refuse(option: str, value: object, why: str) -> None:
        raise UserError(f"model.{option} {value} cannot be exported to transformers: its architecture {why}")

    for option, only in ONLY.items():
        if (value := getattr(config, option)) != only:
            refuse(option, _said(value), f"has only {_said(only)}")
    if config.backbone.dcn != "none":
        refuse("backbone.dcn", config.backbone.dcn, "has no deformable convolutions in the backbone")
    for option in ("encoder_points", "decoder_points"):
        points = getattr(config, option) or config.num_points
        if isinstance(points, list) and len(set(points)) > 1:
            refuse(
                option if getattr(config, option) else "num_points", points, "has one number of points for all levels"
            )
    heads = [getattr(config, option) or config.num_heads for option in ("self_attention_heads", "decoder_heads")]
    if heads[0] != heads[1]:
        refuse("self_attention_heads", heads[0], f"has as many as in the decoder's other attention ({heads[1]})")
    if config.two_stage and not config.refinement:
        refuse("two_stage", "true", "has two stages only with model.refinement true")


def _said(value: object) -> str:
    """A value as the command line has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def check_backbone(backbone: Backbone) -> None:
    """Refuse networks that transformers would run in another way than we do.

    Raises:
        UserError: names the backbone and what would differ.
    """

    def refuse(why: str) -> None:
        raise UserError(f"model.backbone.name {backbone.name} cannot be exported to transformers, which {why}")

    if backbone.pyramid is not None:
        refuse("makes no pyramid of one map")
    if backbone.size_multiple > 1:
        refuse("builds it for one image size alone")
    if backbone.channels_last_output:
        refuse("takes its maps as if their channels came first")
    for module in backbone.body.modules():
        if isinstance(module, BatchNormAct2d | FrozenBatchNormAct2d):
            refuse("drops the activations that its batch norms have inside")
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d) and module.eps != NORM_EPSILON:
            refuse(f"computes its batch norms with epsilon {NORM_EPSILON} in the place of {module.eps}")
