"""The paper's repository (fundamentalvision/Deformable-DETR), all five variants."""

from typing import Any

from models.convert.common import (
    Converted,
    Found,
    arguments,
    convert,
    plain_tensors,
    rename,
)
from models.convert.resnets import resnet_config

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


def from_original(content: dict[str, Any], path: str) -> Converted:
    """Read the layout of the paper's repository.

    Sizes are read from the tensors; what they cannot tell (heads, dilation, refinement) from `args`, or else taken
    as published: 8 heads, no dilation, refinement where the heads of the layers differ.

    Args:
        content: the file, `{"model": tensors, "args": Namespace, ...}`.
        path: named in errors.

    Raises:
        UserError: keys or shapes that no variant has.
    """
    args = arguments(content)
    tensors = plain_tensors(content["model"])
    state = rename(tensors, ORIGINAL_NAMES, path)
    refinement = args.get("with_box_refine")
    if refinement is None:
        refinement = any(k.startswith("transformer.decoder.bbox_embed.") for k in tensors)
    said = str(args["backbone"]) if args.get("backbone") else None
    backbone = resnet_config(state, path, dilated=bool(args.get("dilation")), name=said)
    found = Found(
        refinement=bool(refinement),
        heads=int(args.get("nheads", 8)),
        dropout=float(args.get("dropout", 0.1)),
        num_queries=int(args.get("num_queries", 300)),
    )
    return convert(state, backbone, path, found)
