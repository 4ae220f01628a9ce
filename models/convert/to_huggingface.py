"""To DeformableDetrForObjectDetection of transformers 4 and 5: the inverse of `models.convert.huggingface`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.backbone import Backbone
from models.convert.huggingface_limits import check_backbone, check_sayable
from models.detector import DeformableDETR
from util.config import ModelConfig
from util.remarks import say_once

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
    check_backbone(model.backbone)
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
        in_decoder = {"bbox_embed": config.refinement, "class_embed": config.two_stage}
        if in_decoder.get(name.split(".")[0]):
            tensors[f"model.decoder.{name}"] = tensor
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def _renamed(key: str) -> str:
    for pattern, replacement in OUR_NAMES:
        if hit := re.match(pattern, key):
            return hit.expand(replacement) + key[hit.end() :]
    raise KeyError(f"no name in transformers for '{key}'")  # a part that `check_sayable` ought to refuse
