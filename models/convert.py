"""Weights from the paper's repository and from transformers, renamed to ours."""

import re
from argparse import Namespace
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from util.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig, ModelConfig
from util.errors import UserError

# (their pattern, our replacement), tried in order; the first that matches the start of a key renames it.
ORIGINAL_NAMES = [
    (r"backbone\.0\.body\.", "backbone.body."),
    (r"input_proj\.", "neck.levels."),
    (r"transformer\.level_embed", "position.level_embed"),
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(linear[12])\.", r"transformer.\1.\2.ffn.\3."),
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.", r"transformer.\1.\2."),
    (r"transformer\.reference_points\.", "queries.reference_points."),
    (r"transformer\.enc_output\.", "queries.memory_proj."),
    (r"transformer\.enc_output_norm\.", "queries.memory_norm."),
    (r"transformer\.pos_trans\.", "queries.query_proj."),
    (r"transformer\.pos_trans_norm\.", "queries.query_norm."),
    (r"query_embed\.weight", "queries.both"),
    (r"(?:transformer\.decoder\.)?class_embed\.(\d+)\.", r"heads.\1.classify."),
    (r"(?:transformer\.decoder\.)?bbox_embed\.(\d+)\.", r"heads.\1.regress."),
]
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


@dataclass
class Converted:
    """A foreign checkpoint in our terms: configuration, classes C, weights, and class names by label if it has any."""

    config: ModelConfig
    num_classes: int
    state: dict[str, Tensor]
    names: dict[int, str]


def from_original(content: dict[str, Any], path: str) -> Converted:
    """Read the layout of the paper's repository, all five variants.

    Sizes are read from the tensors; what they cannot tell (heads, dilation, refinement) from `args`, or else taken
    as published: 8 heads, no dilation, refinement where the heads of the layers differ.

    Args:
        content: the file, `{"model": tensors, "args": Namespace, ...}`.
        path: named in errors.

    Raises:
        UserError: keys or shapes that no variant has.
    """
    args = content.get("args")
    args = vars(args) if isinstance(args, Namespace) else args if isinstance(args, dict) else {}
    tensors = {
        k: v
        for k, v in content["model"].items()
        if not k.endswith(("total_params", "total_ops", "num_batches_tracked"))
    }
    state = _rename(tensors, ORIGINAL_NAMES, path)
    refinement = args.get("with_box_refine")
    if refinement is None:
        refinement = any(k.startswith("transformer.decoder.bbox_embed.") for k in tensors)
    backbone = BackboneConfig(
        name=_torchvision_name(str(args.get("backbone") or _resnet_of(state))),
        weights="none",
        output_stride=16 if args.get("dilation") else None,
        mean=list(IMAGENET_MEAN),
        std=list(IMAGENET_STD),
    )
    return _convert(
        state,
        backbone,
        path,
        refinement=bool(refinement),
        heads=int(args.get("nheads", 8)),
        encoder_heads=None,
        dropout=float(args.get("dropout", 0.1)),
        num_queries=int(args.get("num_queries", 300)),
        names={},
    )


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
    return _convert(
        _rename(_join_attention(plain), TRANSFORMERS_NAMES, path),
        BackboneConfig(name=name, weights="none", output_stride=stride, mean=mean, std=std),
        path,
        refinement=bool(config.get("with_box_refine", False)),
        heads=int(config.get("decoder_attention_heads", 8)),
        encoder_heads=int(config.get("encoder_attention_heads", 8)),
        dropout=float(config.get("dropout", 0.1)),
        num_queries=int(
            config.get("two_stage_num_proposals", 300) if config.get("two_stage") else config.get("num_queries", 300)
        ),
        names=names,
    )


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


