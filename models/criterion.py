"""The losses of every group and layer at once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.losses import Loss, MatchedGroup
from models.matcher import HungarianMatcher, every_layer
from models.predictions import Predictions
from util.objects import Objects


class Criterion:
    """Matches predictions and objects, and penalises what differs (arXiv 2010.04159, appendix A.4).

    It loops over groups of predictions and over losses, and knows none of them by name.

    Args:
        matcher: assigns objects to the queries of groups that bring no assignment.
        losses: weight and function of each loss, by name.
        auxiliary: penalise every layer; otherwise only the last one of each group.
        federated: of each image, penalise the classes alone whose objects are all listed (`Objects.exhaustive`), and
            pairs. Groups with objects of their own that do not say it are penalised in all classes.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        losses: Mapping[str, tuple[float, Loss]],
        auxiliary: bool = True,
        federated: bool = False,
    ):
        self.matcher, self.losses, self.auxiliary, self.federated = matcher, losses, auxiliary, federated

    def __call__(
        self, predictions: Predictions, objects: Sequence[Objects], num_boxes: float | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses by name and layer; their sum is what training minimises.

        Args:
            predictions: the model's predictions.
            objects: the objects of each image; an image may have none, or more than there are queries.
            num_boxes: the divisor, objects of the whole effective batch. None counts `objects`. At least 1.

        Returns:
            `{"class/decoder.0": ..., "l1/decoder.0": ..., "giou/decoder.0": ..., ..., "class/proposals": ...}`,
            scalars in fp32. Adding them up needs no transfer to the host.

        Raises:
            ValueError: a federated loss, and objects that do not say which classes it is of.
        """
        if self.federated and any(o.exhaustive is None for o in objects):
            raise ValueError("a federated loss needs Objects.exhaustive of every image")
        if num_boxes is None:
            num_boxes = sum(len(o.labels) for o in objects)
        num_boxes = max(float(num_boxes), 1.0)

        groups = predictions.groups if self.auxiliary else [group.last_layer() for group in predictions.groups]
        truths = [objects if group.objects is None else group.objects for group in groups]
        free = [i for i, group in enumerate(groups) if group.assignment is None]
        matched = dict(zip(free, self.matcher([groups[i] for i in free], [truths[i] for i in free])))

        losses = {}
        for i, (group, truth) in enumerate(zip(groups, truths)):
            matches = matched[i] if group.assignment is None else every_layer(group.assignment, len(group.logits))
            with torch.autocast(group.logits.device.type, enabled=False):
                pairs = MatchedGroup.of(group, truth, matches, self.federated)
                by_name = {name: (weight, loss(pairs)) for name, (weight, loss) in self.losses.items()}
            for name, (weight, by_layer) in by_name.items():
                if by_layer is not None:
                    for layer, loss in zip(group.names, weight * by_layer / num_boxes):
                        losses[f"{name}/{layer}"] = loss
        # The divisor is that of all losses: the sum must not depend on how a batch is spread over processes.
        for name, total in predictions.extra_losses.items():
            losses[name] = total / num_boxes
        return losses


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """Add up all losses, without a transfer to the host."""
    first, *others = losses.values()
    return sum(others, start=first)
