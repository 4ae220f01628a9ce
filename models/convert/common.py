"""What all families of names share: renaming by a table, and sizes read from the tensors."""

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from util.config import BackboneConfig, ModelConfig
from util.errors import UserError
from util.remarks import say_once

Table = Sequence[tuple[str, str]]  # (their pattern, our replacement): the first that matches the start of a key renames
Refusals = Sequence[tuple[str, str]]  # (their pattern, what it belongs to and why that cannot be built)
DROPPED = ""  # the replacement of keys that have no place in our model


@dataclass
class Converted:
    """A foreign checkpoint in our terms.

    Attributes:
        config: the `model` section.
        num_classes: classes C.
        state: weights by our keys.
        names: class names by label; empty if there are none.
        contiguous: whether labels count the classes in the order of their ids, from 0, or are ids themselves.
    """

    config: ModelConfig
    num_classes: int
    state: dict[str, Tensor]
    names: dict[int, str]
    contiguous: bool = False


@dataclass
class Found:
    """What a family knows of its files apart from the tensors.

    Attributes:
        refinement: iterative box refinement.
        heads: heads M of every attention.
        encoder_heads: M of the encoder, if it differs.
        dropout: probability in training.
        num_queries: queries Q, where no tensor tells.
        names: class names by label.
        contiguous: see `Converted`.
        options: further options of the `model` section.
    """

    refinement: bool
    heads: int = 8
    encoder_heads: int | None = None
    dropout: float = 0.1
    num_queries: int = 300
    names: Mapping[int, str] | None = None
    contiguous: bool = False
    options: Mapping[str, Any] | None = None


def rename(
    tensors: Mapping[str, Any], table: Table, path: str, kind: str = "Deformable DETR", refused: Refusals = ()
) -> dict[str, Tensor]:
    """Tensors by our names; says on stderr which groups of keys were left out.

    Args:
        tensors: the file's tensors by key.
        table: how to rename them. Keys whose replacement is `DROPPED` are left out.
        path: named in errors.
        kind: what the family's detector is called, for errors.
        refused: keys of parts that cannot be built, and why.

    Raises:
        UserError: a key that the table does not know or that is refused, or something that is no tensor.
    """
    state: dict[str, Tensor] = {}
    left_out: dict[str, None] = {}
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"'{path}': '{key}' is no tensor")
        for pattern, reason in refused:
            if re.match(pattern, key):
                raise UserError(f"'{path}' has '{key}', {reason}")
        for pattern, replacement in table:
            if not (hit := re.match(pattern, key)):
                continue
            if replacement == DROPPED:
                left_out[hit.group(0).rstrip(".")] = None
            else:
                state.setdefault(hit.expand(replacement) + key[hit.end() :], tensor)  # aliases of one head agree
            break
        else:
            raise UserError(f"'{path}' is no {kind} that is known: unexpected key '{key}'")
    if left_out:
        say_once(f"'{path}': left out what the model has no place for: {', '.join(left_out)}")
    if "position.level_embed" in state:
        state["position.level_embed"] = state["position.level_embed"].flatten(0, -2)
    return state


def convert(state: dict[str, Tensor], backbone: BackboneConfig, path: str, found: Found) -> Converted:
    """Sizes from the renamed tensors; heads and queries brought to our keys.

    Args:
        state: tensors by our names, but heads by `heads.LAYER`, those of proposals after the last layer's, and position
            and content of learned queries together as `queries.both` `[Q, 2E]`.
        backbone: the `model.backbone` section.
        path: named in errors.
        found: the rest.

    Raises:
        UserError: a part is missing, or of a kind that cannot be built.
    """
    for key in ("position.level_embed", "neck.levels.0.0.weight", "transformer.decoder.0.ffn.linear1.weight"):
        if key not in state:
            raise UserError(f"'{path}' is no Deformable DETR: it has nothing that becomes '{key}'")
    encoder_layers, decoder_layers = (count(state, f"transformer.{part}") for part in ("encoder", "decoder"))
    two_stage = "queries.memory_proj.weight" in state
    num_levels, d_model = state["position.level_embed"].shape
    if not any(k.startswith("heads.") for k in state):
        raise UserError(f"'{path}' is no Deformable DETR: it has no heads")
    _check_levels(state, num_levels, path)

    # Files number the proposals' head after the last layer, and repeat a shared head for each layer or keep it once.
    if two_stage:
        last = f"heads.{decoder_layers}."
        state = {k.replace(last, "queries.head.") if k.startswith(last) else k: v for k, v in state.items()}
    for part in ("classify", "regress"):
        numbers = {int(k.split(".")[1]) for k in state if re.match(rf"heads\.\d+\.{part}\.", k)}
        shared = {k: v for k, v in state.items() if k.startswith(f"heads.{min(numbers, default=0)}.{part}.")}
        if len(numbers) == 1 or not found.refinement:
            for key, i in product(shared, range(decoder_layers if found.refinement else 1)):
                state[f"heads.{i}." + key.split(".", 2)[2]] = shared[key]
    if not found.refinement:
        state = {k: v for k, v in state.items() if not k.startswith("heads.") or k.startswith("heads.0.")}
    num_queries = found.num_queries
    if "queries.both" in state:
        both = state.pop("queries.both")
        state["queries.position"], state["queries.content"] = both.split(d_model, dim=1)
    if "queries.content" in state:
        num_queries = len(state["queries.content"])

    def points(part: str, attention: str, heads: int) -> int | None:
        weights = state.get(f"transformer.{part}.0.{attention}.attention_weights.weight")
        return None if weights is None else weights.shape[0] // (heads * num_levels)

    decoder_points = points("decoder", "cross_attn", found.heads)
    config = ModelConfig(
        backbone=backbone,
        d_model=d_model,
        num_levels=num_levels,
        num_queries=num_queries,
        num_heads=found.heads,
        encoder_heads=found.encoder_heads if found.encoder_heads != found.heads else None,
        num_points=decoder_points or 4,
        encoder_points=points("encoder", "self_attn", found.encoder_heads or found.heads),
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        ffn_dim=state["transformer.decoder.0.ffn.linear1.weight"].shape[0],
        dropout=found.dropout,
        refinement=found.refinement,
        two_stage=two_stage,
    )
    config = replace(config, **found.options or {})
    if config.encoder_points == config.num_points:
        config.encoder_points = None
    num_classes = state["heads.0.classify.weight"].shape[0]
    return Converted(config, num_classes, state, dict(found.names or {}), found.contiguous)


