"""What a detector says of a batch: groups of predictions, the first of which is its answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from util.objects import Objects


@dataclass
class Assignment:
    """Which object each query stands for, where that is given and not matched. It is the same in every layer.

    Attributes:
        image: `[P]`, index in the batch.
        query: `[P]`, index in the group.
        object: `[P]`, index among the group's objects, those of all images one after the other.
        valid: `[P]`, which pairs count; None for all. No query is in two pairs that do. (To leave out pairs by
            what was predicted would wait for the device.)
    """

    image: Tensor
    query: Tensor
    object: Tensor
    valid: Tensor | None = None


@dataclass
class Distributions:
    """Where the edges of predicted boxes are likely to be (`models.distribution`).

    Attributes:
        logits: `[N, B, q, 4, 33]` of N layers: left, top, right and bottom, by bins.
        start: `[B, q, 4]`, the boxes that edges move from, cxcywh in [0, 1].
    """

    logits: Tensor
    start: Tensor


@dataclass
class PredictionGroup:
    """Predictions that are compared with one set of objects.

    Attributes:
        name: name of the group; its losses are named after it.
        logits: `[N, B, q, C]` of N layers, one sigmoid a class.
        boxes: `[N, B, q, 4]`, cxcywh in [0, 1] of the unpadded image.
        objects: the objects that the group is compared with, for each image; None for those of the batch.
        assignment: the object that each query stands for; None to match them.
        layers: the number of each layer; None for a group that does not come from layers, where N is 1.
        weights: `[B]`, factor on the losses of each image; None for 1. It depends on nothing but the image, for a batch
            may be spread over processes.
        penalised: `[B, q]`, which queries count; None for all.
        repeats: how many queries each object is matched to.
        distributions: of what the boxes are the means, in training, where they are.
    """

    name: str
    logits: Tensor
    boxes: Tensor
    objects: Sequence[Objects] | None = None
    assignment: Assignment | None = None
    layers: Sequence[int] | None = None
    weights: Tensor | None = None
    penalised: Tensor | None = None
    repeats: int = 1
    distributions: Distributions | None = None

    @property
    def names(self) -> list[str]:
        """A name for each layer: `decoder.0`, `decoder.1`, ...; for a group without layers its own."""
        return [self.name] if self.layers is None else [f"{self.name}.{i}" for i in self.layers]

    def last_layer(self) -> "PredictionGroup":
        """The group with its last layer alone."""
        layers = None if self.layers is None else self.layers[-1:]
        last = self.distributions and replace(self.distributions, logits=self.distributions.logits[-1:])
        return replace(self, logits=self.logits[-1:], boxes=self.boxes[-1:], layers=layers, distributions=last)

    def starts(self) -> list["PredictionGroup"]:
        """The boxes that edges move from, with the scores of the first layer, as a group without layers; else none."""
        if self.distributions is None:
            return []
        boxes = self.distributions.start[None]
        name = f"{self.name}.start"
        return [replace(self, name=name, logits=self.logits[:1], boxes=boxes, layers=None, distributions=None)]


@dataclass
class Predictions:
    """What a detector predicts.

    Attributes:
        groups: the first is the decoder's answer, and the only one at inference. The others exist for training.
        extra_losses: losses that a part of the model computes itself, by name: weighted sums over the batch, which
            the criterion divides by the number of objects.
    """

    groups: list[PredictionGroup]
    extra_losses: dict[str, Tensor] = field(default_factory=dict)

    @property
    def logits(self) -> Tensor:
        """Class logits `[N_dec, B, Q, C]` of the first group."""
        return self.groups[0].logits

    @property
    def boxes(self) -> Tensor:
        """Boxes `[N_dec, B, Q, 4]` of the first group, cxcywh in [0, 1] of the unpadded image."""
        return self.groups[0].boxes
