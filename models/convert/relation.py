"""Relation-DETR (xiuqhou/Relation-DETR, arXiv 2407.11699)."""

from typing import Any

from models.convert.common import (
    DROPPED,
    Converted,
    Found,
    Table,
    convert,
    fill_biases,
    plain_tensors,
    rename,
)
from models.convert.dino_parts import LABELS, dino_options
from models.convert.original import ORIGINAL_NAMES
from models.convert.resnets import resnet_config

HYBRID = "training_queries.hybrid.content"
CLASSES = "classes"  # a tensor that spells the names of the classes
RELATION_NAMES: Table = [
    (r"_classes_$", CLASSES),
    (r"transformer\.hybrid_(?:class|bbox)_head\.", DROPPED),  # theirs proposes again for one-to-many, ours once for all
    (r"backbone\.", "backbone.body."),
    (r"neck\.convs\.(\d+)\.(\d+)\.", r"neck.levels.\1.\2."),
    (r"transformer\.level_embeds?", "position.level_embed"),
    (r"transformer\.encoder\.memory_fusion\.0\.", "transformer.memory_fusion.linear."),
    (r"transformer\.encoder\.memory_fusion\.2\.", "transformer.memory_fusion.second."),
    (r"transformer\.encoder\.memory_fusion\.3\.", "transformer.memory_fusion.norm."),
    (r"transformer\.decoder\.ref_point_head\.", "transformer.query_position.mlp."),
    (r"transformer\.decoder\.query_scale\.", "transformer.query_position.scale."),
    (r"transformer\.decoder\.norm\.", "transformer.decoder_norm."),
    (r"transformer\.decoder\.position_relation_embedding\.pos_proj\.0\.", "transformer.relation.projection."),
    (r"transformer\.decoder\.class_head\.(\d+)\.", r"heads.\1.classify."),
    (r"transformer\.decoder\.bbox_head\.(\d+)\.", r"heads.\1.regress."),
    (r"transformer\.encoder_class_head\.", "queries.head.classify."),
    (r"transformer\.encoder_bbox_head\.", "queries.head.regress."),
    (r"transformer\.tgt_embed\.weight", "queries.content"),
    (r"transformer\.hybrid_tgt_embed\.weight", HYBRID),
    (r"denoising_generator\.label_encoder\.weight", LABELS),
    *[row for row in ORIGINAL_NAMES if row[0].startswith("transformer")],
]


def from_relation(content: dict[str, Any], path: str) -> Converted:
    """Read a checkpoint of Relation-DETR, with a ResNet.

    Sizes are read from the tensors. Taken as published are 8 heads and no dropout; the number of self-attention's heads
    is that of the relation's projection. Proposals for one-to-many matching have a head of their own there; it is left
    out, for ours come from the one head. That concerns training alone.

    Args:
        content: the file, `{"model": tensors, ...}`.
        path: named in errors.

    Raises:
        UserError: keys or shapes of another detector.
    """
    state = rename(plain_tensors(content["model"]), RELATION_NAMES, path, "Relation-DETR")
    spelt = state.pop(CLASSES, None)
    names = {} if spelt is None else {i: name for i, name in enumerate(spell(spelt.tolist())) if name != "none"}
    fill_biases(state)
    relation = "transformer.relation.projection.weight"
    state[relation] = state[relation].flatten(1)  # theirs is a convolution of one pixel
    options = dino_options(state) | {
        "relation": True,
        "memory_fusion": True,
        "fusion_layers": 2,
        "query_scale": True,
        "hybrid_queries": len(state[HYBRID]) if HYBRID in state else 0,
    }
    found = Found(refinement=True, heads=len(state[relation]), dropout=0.0, names=names, options=options)
    return convert(state, resnet_config(state, path), path, found)


def spell(codes: list[int]) -> list[str]:
    """Names that a list of characters' numbers spells, each of them followed by -1; `none` where an id has no class."""
    names, name = [], ""
    for code in codes:
        if code == -1:
            names.append(name)
            name = ""
        else:
            name += chr(code)
    return names
