"""DINO of its own repository (IDEA-Research/DINO, arXiv 2203.03605)."""

from typing import Any

from models.convert.common import (
    Converted,
    Found,
    Refusals,
    Table,
    arguments,
    check_arguments,
    convert,
    plain_tensors,
    rename,
)
from models.convert.dino_parts import ENCODING, LABELS, dino_options
from models.convert.original import ORIGINAL_NAMES
from models.convert.resnets import resnet_config
from util.errors import UserError

DINO_NAMES: Table = [
    (r"transformer\.decoder\.ref_point_head\.", "transformer.query_position.mlp."),
    (r"transformer\.decoder\.norm\.", "transformer.decoder_norm."),
    (r"transformer\.enc_out_class_embed\.", "queries.head.classify."),
    (r"transformer\.enc_out_bbox_embed\.", "queries.head.regress."),
    (r"transformer\.tgt_embed\.weight", "queries.content"),
    (r"label_enc\.weight", LABELS),
    (r"backbone\.0\.(?!body\.)", "backbone.body."),  # another backbone, refused by its name
    *ORIGINAL_NAMES,
]
DINO_REFUSED: Refusals = [
    (r"transformer\.two_stage_wh_embedding", "learned sizes of anchors (two_stage_learn_wh), which cannot be built"),
    (r"transformer\.pat_embed_for_2stage|transformer\.patterns", "patterns of queries, which cannot be built"),
    (r"(?:transformer\.)?refpoint_embed|hw_embed", "learned boxes of queries; only two-stage DINO can be loaded"),
    (r"(?:transformer\.decoder\.layers\.\d+\.)?label_embedding", "attention to labels, which cannot be built"),
    (r"backbone\.1\.", "a learned position encoding; only sines can be loaded"),
]
ONLY = {
    "decoder_sa_type": "sa",
    "decoder_module_seq": ["sa", "ca", "ffn"],
    "transformer_activation": "relu",
    "pre_norm": False,
    "use_deformable_box_attn": False,
    "add_channel_attention": False,
    "dec_layer_number": None,
}


def from_dino(content: dict[str, Any], path: str) -> Converted:
    """Read a checkpoint of DINO's own repository: four levels of a ResNet, two stages.

    Without `args` taken as published are 8 heads, no dropout, and the encoding's temperature of 20. Heads that layers
    share become one for each layer, all alike.

    Args:
        content: the file, `{"model": tensors, "args": Namespace, ...}`.
        path: named in errors.

    Raises:
        UserError: keys or shapes that are not such a DINO's, or an option of it that cannot be built.
    """
    args = arguments(content)
    check_arguments(args, ONLY, path)
    state = rename(plain_tensors(content["model"]), DINO_NAMES, path, "DINO", DINO_REFUSED)
    if "queries.memory_proj.weight" not in state:
        raise UserError(f"'{path}' is a DINO of one stage; only those of two stages can be loaded")
    options = dino_options(state, int(args.get("dn_number", 100)))
    options |= ENCODING
    if "pe_temperatureH" in args:
        check_arguments(args, {"pe_temperatureW": args["pe_temperatureH"]}, path)
        options["position_temperature"] = float(args["pe_temperatureH"])
    found = Found(
        refinement=True, heads=int(args.get("nheads", 8)), dropout=float(args.get("dropout", 0.0)), options=options
    )
    return convert(state, resnet_config(state, path, dilated=bool(args.get("dilation"))), path, found)
