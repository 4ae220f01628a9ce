"""To DeformableDetrForObjectDetection of transformers 4 and 5: the inverse of `models.convert.huggingface`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from models.backbone import Backbone
from models.detector import DeformableDETR
from util.config import ModelConfig
from util.errors import UserError
from util.remarks import say_once

NORM_GROUPS, NORM_EPSILON, HEAD = 32, 1e-5, "model.decoder."  # numbers that are written in transformers' code
UNUSED = "N/A"  # name of rows that stand for no class, as the published folders have it

# How transformers 4 names what our keys begin with; version 5 reads these names and writes them.
OUR_NAMES = [
    (r"backbone\.body\.", "model.backbone.conv_encoder.model."),
    (r"neck\.levels\.", "model.input_proj."),
    (r"position\.level_embed", "model.level_embed"),
    (r"transformer\.(encoder|decoder)\.(\d+)\.ffn\.linear([12])\.", r"model.\1.layers.\2.fc\3."),
    (r"transformer\.encoder\.(\d+)\.norm1\.", r"model.encoder.layers.\1.self_attn_layer_norm."),
    (r"transformer\.encoder\.(\d+)\.norm2\.", r"model.encoder.layers.\1.final_layer_norm."),
    (r"transformer\.decoder\.(\d+)\.norm1\.", r"model.decoder.layers.\1.encoder_attn_layer_norm."),
    (r"transformer\.decoder\.(\d+)\.norm2\.", r"model.decoder.layers.\1.self_attn_layer_norm."),
    (r"transformer\.decoder\.(\d+)\.norm3\.", r"model.decoder.layers.\1.final_layer_norm."),
    (r"transformer\.decoder\.(\d+)\.cross_attn\.", r"model.decoder.layers.\1.encoder_attn."),
    (r"transformer\.(encoder|decoder)\.(\d+)\.", r"model.\1.layers.\2."),
    (r"queries\.reference_points\.", "model.reference_points."),
    (r"queries\.memory_proj\.", "model.enc_output."),
    (r"queries\.memory_norm\.", "model.enc_output_norm."),
    (r"queries\.query_proj\.", "model.pos_trans."),
    (r"queries\.query_norm\.", "model.pos_trans_norm."),
    (r"heads\.(\d+)\.classify\.", r"class_embed.\1."),
    (r"heads\.(\d+)\.regress\.", r"bbox_embed.\1."),
]

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


@dataclass
class Folder:
    """What the files of a transformers folder say.

    Attributes:
        tensors: weights by transformers' keys, each with memory of its own.
        config: config.json.
        preprocessor: preprocessor_config.json.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    preprocessor: dict[str, Any]


def to_transformers(
    model: DeformableDETR, config: ModelConfig, names: Mapping[int, str], size: int, max_size: int
) -> Folder:
    """A detector as a DeformableDetrForObjectDetection.

    Args:
        model: the detector. Queries that exist for training alone are left out, which is said.
        config: the `model` section that it was built from.
        names: class names by label.
        size, max_size: shorter and longest side in pixels that pictures are resized to.

    Raises:
        UserError: names what transformers' architecture cannot say.
    """
    check_sayable(config)
    _check_backbone(model.backbone)
    section = {
        "architectures": ["DeformableDetrForObjectDetection"],
        "model_type": "deformable_detr",
        **_backbone_section(model.backbone, config),
        "num_queries": config.num_queries,
        "two_stage_num_proposals": config.num_queries,
        "two_stage": config.two_stage,
        "with_box_refine": config.refinement,
        "d_model": config.d_model,
        "num_feature_levels": config.num_levels,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_ffn_dim": config.ffn_dim,
        "decoder_ffn_dim": config.ffn_dim,
        "encoder_attention_heads": config.encoder_heads or config.num_heads,
        "decoder_attention_heads": config.decoder_heads or config.num_heads,
        "encoder_n_points": _points(config, "encoder_points"),
        "decoder_n_points": _points(config, "decoder_points"),
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "activation_dropout": config.dropout,
        "activation_function": "relu",
        "position_embedding_type": "sine",
        "id2label": {str(label): names.get(label) or UNUSED for label in range(model.num_classes)},
        "label2id": {name: label for label, name in names.items() if name},
        "dtype": "float32",
    }
    if not any(names.values()):
        section["id2label"] = {str(label): f"LABEL_{label}" for label in range(model.num_classes)}
        section["label2id"] = {name: int(label) for label, name in section["id2label"].items()}
    preprocessor = {
        "image_processor_type": "DeformableDetrImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": size, "longest_edge": max_size},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.backbone.mean),
        "image_std": list(model.backbone.std),
        "do_pad": True,
    }
    return Folder(_tensors(model, config), section, preprocessor)


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


