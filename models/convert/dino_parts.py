"""What DINO's detectors have in common in all repositories (arXiv 2203.03605): its parts in our options."""

from typing import Any

from torch import Tensor

from models.convert.common import swap_x_and_y

LABELS = "training_queries.denoising.label_embed.weight"
POSITION = "transformer.query_position.mlp.layers.0.weight"
EPSILON = 1e-3  # their smallest number before a logarithm; the paper of Deformable DETR has 1e-5
# The position encoding of their own repository, which mmdetection took over; detrex has that of Deformable DETR.
ENCODING = {"position_temperature": 20.0, "position_offset": 0.0}


def dino_options(state: dict[str, Tensor], denoising_queries: int = 100) -> dict[str, Any]:
    """Options of the `model` section for a DINO; brings its tensors to our layout.

    Args:
        state: tensors by our names; changed in place.
        denoising_queries: as it was trained with, which no tensor tells.
    """
    num_classes = len(state["heads.0.classify.weight"])
    swap_x_and_y(state, POSITION, state["transformer.decoder_norm.weight"].shape[0] // 2)
    if LABELS in state:  # there may be a row more than classes, for an unknown one, which nothing reads
        state[LABELS] = state[LABELS][:num_classes]
    return {
        "query_selection": "mixed" if "queries.content" in state else "tokens",
        "proposal_head": "class",
        "look_forward": 2,
        "decoder_query_position": "sine",
        "decoder_norm": True,
        "denoising_queries": denoising_queries if LABELS in state else 0,
        "box_epsilon": EPSILON,
    }
