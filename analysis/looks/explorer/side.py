"""What a page knows of one detector on one picture, as plain data that JSON takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_convert

from analysis.looks.explorer.packing import pack, pack_decimals
from analysis.looks.explorer.tokens import closest_that_fit, tokens_apart
from analysis.looks.sampling import Recording, Sampling

OFFSET_DECIMALS = 1  # of pixels
WEIGHT_DECIMALS = 4
_OTHERS = 3  # classes that are named for a query, the best first
_MOST_POINTS = 3_000_000  # of encoder tokens, for the memory of a phone


def describe_side(record: Recording, picture: Image.Image, title: str, names: Mapping[int, str]) -> dict[str, Any]:
    """The decoder's part; `encoder` is left None.

    Args:
        record: the recorded forward pass; its first image is described.
        picture: the recorded image.
        title: what the detector is called.
        names: class names by label.

    Raises:
        UserError: what was sampled cannot be written down, because it is not finite.
    """
    predictions = record.predictions
    scores = predictions.logits[:, 0].double().sigmoid().cpu()  # [N, Q, C]
    best, labels = scores[-1].topk(min(_OTHERS, scores.shape[-1]))
    chosen = scores.gather(-1, labels[None, :, :1].expand(len(scores), -1, -1))[..., 0]  # [N, Q]
    size = torch.tensor(picture.size * 2)
    boxes = box_convert(predictions.boxes[:, 0].double().cpu(), "cxcywh", "xyxy") * size
    used = {int(label) for label in labels.unique()}
    decoder = _points(record.decoder, slice(None), picture.size) | {
        "references": _pack_exact(_references(record.decoder, slice(None), picture.size)),
        "boxes": _pack_exact(boxes.numpy()),
        "scores": _pack_exact(chosen.numpy()),
        "labels": labels.tolist(),
        "label_scores": _pack_exact(best.numpy()),
    }
    return {
        "title": title,
        "names": {str(label): names.get(label, f"class {label}") for label in sorted(used)},
        "cells": _cells(record, picture.size),
        "decoder": decoder,
        "encoder": None,
    }


def describe_encoder(
    record: Recording, picture: Image.Image, always: Sequence[int], room: int
) -> dict[str, Any] | None:
    """The encoder's tokens that fit, or None if its layers do not sample.

    Args:
        record: the recorded forward pass; its first image is described.
        picture: the recorded image.
        always: tokens that are described in any case.
        room: most characters of base64.

    Raises:
        UserError: what was sampled cannot be written down, because it is not finite.
    """
    if not record.encoder:
        return None
    shapes, ratios, size = record.spatial_shapes, record.valid_ratios[0].cpu(), picture.size

    def grid(spacing: float) -> list[int]:
        return sorted({*tokens_apart(spacing, size, shapes, ratios), *always})

    def describe(tokens: list[int]) -> dict[str, Any]:
        return _points(record.encoder, tokens, size)

    each = len(record.encoder) * record.encoder[0].weights[0, 0].numel()
    cells = [side for cell in _cells(record, size) for side in cell]
    most, spacings = _MOST_POINTS // each, (min(cells), max(max(size) / 3, max(cells)))
    tokens, encoder = closest_that_fit(grid, describe, _length, room, most, spacings)
    ends = np.cumsum([height * width for height, width in shapes])
    return encoder | {
        "tokens": tokens,
        "token_levels": np.searchsorted(ends, tokens, side="right").tolist(),
        "total": int((~record.padding_mask[0]).sum()),
        "references": _pack_exact(_references(record.encoder[:1], tokens, size)[0]),
    }


def _points(layers: Sequence[Sampling], picked: slice | list[int], size: tuple[int, int]) -> dict[str, Any]:
    """Offsets in pixels from the reference and weights, `[N, Q, M*P]`, and what each of the P points is."""
    offsets, weights = [], []
    for layer in layers:
        locations = (layer.on_maps[0, picked] / layer.ratios[0, None, None]).double().cpu()  # [Q, M, P, 2]
        reference = layer.references[0, picked, None, None, :2].double().cpu()
        offsets.append(((locations - reference) * torch.tensor(size)).flatten(1, 2).numpy())
        weights.append(layer.weights[0, picked].double().flatten(1).cpu().numpy())
    levels = layers[0].levels.tolist()
    moved = np.stack(offsets)
    return {
        "heads": layers[0].weights.shape[2],
        "levels": levels,
        "ks": [levels[:i].count(level) for i, level in enumerate(levels)],
        "dx": pack_decimals(moved[..., 0], OFFSET_DECIMALS),
        "dy": pack_decimals(moved[..., 1], OFFSET_DECIMALS),
        "weights": pack_decimals(np.stack(weights), WEIGHT_DECIMALS),
    }


def _references(layers: Sequence[Sampling], picked: slice | list[int], size: tuple[int, int]) -> np.ndarray:
    """`[N, Q, 2]`, (x, y) in pixels of the picture."""
    return np.stack([(x.references[0, picked, :2].double().cpu() * torch.tensor(size)).numpy() for x in layers])


def _cells(record: Recording, size: tuple[int, int]) -> list[list[float]]:
    """Width and height in pixels of the picture of a cell of each level."""
    return [
        [size[0] / (width * float(x)), size[1] / (height * float(y))]
        for (height, width), (x, y) in zip(record.spatial_shapes, record.valid_ratios[0])
    ]


def _pack_exact(values: np.ndarray) -> dict[str, Any]:
    return pack(values.astype(np.float32))


def _length(points: dict[str, Any]) -> int:
    return sum(len(points[name]["data"]) for name in ("dx", "dy", "weights"))