def _check_backbone(backbone: Backbone) -> None:
    """Refuse networks that transformers would run in another way than we do."""

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


def _backbone_section(backbone: Backbone, config: ModelConfig) -> dict[str, Any]:
    """The part of config.json that names timm's network: as both versions read it, if possible; else as 5 does."""
    stride, maps = config.backbone.output_stride, len(backbone.body.feature_info.info)
    if maps == 5 and stride in (None, 16) and config.num_levels != 2:
        shared = {"use_timm_backbone": True, "backbone": backbone.name, "use_pretrained_backbone": False}
        return {**shared, "dilation": stride == 16}
    return {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": backbone.name,
            "num_channels": 3,
            "features_only": True,
            "use_pretrained_backbone": False,
            "out_indices": list(range(maps - backbone.num_features, maps)),
            **({"output_stride": stride} if stride else {}),
        }
    }


def _points(config: ModelConfig, option: str) -> int:
    """K, one number for all levels."""
    points = getattr(config, option) or config.num_points
    return points[0] if isinstance(points, list) else points


def _tensors(model: DeformableDETR, config: ModelConfig) -> dict[str, Tensor]:
    """Weights by transformers' keys: heads written out for each layer, and again where its decoder has them too."""
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    for_training = [k for k in state if k.startswith("training_queries.")]
    if for_training:
        groups = dict.fromkeys(k.split(".")[1] for k in for_training)
        say_once(f"left out what exists for training alone, for which transformers has no place: {', '.join(groups)}")
        state = {k: v for k, v in state.items() if k not in for_training}
    layers = config.decoder_layers
    if not config.refinement:
        shared = {k: state.pop(k) for k in list(state) if k.startswith("heads.0.")}
        state |= {k.replace("heads.0.", f"heads.{i}."): v for i in range(layers) for k, v in shared.items()}
    state = {k.replace("queries.head.", f"heads.{layers}."): v for k, v in state.items()}
    tensors: dict[str, Tensor] = {}
    if "queries.position" in state:
        both = state.pop("queries.position"), state.pop("queries.content")
        tensors["model.query_position_embeddings.weight"] = torch.cat(both, 1)
    for key, tensor in state.items():
        name = _renamed(key)
        joined = re.fullmatch(r"(.*self_attn\.)in_proj_(weight|bias)", name)
        if joined:
            parts = zip("qkv", tensor.chunk(3))
            tensors |= {f"{joined[1]}{letter}_proj.{joined[2]}": part for letter, part in parts}
            continue
        tensors[name] = tensor
        if (name.startswith("bbox_embed.") and config.refinement) or (
            name.startswith("class_embed.") and config.two_stage
        ):
            tensors[HEAD + name] = tensor
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def _renamed(key: str) -> str:
    for pattern, replacement in OUR_NAMES:
        if hit := re.match(pattern, key):
            return hit.expand(replacement) + key[hit.end() :]
    raise KeyError(f"no name in transformers for '{key}'")  # check_sayable lets through only what the table knows
