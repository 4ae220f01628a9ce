"""Object queries: what the decoder starts from.

A query source is a module `(memory, objects | None) -> Queries`. It is given the objects of the batch in training and
None at inference, where its queries form a single group. It also tells the number of queries and whether they are
ranked, and returns the predictions of its own heads, if it has any.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.memory import Memory
from models.predictions import Assignment, PredictionGroup
from util.objects import Objects


@dataclass
class QueryGroup:
    """Queries that are compared with one set of objects.

    Attributes:
        name: name of the group; the losses of decoder layer i are named `KIND/NAME.i`.
        queries: the group's part of the Q queries; None for all.
        objects: the objects that they are compared with, for each image; None for those of the batch.
        assignment: the object that each query stands for, counted within the group; None to match them.
    """

    name: str = "decoder"
    queries: slice | None = None
    objects: Sequence[Objects] | None = None
    assignment: Assignment | None = None


@dataclass
class Queries:
    """The decoder's input.

    Attributes:
        content: `[B, Q, E]`, what each query is at first.
        position: `[B, Q, E]`, added to the content wherever attention is computed.
        reference: `[B, Q, 2]` points or `[B, Q, 4]` boxes cxcywh, in [0, 1] of the unpadded image.
        groups: the first one's predictions are the detector's answer; the others are for training.
        attention_mask: `[Q, Q]`, True where the query of the row must not see that of the column in self-attention;
            None lets all see all.
        predictions: groups that the source itself predicts, in training.
    """

    content: Tensor
    position: Tensor
    reference: Tensor
    groups: list[QueryGroup] = field(default_factory=lambda: [QueryGroup()])
    attention_mask: Tensor | None = None
    predictions: list[PredictionGroup] = field(default_factory=list)


class QuerySource(nn.Module):
    """What every query source has in common.

    Attributes:
        num_queries: queries Q of the first group, at most.
        ranked: whether the queries of each image come in order, the best first. Then the last ones can be left out,
            and query q of one image has nothing in common with query q of another.
    """

    ranked = False

    def __init__(self, num_queries: int):
        super().__init__()
        self.num_queries = num_queries

    def forward(self, memory: Memory, objects: Sequence[Objects] | None = None) -> Queries:
        """The queries for a batch of images.

        Args:
            memory: the encoder's memory.
            objects: the objects of each image, in training; None at inference, where there is a single group.
        """
        raise NotImplementedError


class LearnedQueries(QuerySource):
    """Queries learned as parameters; the reference point is read from the position (arXiv 2010.04159, section 4.1).

    Args:
        num_queries: queries Q.
        d_model: embedding width E.
    """

    def __init__(self, num_queries: int = 300, d_model: int = 256):
        super().__init__(num_queries)
        self.position = nn.Parameter(torch.randn(num_queries, d_model))
        self.content = nn.Parameter(torch.randn(num_queries, d_model))
        self.reference_points = nn.Linear(d_model, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Memory, objects: Sequence[Objects] | None = None) -> Queries:
        """The same queries for each image."""
        with torch.autocast(self.position.device.type, enabled=False):  # in half precision they would move by pixels
            reference = self.reference_points(self.position).sigmoid()
        batch = len(memory.tokens)
        position, content, reference = (t[None].expand(batch, -1, -1) for t in (self.position, self.content, reference))
        return Queries(content, position, reference)