def _convert(
    state: dict[str, Tensor],
    backbone: BackboneConfig,
    path: str,
    refinement: bool,
    heads: int,
    encoder_heads: int | None,
    dropout: float,
    num_queries: int,
    names: dict[int, str],
) -> Converted:
    """Sizes from the renamed tensors; heads and queries brought to our keys."""
    for key in ("position.level_embed", "neck.levels.0.0.weight", "transformer.decoder.0.ffn.linear1.weight"):
        if key not in state:
            raise UserError(f"'{path}' is no Deformable DETR: it has nothing that becomes '{key}'")
    encoder_layers, decoder_layers = (_count(state, f"transformer.{part}") for part in ("encoder", "decoder"))
    two_stage = "queries.memory_proj.weight" in state
    num_levels, d_model = state["position.level_embed"].shape
    if not any(k.startswith("heads.") for k in state):
        raise UserError(f"'{path}' is no Deformable DETR: it has no heads")

    # Files number the proposals' head after the last layer, and repeat a shared head for each layer or keep it once.
    if two_stage:
        last = f"heads.{decoder_layers}."
        state = {k.replace(last, "queries.head.") if k.startswith(last) else k: v for k, v in state.items()}
    for part in ("classify", "regress"):
        numbers = {int(k.split(".")[1]) for k in state if re.match(rf"heads\.\d+\.{part}\.", k)}
        shared = {k: v for k, v in state.items() if k.startswith(f"heads.{min(numbers, default=0)}.{part}.")}
        if len(numbers) == 1 or not refinement:
            for key, i in product(shared, range(decoder_layers if refinement else 1)):
                state[f"heads.{i}." + key.split(".", 2)[2]] = shared[key]
    if not refinement:
        state = {k: v for k, v in state.items() if not k.startswith("heads.") or k.startswith("heads.0.")}
    if "queries.both" in state:
        both = state.pop("queries.both")
        num_queries = both.shape[0]
        state["queries.position"], state["queries.content"] = both.split(d_model, dim=1)

    def points(part: str, attention: str, heads: int) -> int | None:
        weights = state.get(f"transformer.{part}.0.{attention}.attention_weights.weight")
        return None if weights is None else weights.shape[0] // (heads * num_levels)

    decoder_points = points("decoder", "cross_attn", heads)
    config = ModelConfig(
        backbone=backbone,
        d_model=d_model,
        num_levels=num_levels,
        num_queries=num_queries,
        num_heads=heads,
        encoder_heads=encoder_heads if encoder_heads != heads else None,
        num_points=decoder_points or 4,
        encoder_points=points("encoder", "self_attn", encoder_heads or heads),
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        ffn_dim=state["transformer.decoder.0.ffn.linear1.weight"].shape[0],
        dropout=dropout,
        refinement=refinement,
        two_stage=two_stage,
    )
    if config.encoder_points == config.num_points:
        config.encoder_points = None
    return Converted(config, state["heads.0.classify.weight"].shape[0], state, names)


def _rename(tensors: dict[str, Tensor], table: list[tuple[str, str]], path: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"'{path}': '{key}' is no tensor")
        for pattern, replacement in table:
            renamed, hits = re.subn("^" + pattern, replacement, key)
            if hits:
                state.setdefault(renamed, tensor)  # aliases of one head agree
                break
        else:
            raise UserError(f"'{path}' is no Deformable DETR that is known: unexpected key '{key}'")
    if "position.level_embed" in state:
        state["position.level_embed"] = state["position.level_embed"].flatten(0, -2)
    return state


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


def _count(state: dict[str, Tensor], prefix: str) -> int:
    return 1 + max((int(m.group(1)) for k in state if (m := re.match(re.escape(prefix) + r"\.(\d+)\.", k))), default=-1)


def _resnet_of(state: dict[str, Tensor]) -> str:
    """ResNet by the number of blocks in its third layer; 50 is what was published."""
    blocks = _count(state, "backbone.body.layer3")
    return {6: "resnet50", 23: "resnet101", 36: "resnet152"}.get(blocks, "resnet50")


def _torchvision_name(name: str) -> str:
    """timm's name of a backbone with the weights from which the original repository starts: torchvision's first."""
    return f"{name}.tv_in1k" if name in ("resnet50", "resnet101", "resnet152") else name
