"""Pictures of where queries look (the figures of arXiv 2010.04159 on sampling points and attention weights)."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from analysis.looks.canvas import (
    box_key,
    colour_bar,
    cross_key,
    draw_box,
    draw_cross,
    draw_points,
    legend,
    level_keys,
    panels,
    zoom,
)
from analysis.looks.sampling import Recording, Sampling
from analysis.looks.selection import ChosenQuery, layer_scores

_DARK = 0.6


def points_of(sampling: Sampling, query: int) -> tuple[Tensor, Tensor, Tensor]:
    """A query's (or token's) points `[M*P, 2]` in [0, 1] of the unpadded image, weights `[M*P]` and levels `[M*P]`."""
    weights = sampling.weights[0, query]
    return sampling.locations[0, query].flatten(0, 1), weights.flatten(), sampling.levels.expand_as(weights).flatten()


def decoder_picture(
    picture: Image.Image,
    record: Recording,
    chosen: Sequence[ChosenQuery],
    layers: Sequence[int],
    names: Mapping[int, str],
) -> Figure:
    """A row for each query, a column for each decoder layer, and one column with the points of all these layers.

    Each panel shows the points of all heads and levels, the reference that the layer starts from and the box that it
    predicts; the last column shows the last layer's reference and box.

    Args:
        picture: the recorded image, RGB.
        record: the recorded forward pass; its first image is drawn.
        chosen: the queries to draw.
        layers: the decoder layers to draw.
        names: class names by label.
    """
    together = len(layers) > 1
    figure, axes = panels(
        picture, len(chosen), len(layers) + together, "sampling points of the decoder's queries", _DARK
    )
    boxes, size = record.predictions.boxes[:, 0], picture.size
    found = {(q.query, i): points_of(record.decoder[i], q.query) for q in chosen for i in layers}
    scale = Normalize(0, max(float(weights.max()) for _, weights, _ in found.values()))
    for row, query in zip(axes, chosen):
        scores = layer_scores(record.predictions, query)
        for panel, layer in zip(row, layers):
            draw_points(panel, *found[query.query, layer], size, scale)
            draw_box(panel, boxes[layer, query.query], size)
            draw_cross(panel, record.decoder[layer].references[0, query.query, :2], size)
            panel.set_title(f"layer {layer}, score {scores[layer]:.2f}", fontsize="small")
        if together:
            points, weights, levels = (torch.cat(parts) for parts in zip(*(found[query.query, i] for i in layers)))
            draw_points(row[-1], points, weights, levels, size, scale)
            draw_box(row[-1], boxes[layers[-1], query.query], size)
            draw_cross(row[-1], record.decoder[layers[-1]].references[0, query.query, :2], size)
            row[-1].set_title("these layers together", fontsize="small")
        row[0].set_ylabel(describe_query(query, names), fontsize="small")
    colour_bar(figure, axes, scale, "attention weight (each head's sum to 1)")
    legend(figure, [*level_keys(_levels(record)), cross_key("reference"), box_key("box of the layer")])
    return figure


def heads_picture(
    picture: Image.Image, record: Recording, query: ChosenQuery, layer: int, names: Mapping[int, str]
) -> Figure:
    """One query in one decoder layer: a row for each level, a column for each head.

    Args:
        picture: the recorded image, RGB.
        record: the recorded forward pass; its first image is drawn.
        query: the query.
        layer: the decoder layer.
        names: class names by label.
    """
    sampling, size = record.decoder[layer], picture.size
    locations, weights = sampling.locations[0, query.query], sampling.weights[0, query.query]  # [M, P, 2], [M, P]
    levels, box = _levels(record), record.predictions.boxes[layer, 0, query.query]
    corners = torch.stack([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2])
    name = describe_query(query, names).replace("\n", ", ")
    title = f"{name}, decoder layer {layer}: each head on each level, and the share of its weight there"
    figure, axes = panels(picture, len(levels), len(weights), title, _DARK, side=2.0)
    scale = Normalize(0, float(weights.max()))
    for row, level in zip(axes, levels):
        here = sampling.levels == level
        for head, panel in enumerate(row):
            draw_points(panel, locations[head, here], weights[head, here], sampling.levels[here], size, scale)
            draw_box(panel, box, size, width=1.0)
            draw_cross(panel, sampling.references[0, query.query, :2], size)
            zoom(panel, torch.cat([locations.flatten(0, 1), corners]), size)
            share = float(weights[head, here].sum())
            panel.set_title(f"head {head}: {share:.0%}", fontsize="small")
        row[0].set_ylabel(f"level {level}", fontsize="small")
    colour_bar(figure, axes, scale, "attention weight (each head's sum to 1)")
    legend(figure, [*level_keys(levels), cross_key("reference"), box_key("box of the layer")])
    return figure


def encoder_picture(
    picture: Image.Image, record: Recording, tokens: Sequence[int], point: tuple[float, float]
) -> Figure:
    """The points of the tokens at a place: a row for each level's token, a column for each encoder layer.

    Args:
        picture: the recorded image, RGB.
        record: the recorded forward pass, with at least one encoder layer; its first image is drawn.
        tokens: one token of each level, see `analysis.looks.selection.tokens_at`.
        point: the place, (x, y) in [0, 1] of the picture.
    """
    size = picture.size
    x, y = int(point[0] * size[0]), int(point[1] * size[1])
    title = f"sampling points of the encoder's tokens at pixel ({x}, {y})"
    figure, axes = panels(picture, len(tokens), len(record.encoder), title, _DARK)
    found = [[points_of(layer, token) for layer in record.encoder] for token in tokens]
    scale = Normalize(0, max(float(weights.max()) for row in found for _, weights, _ in row))
    for level, (row, token) in enumerate(zip(axes, tokens)):
        height, width = record.spatial_shapes[level]
        for i, panel in enumerate(row):
            draw_points(panel, *found[level][i], size, scale)
            reference = record.encoder[i].references[0, token]
            cell = 1 / (torch.tensor([width, height]) * record.valid_ratios[0, level].cpu())
            draw_box(panel, [*reference.tolist(), *cell.tolist()], size, width=1.0)
            draw_cross(panel, reference, size)
            panel.set_title(f"layer {i}", fontsize="small")
        row[0].set_ylabel(f"token of level {level}", fontsize="small")
    colour_bar(figure, axes, scale, "attention weight (each head's sum to 1)")
    legend(figure, [*level_keys(_levels(record)), cross_key("the token's centre"), box_key("its cell")])
    return figure


def describe_query(query: ChosenQuery, names: Mapping[int, str]) -> str:
    """Index, class and score, as the label of a row."""
    name = names.get(query.label, f"class {query.label}").replace("$", r"\$")  # in which matplotlib sees formulas
    return f"query {query.query}\n{name} {query.score:.2f}"


def _levels(record: Recording) -> list[int]:
    return list(range(len(record.spatial_shapes)))
