"""The choice of queries, layers and tokens to look at, by the user or by score."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.predictions import Predictions
from util.errors import UserError


@dataclass
class ChosenQuery:
    """An object query and its detection.

    Attributes:
        query: index among the Q queries, from 0.
        label: the query's best class.
        score: score of this class after the last layer, in [0, 1].
    """

    query: int
    label: int
    score: float


def choose_queries(
    predictions: Predictions, threshold: float, top_k: int, queries: Sequence[int] | None = None
) -> list[ChosenQuery]:
    """The queries that the user named, or else the best ones by the score of their best class.

    Args:
        predictions: the predictions for one image.
        threshold: smallest score of a query that the user did not name. If no query reaches it, the best are taken
            nevertheless, because an untrained model has something to show too.
        top_k: largest number of queries that the user did not name.
        queries: indices, from 0; None if the user named none.

    Raises:
        UserError: the list is empty, or the model does not have such a query.
    """
    if queries is not None and not queries:
        raise UserError("queries is an empty list; name some, like [3,17], or leave the option out")
    scores, labels = predictions.logits[-1, 0].float().sigmoid().max(-1)  # [Q] each
    count = len(scores)
    if queries is None:
        best = scores.argsort(descending=True, stable=True)
        above = [int(q) for q in best if scores[q] >= threshold]
        queries = (above or best.tolist())[:top_k]
    for query in queries:
        if not 0 <= query < count:
            raise UserError(f"queries: there is no query {query}; this picture has queries 0 to {count - 1}")
    return [ChosenQuery(q, int(labels[q]), float(scores[q])) for q in dict.fromkeys(queries)]


def choose_layers(count: int, layers: Sequence[int] | None) -> list[int]:
    """The decoder layers that the user named, from 0, or else all.

    Raises:
        UserError: the list is empty, or the decoder does not have such a layer.
    """
    if layers is not None and not layers:
        raise UserError("layers is an empty list; name some, like [0,5], or leave the option out")
    for layer in layers or ():
        if not 0 <= layer < count:
            raise UserError(f"layers: there is no decoder layer {layer}; this model has layers 0 to {count - 1}")
    return sorted(set(layers)) if layers else list(range(count))


def choose_pixel(pixel: Sequence[int] | None, box: Tensor, size: tuple[int, int]) -> tuple[float, float]:
    """The pixel that the user named, or else the centre of a box, as (x, y) in [0, 1] of the picture.

    Args:
        pixel: (x, y) in pixels of the upright picture, from 0; None if the user named none.
        box: `[4]`, cxcywh in [0, 1].
        size: (width, height) of the picture.

    Raises:
        UserError: the pixel is not two numbers, or lies outside of the picture.
    """
    width, height = size
    if pixel is None:
        x, y = (float(v) for v in box[:2])
        return min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)
    if len(pixel) != 2:
        raise UserError(f"pixel is {list(pixel)}; give two numbers, [x,y]")
    if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise UserError(f"pixel {list(pixel)} lies outside of the picture, which is {width} wide and {height} high")
    return (pixel[0] + 0.5) / width, (pixel[1] + 0.5) / height


def tokens_at(point: tuple[float, float], spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor) -> list[int]:
    """On each level, the token whose cell holds a point.

    Args:
        point: (x, y) in [0, 1] of the unpadded image.
        spatial_shapes: `[(H, W), ...]` of the L levels.
        valid_ratios: `[L, 2]`, unpadded share (x, y) of each level.

    Returns:
        L indices among the S tokens.
    """
    tokens, start = [], 0
    for (height, width), (ratio_x, ratio_y) in zip(spatial_shapes, valid_ratios.tolist()):
        column = min(int(point[0] * ratio_x * width), round(ratio_x * width) - 1)
        row = min(int(point[1] * ratio_y * height), round(ratio_y * height) - 1)
        tokens.append(start + row * width + column)
        start += height * width
    return tokens


def layer_scores(predictions: Predictions, chosen: ChosenQuery) -> list[float]:
    """The chosen class's score after every decoder layer."""
    return torch.sigmoid(predictions.logits[:, 0, chosen.query, chosen.label].float()).tolist()
