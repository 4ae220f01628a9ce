"""Records what every deformable attention layer samples in a forward pass: locations, weights, references, boxes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models.detector import DeformableDETR
from models.memory import valid_ratio
from models.predictions import PredictionGroup, Predictions
from ops import MSDeformAttn


@dataclass
class Sampling:
    """What one attention layer sampled in a forward pass.

    Attributes:
        on_maps: `[B, Q, M, P, 2]`, (x, y) in [0, 1] of each level's padded map, as given to the operator. In the
            encoder the queries are the S tokens.
        weights: `[B, Q, M, P]`; those of each head sum to 1.
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
        """`[B, Q, M, P, 2]`, (x, y) in [0, 1] of the unpadded image; what lies outside reads 0."""
        return self.on_maps / self.ratios[:, None, None]


@dataclass
class Recording:
    """One finished forward pass of a detector, on the model's device and without gradients.

    Attributes:
        encoder: what each encoder layer sampled, first to last.
        decoder: what each decoder layer sampled, first to last.
        spatial_shapes: `[(H, W), ...]` of the L levels.
        valid_ratios: `[B, L, 2]`, unpadded share (x, y) of each level.
        padding_mask: `[B, S]`, True on padding.
        predictions: the model's output; its boxes are those of every decoder layer.
    """

    encoder: list[Sampling]
    decoder: list[Sampling]
    spatial_shapes: list[tuple[int, int]]
    valid_ratios: Tensor
    padding_mask: Tensor
    predictions: Predictions


class Recorder:
    """Collects what the layers of a detector sample, and makes a `Recording` of each forward pass that finishes.

    Args:
        model: the detector, not compiled.
    """

    def __init__(self, model: DeformableDETR):
        self._model = model
        self._encoder = [m for m in model.transformer.encoder.modules() if isinstance(m, MSDeformAttn)]
        self._decoder = [m for m in model.transformer.decoder.modules() if isinstance(m, MSDeformAttn)]
        self._masks: list[Tensor] = []
        self._valid_ratios = torch.empty(0)
        self._calls: dict[MSDeformAttn, list[Sampling]] = {}
        self._last: Recording | None = None

    @property
    def last(self) -> Recording:
        """The recording of the last forward pass.

        Raises:
            RuntimeError: no forward pass has finished.
        """
        if self._last is None:
            raise RuntimeError("nothing is recorded: no forward pass has finished")
        return self._last

    def hooks(self) -> Iterator[RemovableHandle]:
        """Register the hooks, one after the other."""
        # The position encoding is the first to get the masks of all levels, once in each forward pass.
        yield self._model.position.register_forward_hook(lambda _, inputs, __: self._start(inputs[0]))
        for attention in (*self._encoder, *self._decoder):
            yield attention.register_forward_pre_hook(_ask_for_sampling, with_kwargs=True)
            yield attention.register_forward_hook(self._take)
        yield self._model.register_forward_hook(lambda _, __, out: self._finish(out))

    def _start(self, masks: list[Tensor]) -> None:
        self._masks = masks
        self._calls = {attention: [] for attention in (*self._encoder, *self._decoder)}
        self._valid_ratios = torch.stack([valid_ratio(m, self._model.position.level_embed.dtype) for m in masks], 1)

    def _take(self, attention: MSDeformAttn, inputs: tuple, out: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Keep what a call sampled. An encoder layer without attention across levels is called once for each level."""
        result, on_maps, weights = out
        calls, num_levels = self._calls[attention], len(self._masks)
        counts = attention.num_points if attention.kept_points is None else attention.kept_points
        within = len(counts) == 1 and num_levels > 1
        own = len(calls) if within else 0  # the level on which the reference is given
        levels = torch.tensor([level for level, k in enumerate(counts) for _ in range(k)], device=weights.device)
        if within:  # as if all levels were sampled at the same places, the others with weight 0
            weights = torch.cat([weights if i == own else torch.zeros_like(weights) for i in range(num_levels)], -1)
            on_maps = torch.cat([on_maps] * num_levels, -2)
            levels = torch.arange(num_levels, device=weights.device).repeat_interleave(counts[0])
        reference = inputs[1][:, :, 0]
        scale = torch.cat([self._valid_ratios[:, None, own]] * (reference.shape[-1] // 2), -1)
        ratios = self._valid_ratios[:, levels]
        calls.append(Sampling(on_maps.detach(), weights.detach(), levels, (reference / scale).detach(), ratios))
        return result

    def _finish(self, predictions: Predictions) -> None:
        answer = predictions.groups[0]
        detached = PredictionGroup(answer.name, answer.logits.detach(), answer.boxes.detach(), layers=answer.layers)
        self._last = Recording(
            [_joined(self._calls[attention]) for attention in self._encoder],
            [_joined(self._calls[attention]) for attention in self._decoder],
            [(m.shape[-2], m.shape[-1]) for m in self._masks],
            self._valid_ratios,
            torch.cat([m.flatten(1) for m in self._masks], 1),
            Predictions([detached]),
        )


@contextmanager
def recording(model: DeformableDETR) -> Iterator[Recorder]:
    """Record what a model samples while the context lasts; of several forward passes the last one is kept.

    Hooks ask each attention layer for what it sampled and hand on its output alone, so the model computes what it
    always does. They are gone afterwards, also after an error. Layers compiled by `torch.compile` are not recorded.

    Args:
        model: the detector, not compiled.

    Yields:
        The recorder; its `last` is the recording, once a forward pass has finished.
    """
    recorder = Recorder(model)
    with ExitStack() as stack:
        for handle in recorder.hooks():
            stack.callback(handle.remove)
        yield recorder


@torch.no_grad()
def record_sampling(model: DeformableDETR, images: Tensor, padding_mask: Tensor) -> Recording:
    """One forward pass of a model in evaluation mode, recorded.

    Args:
        model: the detector.
        images: `[B, 3, H, W]`, normalised.
        padding_mask: `[B, H, W]`, True on padding.
    """
    with recording(model) as recorder:
        model(images, padding_mask)
    return recorder.last


def _ask_for_sampling(module: nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
    return inputs, named | {"return_sampling": True}


def _joined(calls: list[Sampling]) -> Sampling:
    """Join the calls of one layer to one sampling, their queries one after the other."""
    first, *others = calls
    if not others:
        return first
    on_maps, weights, references = (
        torch.cat([getattr(call, name) for call in calls], 1) for name in ("on_maps", "weights", "references")
    )
    return Sampling(on_maps, weights, first.levels, references, first.ratios)
