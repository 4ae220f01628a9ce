"""DeformableDetrForObjectDetection of transformers 4 and 5."""

import re
from typing import Any

import torch
from torch import Tensor

from models.convert.common import Converted, Found, convert, rename
from util.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from util.errors import UserError

TRANSFORMERS_NAMES = [
    (r"backbone\.(?:conv_encoder\.)?model\.", "backbone.body."),
    (r"input_proj\.", "neck.levels."),
    (r"level_embed", "position.level_embed"),
    (r"(encoder|decoder)\.layers\.(\d+)\.(?:mlp\.)?fc([12])\.", r"transformer.\1.\2.ffn.linear\3."),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"transformer.encoder.\1.norm1."),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.", r"transformer.encoder.\1.norm2."),
    (r"decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.", r"transformer.decoder.\1.norm1."),
    (r"decoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"transformer.decoder.\1.norm2."),
    (r"decoder\.layers\.(\d+)\.final_layer_norm\.", r"transformer.decoder.\1.norm3."),
    (r"decoder\.layers\.(\d+)\.encoder_attn\.", r"transformer.decoder.\1.cross_attn."),
    (r"decoder\.layers\.(\d+)\.self_attn\.(?:out|o)_proj\.", r"transformer.decoder.\1.self_attn.out_proj."),
    (r"(encoder|decoder)\.layers\.(\d+)\.", r"transformer.\1.\2."),
    (r"reference_points\.", "queries.reference_points."),
    (r"enc_output\.", "queries.memory_proj."),
    (r"enc_output_norm\.", "queries.memory_norm."),
    (r"pos_trans\.", "queries.query_proj."),
    (r"pos_trans_norm\.", "queries.query_norm."),
    (r"query_position_embeddings\.weight", "queries.both"),
    (r"(?:decoder\.)?class_embed\.(\d+)\.", r"heads.\1.classify."),
    (r"(?:decoder\.)?bbox_embed\.(\d+)\.", r"heads.\1.regress."),
]


def from_transformers(
    tensors: dict[str, Tensor], config: dict[str, Any], preprocessor: dict[str, Any], path: str
) -> Converted:
    """Read a DeformableDetrForObjectDetection of transformers 4 or 5.

    Args:
        tensors: tensors by key.
        config: its config.json.
        preprocessor: its preprocessor_config.json; empty if there is none.
        path: named in errors.

    Raises:
        UserError: a backbone that is not timm's, an option we do not have, or keys or shapes that do not fit.
    """
    timm_backbone = config.get("backbone_config") or {}
    name = timm_backbone.get("backbone") or config.get("backbone")
    is_timm = timm_backbone.get("model_type", "timm_backbone") == "timm_backbone" and config.get(
        "use_timm_backbone", True
    )
    if not name or not is_timm:
        raise UserError(f"'{path}' has a backbone of transformers' own; only those with a timm backbone can be loaded")
    for option, supported in {"position_embedding_type": "sine", "activation_function": "relu"}.items():
        if config.get(option, supported) != supported:
            raise UserError(f"'{path}' has {option} '{config[option]}'; only '{supported}' can be loaded")
    mean, std = _normalisation(preprocessor, path)
    stride = timm_backbone.get("output_stride") or (16 if config.get("dilation") else None)
    plain = {k.removeprefix("model."): v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    names = {int(k): v for k, v in (config.get("id2label") or {}).items()}
    if all(v == f"LABEL_{k}" for k, v in names.items()):
        names = {}
    found = Found(
        refinement=bool(config.get("with_box_refine", False)),
        heads=int(config.get("decoder_attention_heads", 8)),
        encoder_heads=int(config.get("encoder_attention_heads", 8)),
        dropout=float(config.get("dropout", 0.1)),
        num_queries=int(
            config.get("two_stage_num_proposals", 300) if config.get("two_stage") else config.get("num_queries", 300)
        ),
        names=names,
    )
    backbone = BackboneConfig(name=name, weights="none", output_stride=stride, mean=mean, std=std)
    return convert(rename(_join_attention(plain), TRANSFORMERS_NAMES, path), backbone, path, found)


def _normalisation(preprocessor: dict[str, Any], path: str) -> tuple[list[float], list[float]]:
    """Mean and deviation that images are normalised by; those of ImageNet where nothing is said.

    Raises:
        UserError: pixels are not scaled to [0, 1] first, or the numbers are not three.
    """
    scale = preprocessor.get("rescale_factor", 1 / 255)
    if not preprocessor.get("do_rescale", True) or abs(scale * 255 - 1) > 1e-3:
        raise UserError(f"'{path}' does not scale pixels by 1/255 (preprocessor_config.json); only that can be loaded")
    if not preprocessor.get("do_normalize", True):
        return [0.0] * 3, [1.0] * 3
    mean, std = (
        [float(value) for value in preprocessor.get(key) or usual]
        for key, usual in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
    )
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise UserError(f"'{path}' has image_mean {mean} and image_std {std}; each must be three numbers, std above 0")
    return mean, std


def _join_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Separate query, key and value projections to the one that torch's MultiheadAttention has."""
    joined = {}
    for key, tensor in tensors.items():
        part = re.fullmatch(r"(decoder\.layers\.\d+\.self_attn)\.([qkv])_proj\.(weight|bias)", key)
        if part is None:
            joined[key] = tensor
        elif part.group(2) == "q":
            three = [f"{part.group(1)}.{letter}_proj.{part.group(3)}" for letter in "qkv"]
            if all(name in tensors for name in three):  # a missing one is named when loading
                joined[f"{part.group(1)}.in_proj_{part.group(3)}"] = torch.cat([tensors[name] for name in three])
    return joined
