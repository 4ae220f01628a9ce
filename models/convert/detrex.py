"""Deformable DETR, H-Deformable-DETR and DINO of detrex."""

from typing import Any

from models.convert.common import (
    Converted,
    Found,
    Table,
    convert,
    count,
    fill_biases,
    move_level,
    own_heads,
    plain_tensors,
    rename,
)
from models.convert.dino_parts import EPSILON, LABELS, dino_options
from models.convert.hdetr import hybrid_options
from models.convert.mmcv_layers import layers_below
from models.convert.resnets import resnet_config

BLOCK = r"backbone\.res([2-5])\.(\d+)\."
DETREX_NAMES: Table = [
    (r"backbone\.stem\.conv1\.norm\.", "backbone.body.bn1."),
    (r"backbone\.stem\.conv1\.", "backbone.body.conv1."),
    (BLOCK + r"conv([123])\.norm\.", r"backbone.body.res\1.\2.bn\3."),
    (BLOCK + r"conv([123])\.", r"backbone.body.res\1.\2.conv\3."),
    (BLOCK + r"shortcut\.norm\.", r"backbone.body.res\1.\2.downsample.1."),
    (BLOCK + r"shortcut\.", r"backbone.body.res\1.\2.downsample.0."),
    (r"backbone\.", "backbone.body."),  # another backbone, refused by its name
    (r"neck\.convs\.(\d+)\.conv\.", r"neck.levels.\1.0."),
    (r"neck\.convs\.(\d+)\.norm\.", r"neck.levels.\1.1."),
    (r"neck\.extra_convs\.(\d+)\.conv\.", r"extra.\1.0."),
    (r"neck\.extra_convs\.(\d+)\.norm\.", r"extra.\1.1."),
    (r"transformer\.level_embeds?", "position.level_embed"),
    (r"(?:transformer\.decoder\.)?class_embed\.(\d+)\.", r"heads.\1.classify."),
    (r"(?:transformer\.decoder\.)?bbox_embed\.(\d+)\.", r"heads.\1.regress."),
    *layers_below(r"transformer\."),
    (r"transformer\.decoder\.ref_point_head\.", "transformer.query_position.mlp."),
    (r"transformer\.decoder\.norm\.", "transformer.decoder_norm."),
    (r"transformer\.reference_points\.", "queries.reference_points."),
    (r"transformer\.enc_output\.", "queries.memory_proj."),
    (r"transformer\.enc_output_norm\.", "queries.memory_norm."),
    (r"transformer\.pos_trans\.", "queries.query_proj."),
    (r"transformer\.pos_trans_norm\.", "queries.query_norm."),
    (r"transformer\.tgt_embed\.weight", "queries.content"),
    (r"query_embedding\.weight", "query_embedding"),
    (r"label_enc\.weight", LABELS),
]


def from_detrex(content: dict[str, Any], path: str) -> Converted:
    """Read a checkpoint of detrex's Deformable DETR, H-Deformable-DETR or DINO, with a ResNet.

    Sizes are read from the tensors. Taken as published are 8 heads, no dropout, 1500 of an H-DETR's queries for
    one-to-many matching, and ImageNet's mean and deviation of RGB.

    Args:
        content: the file, `{"model": tensors, ...}`.
        path: named in errors.

    Raises:
        UserError: keys or shapes of another detector.
    """
    state = rename(
        plain_tensors(content["model"]), DETREX_NAMES, path, "Deformable DETR, H-Deformable-DETR or DINO of detrex"
    )
    state = {_of_layer(key): tensor for key, tensor in state.items()}
    state = move_level(state, "extra", count(state, "neck.levels"))
    fill_biases(state)
    if "transformer.decoder_norm.weight" in state:
        options = dino_options(state)
    else:
        queries = state.pop("query_embedding", None)
        options = hybrid_options(state, queries, None) | {"box_epsilon": EPSILON}
    found = Found(refinement=own_heads(state), dropout=0.0, contiguous=True, options=options)
    return convert(state, resnet_config(state, path), path, found)


def _of_layer(key: str) -> str:
    """detectron2 counts a ResNet's stages from the stem, torchvision from the first after it."""
    for stage in range(2, 6):
        key = key.replace(f"backbone.body.res{stage}.", f"backbone.body.layer{stage - 1}.")
    return key
