"""A trained detector that does less at inference: fewer sampling points, decoder layers or proposals."""

import copy
from collections.abc import Sequence

from torch import nn

from models.detector import DeformableDETR
from ops import MSDeformAttn
from util.errors import UserError


def reduce_model(
    model: DeformableDETR,
    num_points: int | Sequence[int] | None = None,
    encoder_points: int | Sequence[int] | None = None,
    decoder_points: int | Sequence[int] | None = None,
    decoder_layers: int | None = None,
    num_queries: int | None = None,
) -> DeformableDETR:
    """A copy of a trained detector that keeps only a part of what it computes; nothing is trained anew.

    Args:
        model: stays as it is.
        num_points: sampling points that every head keeps of each level, by weight; one number, or one for each level.
        encoder_points, decoder_points: the same for one of the two, before `num_points`.
        decoder_layers: the answer is that of this layer, the later ones are left out.
        num_queries: proposals that a two-stage detector hands to its decoder.

    Raises:
        UserError: more than the model has, or a number that means nothing for it.
    """
    model = copy.deepcopy(model)
    transformer = model.transformer
    for part, own, layers in (
        ("encoder", encoder_points, transformer.encoder),
        ("decoder", decoder_points, transformer.decoder),
    ):
        if own is not None:
            _keep_points(layers, own, part)
        elif num_points is not None:
            _keep_points(layers, num_points, "num")
    if decoder_layers is not None:
        if not 1 <= decoder_layers <= len(transformer.decoder):
            raise UserError(
                f"model.decoder_layers is {decoder_layers}; the checkpoint has {len(transformer.decoder)}, of which "
                "the first 1 or more can be kept"
            )
        transformer.decoder = transformer.decoder[:decoder_layers]
        model.heads = model.heads[:decoder_layers]
    if num_queries is not None:
        if not model.queries.ranked:
            raise UserError(
                "model.num_queries cannot change without training, but for a two-stage checkpoint: learned queries "
                "have no order"
            )
        if num_queries < 1:
            raise UserError(f"model.num_queries is {num_queries}; at least 1 is needed")
        content = getattr(model.queries, "content", None)  # learned by rank; the first ranks keep theirs
        if content is not None and num_queries > len(content):
            raise UserError(
                f"model.num_queries is {num_queries}; the checkpoint has learned content of {len(content)} queries, of "
                "which the first 1 or more can be kept"
            )
        model.queries.num_queries = num_queries
    return model


def _keep_points(layers: nn.ModuleList, points: int | Sequence[int], option: str) -> None:
    sampling = [m for m in layers.modules() if isinstance(m, MSDeformAttn)]
    if not sampling and option == "encoder":
        raise UserError(
            "model.encoder_points cannot change: the checkpoint's encoder samples nothing; leave the option out"
        )
    for attention in sampling:
        trained = attention.num_points
        kept = [min(points, k) for k in trained] if isinstance(points, int) else list(points)
        if isinstance(points, int) and not 1 <= points <= max(trained):
            raise UserError(
                f"model.{option}_points is {points}; the checkpoint was trained with {max(trained)}, of which 1 "
                "or more can be kept"
            )
        if len(kept) != len(trained) or any(not 0 <= k <= t for k, t in zip(kept, trained)) or not sum(kept):
            raise UserError(f"model.{option}_points is {kept}; the checkpoint was trained with {trained}")
        attention.kept_points = kept
