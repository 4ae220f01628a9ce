"""H-DETR (HDETR/H-Deformable-DETR, arXiv 2207.13080), and its queries in files of other repositories."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.convert.common import (
    Converted,
    Found,
    arguments,
    convert,
    own_heads,
    plain_tensors,
    rename,
)
from models.convert.original import ORIGINAL_NAMES
from models.convert.resnets import resnet_config

ONE_TO_MANY = 1500  # queries of the published detectors that are matched one-to-many; the others are the detector's
HDETR_NAMES = [(r"query_embed\.weight", "query_embedding"), *ORIGINAL_NAMES]


def from_hdetr(content: dict[str, Any], path: str) -> Converted:
    """Read a checkpoint of H-DETR's own repository, with a ResNet.

    The names are those of Deformable DETR. Without `args`, 1500 of the queries are taken for one-to-many matching, as
    published, if there are more; 8 heads; and boxes that look forward twice, if contents are learned.

    Args:
        content: the file, `{"model": tensors, "args": Namespace, ...}`.
        path: named in errors.

    Raises:
        UserError: keys or shapes that are not H-DETR's.
    """
    args = arguments(content)
    state = rename(plain_tensors(content["model"]), HDETR_NAMES, path, "H-DETR")
    one_to_many = int(args["num_queries_one2many"]) if "num_queries_one2many" in args else None
    options = hybrid_options(state, state.pop("query_embedding", None), one_to_many)
    if "look_forward_twice" in args:
        options["look_forward"] = 2 if args["look_forward_twice"] else 1
    found = Found(
        refinement=bool(args.get("with_box_refine", own_heads(state))),
        heads=int(args.get("nheads", 8)),
        dropout=float(args.get("dropout", 0.1)),
        num_queries=int(args.get("num_queries_one2one", 300)),
        options=options,
    )
    return convert(state, resnet_config(state, path, dilated=bool(args.get("dilation"))), path, found)


def hybrid_options(state: dict[str, Tensor], queries: Tensor | None, one_to_many: int | None) -> dict[str, Any]:
    """Options of the `model` section for learned queries, or learned contents, some of them matched one-to-many.

    The first ones are the detector's, the others those of hybrid matching, which inference does not run.

    Args:
        state: tensors by our names; given the queries'.
        queries: `[Q + H, 2E]`, position and content, in one stage; `[Q + H, E]`, content, in two; None if both are made
            of proposals.
        one_to_many: H. None takes the published 1500 where there are more queries, else none.
    """
    if queries is None:  # proposals make both
        return {"hybrid_queries": one_to_many or 0}
    if one_to_many is None:
        one_to_many = ONE_TO_MANY if len(queries) > ONE_TO_MANY else 0
    one_to_one = len(queries) - one_to_many
    width = state["position.level_embed"].shape[-1]
    mixed = queries.shape[1] == width
    parts: Mapping[str, Tensor]
    for name, rows in (("queries", queries[:one_to_one]), ("training_queries.hybrid", queries[one_to_one:])):
        if not len(rows):
            continue
        if mixed:
            parts = {"content": rows}
        elif name == "queries":
            parts = {"position": rows[:, :width], "content": rows[:, width:]}
        else:  # with a copy of what reads points from positions
            points = {k.removeprefix("queries."): v for k, v in state.items() if k.startswith("queries.reference_p")}
            parts = {"position": rows[:, :width], "content": rows[:, width:], **points}
            name += ".source"
        state.update({f"{name}.{key}": tensor for key, tensor in parts.items()})
    options: dict[str, Any] = {"hybrid_queries": one_to_many}
    if mixed:
        options |= {"query_selection": "mixed_wide", "look_forward": 2}
    return options
