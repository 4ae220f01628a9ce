"""Weights of other projects' detectors, renamed to ours. Each family of names is a file, with a table of them."""

from collections.abc import Callable, Mapping
from typing import Any

from models.convert.common import Converted, arguments
from models.convert.detrex import from_detrex
from models.convert.dino import from_dino
from models.convert.hdetr import from_hdetr
from models.convert.huggingface import from_transformers
from models.convert.mmdet import from_mmdet
from models.convert.original import from_original
from models.convert.relation import from_relation

__all__ = ["Converted", "from_foreign", "from_original", "from_transformers"]

# (part of a key that only this family has, how it is read), tried in order.
FAMILIES: list[tuple[str, Callable[[dict[str, Any], str], Converted]]] = [
    ("bbox_head.", from_mmdet),
    ("transformer.decoder.position_relation_embedding.", from_relation),
    ("transformer.decoder.layers.0.attentions.", from_detrex),
    ("transformer.decoder.ref_point_head.", from_dino),
]


def from_foreign(content: dict[str, Any], path: str) -> Converted:
    """Read a `.pth` file of another project, which its keys tell.

    Args:
        content: the file, `{"model": tensors, ...}`.
        path: named in errors.

    Raises:
        UserError: see the families.
    """
    tensors: Mapping[str, Any] = content["model"]
    for part, read in FAMILIES:
        if any(key.startswith(part) for key in tensors):
            return read(content, path)
    # Learned contents beside proposals, or a word of the arguments: else H-DETR's names are Deformable DETR's.
    mixed = "query_embed.weight" in tensors and "transformer.enc_output.weight" in tensors
    if mixed or "num_queries_one2one" in arguments(content):
        return from_hdetr(content, path)
    return from_original(content, path)
