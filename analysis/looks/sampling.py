"""What every deformable attention layer looked at in one forward pass: locations, weights, references, boxes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.detector import DeformableDETR
from models.memory import valid_ratio
from models.predictions import PredictionGroup, Predictions
from ops import MSDeformAttn


@dataclass
class Sampling:
    """What one attention layer sampled.

    Attributes:
        on_maps: `[B, Q, M, P, 2]`, (x, y) in [0, 1] of each level's padded map, as the operator takes them. In the
            encoder the queries are the S tokens.
        weights: `[B, Q, M, P]`, each head's sum to 1.
        levels: `[P]`, the feature level of each point.
        references: `[B, Q, 2 or 4]`, the reference points or boxes cxcywh, in [0, 1] of the unpadded image.
        ratios: `[B, P, 2]`, unpadded share (x, y) of each point's map.
    """

    on_maps: Tensor
    weights: Tensor
    levels: Tensor
    references: Tensor
    ratios: Tensor

    @property
    def locations(self) -> Tensor:
        """`[B, Q, M, P, 2]`, (x, y) in [0, 1] of the unpadded image; beyond are padding and nothing, which read 0."""
        return self.on_maps / self.ratios[:, None, None]


@dataclass
class Recording:
    """One forward pass of a detector, filled while it runs.

    Attributes:
        encoder: of each encoder layer, first to last.
        decoder: of each decoder layer, first to last.
        spatial_shapes: `[(H, W), ...]` of the L levels.
        valid_ratios: `[B, L, 2]`, unpadded share (x, y) of each level.
        padding_mask: `[B, S]`, True on padding.
        predictions: what came out; their boxes are those of every decoder layer.
    """

    encoder: list[Sampling] = field(default_factory=list)
    decoder: list[Sampling] = field(default_factory=list)
    spatial_shapes: list[tuple[int, int]] = field(default_factory=list)
    valid_ratios: Tensor | None = None
    padding_mask: Tensor | None = None
    predictions: Predictions | None = None


@contextmanager
def recording(model: DeformableDETR) -> Iterator[Recording]:
    """Record what a model samples while the context lasts; of several forward passes the last one is kept.

    Hooks ask each attention layer for what it sampled and hand on its output alone, so the model computes what it
    always does. They are gone afterwards, whatever happened. Layers compiled by `torch.compile` are not recorded.

    Args:
        model: the detector, not compiled.

    Yields:
        The recording, filled by the forward pass, on the model's device and without gradients.
    """
    record = Recording()
    with ExitStack() as hooks:

        def keep(handle) -> None:
            hooks.callback(handle.remove)

        # The position encoding is the first to be handed the masks of all levels, once in each forward pass.
        keep(model.position.register_forward_hook(lambda _, inputs, __: _start(record, inputs[0], model)))
        layers = [(layer.self_attn, record.encoder) for layer in model.transformer.encoder]
        layers += [(layer.cross_attn, record.decoder) for layer in model.transformer.decoder]
        for attention, found in layers:
            keep(attention.register_forward_pre_hook(_ask_for_sampling, with_kwargs=True))
            keep(
                attention.register_forward_hook(
                    lambda m, inputs, out, to=found, parts=[]: _take_sampling(record, m, inputs, out, to, parts)
                )
            )
        keep(model.register_forward_hook(lambda _, __, out: _finish(record, out)))
        yield record


@torch.no_grad()
def record_sampling(model: DeformableDETR, images: Tensor, padding_mask: Tensor) -> Recording:
    """One forward pass of a model in evaluation mode, recorded.

    Args:
        model: the detector.
        images: `[B, 3, H, W]`, normalised.
        padding_mask: `[B, H, W]`, True on padding.
    """
    with recording(model) as record:
        model(images, padding_mask)
    return record


def _start(record: Recording, masks: list[Tensor], model: DeformableDETR) -> None:
    record.encoder.clear()
    record.decoder.clear()
    record.spatial_shapes = [(m.shape[-2], m.shape[-1]) for m in masks]
    record.valid_ratios = torch.stack([valid_ratio(m, model.position.level_embed.dtype) for m in masks], 1)
    record.padding_mask = torch.cat([m.flatten(1) for m in masks], 1)


def _ask_for_sampling(module: nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
    return inputs, named | {"return_sampling": True}


def _take_sampling(
    record: Recording, module: MSDeformAttn, inputs: tuple, out: tuple, found: list[Sampling], parts: list[Sampling]
) -> Tensor:
    """Note what a call sampled; `parts` are the earlier calls of a layer that is called for each level apart."""
    out, on_maps, weights = out
    counts = module.num_points if module.kept_points is None else module.kept_points
    several = len(record.spatial_shapes)
    within = len(counts) == 1 and several > 1
    own = len(parts) if within else 0  # the level on which the reference is given
    levels = torch.tensor([level for level, k in enumerate(counts) for _ in range(k)], device=weights.device)
    if within:  # as if all levels were sampled, the others with no weight and at the same places
        weights = torch.cat([weights if i == own else torch.zeros_like(weights) for i in range(several)], -1)
        on_maps = torch.cat([on_maps] * several, -2)
        levels = torch.arange(several, device=weights.device).repeat_interleave(counts[0])
    reference = inputs[1][:, :, 0]
    scale = torch.cat([record.valid_ratios[:, None, own]] * (reference.shape[-1] // 2), -1)
    ratios = record.valid_ratios[:, levels]
    sampling = Sampling(on_maps.detach(), weights.detach(), levels, (reference / scale).detach(), ratios)
    if not within:
        found.append(sampling)
        return out
    parts.append(sampling)
    if len(parts) == several:
        joined = {
            name: torch.cat([getattr(p, name) for p in parts], 1) for name in ("on_maps", "weights", "references")
        }
        found.append(Sampling(**joined, levels=levels, ratios=ratios))
        parts.clear()
    return out


def _finish(record: Recording, predictions: Predictions) -> None:
    answer = predictions.groups[0]
    detached = PredictionGroup(answer.name, answer.logits.detach(), answer.boxes.detach(), layers=answer.layers)
    record.predictions = Predictions([detached])
