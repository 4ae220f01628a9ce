"""Denoising queries: in training the decoder is also given noised objects, and learns to put them right.

Contrastive denoising (DINO, arXiv 2203.03605, section 3.3) after DN-DETR (arXiv 2203.01305).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from models.memory import Memory
from models.predictions import Assignment
from models.queries import Queries, QueryGroup, QuerySource, TrainingQueries
from util.objects import Objects


class DenoisingQueries(TrainingQueries):
    """Groups of noised objects, each object once near its place and once further off.

    The positive query of an object is to find it again, the negative one is to find nothing. The noised label is a
    query's content, the noised box its reference. In self-attention queries see those of their own group alone, and
    matched queries and denoising queries do not see each other. (In the papers denoising queries do see matched ones,
    which DN-DETR's section on its attention mask finds to make no difference.) Losses are divided by the number of
    groups.

    The papers give all images of a batch as many groups as fit with the most objects of any. Here each image has its
    own number, for nothing may depend on how a batch is spread.

    Args:
        num_queries: positive queries of an image, about: as many whole groups as fit, but at least one.
        num_classes: classes C.
        d_model: embedding width E.
        label_noise: share of labels that are noised; half of them are replaced by a class drawn at random.
        box_noise: how far the corners of positives move at most, in half a box's width and height; negatives move
            farther, up to twice as far.
    """

    def __init__(self, num_queries: int, num_classes: int, d_model: int, label_noise: float, box_noise: float):
        super().__init__()
        self.num_queries, self.label_noise, self.box_noise = num_queries, label_noise, box_noise
        self.label_embed = nn.Embedding(num_classes, d_model)

    def forward(self, source: QuerySource, queries: Queries, memory: Memory, objects: Sequence[Objects]) -> Queries:
        """Queries of all groups, images with fewer of them padded; all random numbers follow `Objects.seed`."""
        layout = self.lay_out(objects)
        device, dtype = queries.reference.device, queries.reference.dtype
        indices = (layout.group, layout.object, layout.replaced, layout.groups, layout.pairs)
        group, of, replaced, groups, pairs = _moved_together(indices, device)
        (moves,) = _moved_together([layout.moves], device)

        blank = objects[0].boxes.new_full((1, 4), 0.5), objects[0].labels.new_zeros(1)  # what padding stands for
        boxes = torch.cat([*(o.boxes for o in objects), blank[0]])[of].to(dtype)
        labels = torch.cat([*(o.labels for o in objects), blank[1]])[of]
        reference = move_corners(boxes, moves.to(dtype) * self.box_noise)
        content = self.label_embed(labels.where(replaced < 0, replaced))
        position = source.position_of(reference, memory.tokens.dtype)
        denoising = QueryGroup(
            "denoising",
            assignment=Assignment(*pairs),
            attention_mask=group[:, :, None] != group[:, None],  # padding sees itself, or its softmax would be empty
            weights=1 / groups.to(dtype),
            penalised=group >= 0,
        )
        return Queries(content, position, reference, [denoising])

    def lay_out(self, objects: Sequence[Objects]) -> "Layout":
        """Draw the noise of every image, and give each query a place; all on the host."""
        counts = [len(o.labels) for o in objects]
        all_groups = [max(1, self.num_queries // max(1, count)) for count in counts]
        full = -(-max(counts) // self.num_queries)  # the same length in nearly every step, for compilers and allocators
        shape = len(objects), 2 * self.num_queries * max(1, full)
        group, replaced, of = torch.full(shape, -1), torch.full(shape, -1), torch.full(shape, sum(counts))
        moves, pairs, start = torch.zeros(*shape, 4), [], 0
        for i, (count, groups) in enumerate(zip(counts, all_groups)):
            drawn = draw_noise(objects[i].seed, (groups, 2, count), self.num_classes, self.label_noise)
            here = torch.arange(2 * groups * count).view(groups, 2, count)
            group[i, : here.numel()] = torch.arange(groups).repeat_interleave(2 * count)
            of[i, : here.numel()] = start + torch.arange(count).repeat(2 * groups)
            replaced[i, : here.numel()], moves[i, : here.numel()] = drawn[0].flatten(), drawn[1].flatten(0, 2)
            positive = here[:, 0].flatten()
            pairs.append(torch.stack([torch.full_like(positive, i), positive, of[i, positive]]))
            start += count
        return Layout(group, of, replaced, moves, torch.tensor(all_groups), torch.cat(pairs, 1))

    @property
    def num_classes(self) -> int:
        """Classes C."""
        return self.label_embed.num_embeddings


@dataclass
class Layout:
    """The queries of B images, at most q of each, on the host.

    Attributes:
        group: `[B, q]`, the group of each query; -1 for padding.
        object: `[B, q]`, its object, counted over the batch; the number of all objects for padding.
        replaced: `[B, q]`, the class that it is given in place of its object's; -1 leaves that.
        moves: `[B, q, 4]`, see `draw_noise`.
        groups: `[B]`, number of groups.
        pairs: `[3, P]`, image, query and object of each positive query.
    """

    group: Tensor
    object: Tensor
    replaced: Tensor
    moves: Tensor
    groups: Tensor
    pairs: Tensor


def draw_noise(seed: int, shape: tuple[int, int, int], num_classes: int, label_noise: float) -> tuple[Tensor, Tensor]:
    """The random numbers of an image.

    Args:
        seed: decides all of them.
        shape: groups G, 2 (positives, negatives), objects T.
        num_classes: classes C.
        label_noise: twice the share of labels that are replaced (DINO's code; a class may replace itself).

    Returns:
        Replaced classes `[G, 2, T]`, -1 for labels that stay; and the moves of corners x1, y1, x2, y2 `[G, 2, T, 4]` in
        half a box's width and height: of either sign, in [0, 1) for positives and [1, 2) for negatives.
    """
    # Of a stream of its own: the image was augmented by the numbers that follow the seed itself.
    own = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(own)
    chosen = torch.rand(shape, generator=generator) < label_noise / 2
    replaced = torch.randint(num_classes, shape, generator=generator).where(chosen, -1)
    size = torch.rand(*shape, 4, generator=generator) + torch.arange(2.0)[:, None, None]
    sign = 2 * torch.randint(2, (*shape, 4), generator=generator) - 1
    return replaced, sign * size


def move_corners(boxes: Tensor, moves: Tensor) -> Tensor:
    """Boxes with corners moved, and kept within the image.

    Args:
        boxes: `[..., 4]`, cxcywh in [0, 1].
        moves: `[..., 4]`, of x1, y1, x2, y2, in half a box's width and height.

    Returns:
        `[..., 4]`, cxcywh in [0, 1]. Where corners have passed each other the box is empty; turned round it could be
        the object's own again. (A negative of an object that fills the image can be, if all corners move outwards.)
    """
    half = boxes[..., 2:] / 2
    corners = box_convert(boxes, "cxcywh", "xyxy") + moves * torch.cat([half, half], -1)
    low, high = corners.clamp(0, 1).chunk(2, -1)
    return torch.cat([(low + high) / 2, (high - low).clamp(min=0)], -1)


def _moved_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of one type from the host to a device, in one transfer that nothing waits for."""
    together = torch.cat([t.flatten() for t in tensors])
    if device.type == "cuda":
        together = together.pin_memory()
    parts = together.to(device, non_blocking=True).split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors)]
