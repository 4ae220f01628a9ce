"""Deformable DETR and DINO of mmdetection, 2.x and 3.x."""

import re
from collections.abc import Mapping
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
from models.convert.dino_parts import ENCODING, LABELS, dino_options
from models.convert.mmcv_layers import layers_below
from models.convert.resnets import resnet_config
from util.config import IMAGENET_MEAN, IMAGENET_STD
from util.errors import UserError

TRANSFORMER = r"(?:bbox_head\.transformer\.)?"  # of 2.x; 3.x has its parts at the top
MMDET_NAMES: Table = [
    (r"backbone\.", "backbone.body."),
    (r"neck\.convs\.(\d+)\.conv\.", r"neck.levels.\1.0."),
    (r"neck\.convs\.(\d+)\.gn\.", r"neck.levels.\1.1."),
    (r"neck\.extra_convs\.(\d+)\.conv\.", r"extra.\1.0."),
    (r"neck\.extra_convs\.(\d+)\.gn\.", r"extra.\1.1."),
    *layers_below(TRANSFORMER),
    (TRANSFORMER + r"decoder\.ref_point_head\.", "transformer.query_position.mlp."),
    (TRANSFORMER + r"decoder\.norm\.", "transformer.decoder_norm."),
    (TRANSFORMER + r"level_embeds?", "position.level_embed"),
    (TRANSFORMER + r"reference_points(?:_fc)?\.", "queries.reference_points."),
    (TRANSFORMER + r"(?:enc_output|memory_trans_fc)\.", "queries.memory_proj."),
    (TRANSFORMER + r"(?:enc_output_norm|memory_trans_norm)\.", "queries.memory_norm."),
    (TRANSFORMER + r"pos_trans(?:_fc)?\.", "queries.query_proj."),
    (TRANSFORMER + r"pos_trans_norm\.", "queries.query_norm."),
    (r"(?:bbox_head\.)?(?:transformer\.)?query_embed(?:ding)?\.weight", "query_embedding"),
    (r"(?:dn_query_generator|bbox_head)\.label_embedding\.weight", LABELS),
    (r"bbox_head\.cls_branches\.(\d+)\.", r"heads.\1.classify."),
    (r"bbox_head\.reg_branches\.(\d+)\.0\.", r"heads.\1.regress.layers.0."),
    (r"bbox_head\.reg_branches\.(\d+)\.2\.", r"heads.\1.regress.layers.1."),
    (r"bbox_head\.reg_branches\.(\d+)\.4\.", r"heads.\1.regress.layers.2."),
]


def from_mmdet(content: dict[str, Any], path: str) -> Converted:
    """Read a checkpoint of mmdetection's Deformable DETR (all variants) or DINO, with a ResNet.

    Sizes are read from the tensors, class names from `meta`. Taken as published are 8 heads, dropout 0.1 (DINO: 0), for
    DINO the position encoding, and ImageNet's mean and deviation of RGB. Files hold the moving average, if there was
    one, in the place of the weights.

    Args:
        content: the file, `{"model": tensors, "meta": ...}`.
        path: named in errors.

    Raises:
        UserError: keys or shapes of another detector, or a configuration in `meta` that cannot be built.
    """
    tensors = plain_tensors(content["model"])
    said = content.get("meta")
    meta: dict[str, Any] = said if isinstance(said, dict) else {}
    _check_configuration(str(meta.get("cfg") or meta.get("config") or ""), path)
    if not any(re.match(r"(?:bbox_head\.transformer\.)?decoder\.layers\.", key) for key in tensors):
        raise UserError(f"'{path}' is of mmdetection, but no Deformable DETR or DINO: it has no decoder")
    state = rename(tensors, MMDET_NAMES, path, "Deformable DETR or DINO of mmdetection")
    state = move_level(state, "extra", count(state, "neck.levels"))
    fill_biases(state)
    dino = "transformer.decoder_norm.weight" in state
    if "query_embedding" in state:
        state["queries.content" if dino else "queries.both"] = state.pop("query_embedding")
    options = {**dino_options(state), **ENCODING} if dino else {}
    found = Found(
        refinement=own_heads(state),
        dropout=0.0 if dino else 0.1,
        names=_names(meta),
        contiguous=True,
        options=options,
    )
    return convert(state, resnet_config(state, path), path, found)


def _names(meta: Mapping[str, Any]) -> dict[int, str]:
    """Class names by label: `CLASSES` of 2.x, `dataset_meta` of 3.x."""
    dataset = meta.get("dataset_meta")
    sources = [meta, dataset] if isinstance(dataset, dict) else [meta]
    for source in sources:
        for key in ("CLASSES", "classes"):
            if isinstance(source.get(key), (list, tuple)):
                return {i: str(name) for i, name in enumerate(source[key])}
    return {}


def _check_configuration(text: str, path: str) -> None:
    """Refuse what the configuration says, which files keep as text, and no tensor tells.

    Raises:
        UserError: a backbone in Caffe's style, or pixels that are normalised by other numbers than ImageNet's.
    """
    if re.search(r"style\s*=\s*['\"]caffe", text):
        raise UserError(
            f"'{path}' has a ResNet in Caffe's style, whose strides differ; only style='pytorch' can be loaded"
        )
    for option, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        for numbers in re.findall(rf"\b{option}\s*=\s*\[([^\]]*)\]", text):
            found = [float(number) for number in re.findall(r"[\d.]+", numbers)]
            if len(found) != 3 or any(abs(a / 255 - b) > 1e-3 for a, b in zip(found, usual)):
                raise UserError(
                    f"'{path}' normalises pixels by {option} [{numbers}]; only ImageNet's of RGB can be loaded"
                )