def _check_levels(state: Mapping[str, Tensor], num_levels: int, path: str) -> None:
    """Refuse more than three maps of the backbone: those are read by convolutions of one pixel."""
    of_backbone = sum(
        weight.shape[-1] == 1 for k, weight in state.items() if re.fullmatch(r"neck\.levels\.\d+\.0\.weight", k)
    )
    if of_backbone > 3:
        raise UserError(
            f"'{path}' reads {of_backbone} maps of the backbone for {num_levels} levels (like DINO's 5-scale); "
            "at most 3 can be read here"
        )


def fill_biases(state: dict[str, Tensor]) -> None:
    """Zeros for the biases of the neck's convolutions, which some files do without before a norm."""
    for i in range(count(state, "neck.levels")):
        weight = state.get(f"neck.levels.{i}.0.weight")
        if weight is not None:
            state.setdefault(f"neck.levels.{i}.0.bias", torch.zeros(len(weight), dtype=weight.dtype))


def move_level(state: dict[str, Tensor], name: str, first: int) -> dict[str, Tensor]:
    """The same with the levels `NAME.N` as `neck.levels.{first + N}`: further levels that are counted from 0."""
    pattern = re.compile(re.escape(name) + r"\.(\d+)\.")
    return {pattern.sub(lambda hit: f"neck.levels.{first + int(hit[1])}.", key): value for key, value in state.items()}


def arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says that it was trained with, `args`; empty if nothing."""
    args = content.get("args")
    return vars(args) if isinstance(args, Namespace) else args if isinstance(args, dict) else {}


def own_heads(state: Mapping[str, Tensor]) -> bool:
    """Whether decoder layers have heads of their own, as refinement has: whether those of our names differ.

    Heads that all layers share are written once for each layer.
    """
    layers = range(count(state, "transformer.decoder"))
    found = [w for i in layers if (w := state.get(f"heads.{i}.regress.layers.0.weight")) is not None]
    return any(not torch.equal(found[0], weight) for weight in found[1:])


def check_arguments(args: Mapping[str, Any], supported: Mapping[str, Any], path: str) -> None:
    """Refuse a file that was trained with another value of an option than the only one that can be built.

    Raises:
        UserError: names the option.
    """
    for option, only in supported.items():
        if option in args and args[option] != only:
            raise UserError(f"'{path}' was trained with {option} {args[option]!r}; only {only!r} can be loaded")


def swap_x_and_y(state: dict[str, Tensor], key: str, width: int) -> None:
    """Bring a linear layer that reads sines of y, x, w, h to our order, x, y, w, h.

    Args:
        state: tensors by our names; changed in place.
        key: the weight `[..., N * width]`.
        width: channels of each coordinate.
    """
    y, x, *size = state[key].split(width, dim=1)
    state[key] = torch.cat([x, y, *size], 1)


def plain_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Without counters, which say nothing of the detector."""
    counters = ("total_params", "total_ops", "num_batches_tracked")
    return {key: value for key, value in tensors.items() if not key.endswith(counters)}


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """One more than the largest N of the keys that begin with `PREFIX.N.`."""
    return 1 + max((int(m.group(1)) for k in state if (m := re.match(re.escape(prefix) + r"\.(\d+)\.", k))), default=-1)
