"""Object queries: what the decoder starts from.

A query source is a module `(memory, objects | None) -> Queries`. It is given the objects of the batch in training and
None at inference, where its queries form a single group. It also tells the number of queries and whether they are
ranked, and returns the predictions of its own heads, if it has any. Training queries are further groups beside those of
the source, which inference never sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from models.memory import Memory
from models.predictions import Assignment, PredictionGroup
from util.objects import Objects


@dataclass
class QueryGroup:
    """Queries that are compared with one set of objects. In self-attention no group sees another.

    Attributes:
        name: name of the group; the losses of decoder layer i are named `KIND/NAME.i`.
        queries: the group's part of the Q queries; None for all.
        objects: the objects that they are compared with, for each image; None for those of the batch.
        assignment: the object that each query stands for, counted within the group; None to match them.
        attention_mask: `[B, q, q]`, True where the query of the row must not see that of the column, both of the
            group; None lets all see all.
        weights: `[B]`, factor on the losses of each image; None for 1.
        penalised: `[B, q]`, which queries count; None for all. What stands for no object and is not background either,
            such as padding, does not.
        repeats: how many queries each object is matched to.
        related: whether self-attention is told how the group's boxes lie, where the decoder does that
            (`models.relation`).
    """

    name: str = "decoder"
    queries: slice | None = None
    objects: Sequence[Objects] | None = None
    assignment: Assignment | None = None
    attention_mask: Tensor | None = None
    weights: Tensor | None = None
    penalised: Tensor | None = None
    repeats: int = 1
    related: bool = True


class Run(NamedTuple):
    """Groups of queries that attend as one batch.

    Attributes:
        length: queries q of each group.
        groups: number of groups n.
        mask: `[B, q, q]` of a single group, True where it hides; or, of all heads, `[B * n, M, q, q]` that is added to
            their logits; or None.
        related: see `QueryGroup`; it only matters where runs are kept apart by it.
    """

    length: int
    groups: int
    mask: Tensor | None = None
    related: bool = True


Part = TypeVar("Part", QueryGroup, PredictionGroup)


@dataclass
class Proposals:
    """What is proposed at each of S tokens.

    Attributes:
        tokens: `[B, S, E]`, the memory as the head saw it.
        logits: `[B, S, C]`.
        unactivated: `[B, S, 4]`, boxes cxcywh before the sigmoid.
        anchors: `[B, S, 4]`, the boxes that they were moved from.
        usable: `[B, S, 1]`, which anchors are usable.
        distinct: `[B, N]`, the best N tokens, with those first that suppression leaves; None for no suppression.
    """

    tokens: Tensor
    logits: Tensor
    unactivated: Tensor
    anchors: Tensor
    usable: Tensor
    distinct: Tensor | None = None


@dataclass
class Queries:
    """The decoder's input.

    Attributes:
        content: `[B, Q, E]`, what each query is at first.
        position: `[B, Q, E]`, added to the content wherever attention is computed; None where the decoder makes it
            from the reference (`models.query_position`).
        reference: `[B, Q, 2]` points or `[B, Q, 4]` boxes cxcywh, in [0, 1] of the unpadded image.
        groups: one after the other they make up all queries. The first one's predictions are the detector's answer;
            the others are for training.
        predictions: groups that the source itself predicts, in training.
        proposals: what a two-stage source chose from, in training.
    """

    content: Tensor
    position: Tensor | None
    reference: Tensor
    groups: list[QueryGroup] = field(default_factory=lambda: [QueryGroup()])
    predictions: list[PredictionGroup] = field(default_factory=list)
    proposals: Proposals | None = None

    @property
    def lengths(self) -> list[int]:
        """Number of queries of each group."""
        count = self.content.shape[1]
        return [len(range(count)[group.queries or slice(None)]) for group in self.groups]

    def runs(self, by_relation: bool = False) -> list[Run]:
        """Groups of one length and without masks that follow each other.

        Args:
            by_relation: keep those that are related apart from those that are not.
        """
        found: list[Run] = []
        for group, length in zip(self.groups, self.lengths):
            if not length:  # a small memory has no proposals left for it
                continue
            run = Run(length, 1, group.attention_mask, group.related or not by_relation)
            alike = found and (found[-1].length, found[-1].related) == (length, run.related)
            if alike and run.mask is None and found[-1].mask is None:
                found[-1] = run._replace(groups=found[-1].groups + 1)
            else:
                found.append(run)
        return found

    def and_then(self, *more: "Queries") -> "Queries":
        """These queries and groups, and after them those of `more`."""
        groups, start, parts = [], 0, (self, *more)
        for group, length in ((g, n) for part in parts for g, n in zip(part.groups, part.lengths)):
            groups.append(replace(group, queries=slice(start, start + length)))
            start += length
        positions = [part.position for part in parts if part.position is not None]
        return replace(
            self,
            content=torch.cat([part.content.to(self.content.dtype) for part in parts], 1),
            position=torch.cat([p.to(positions[0].dtype) for p in positions], 1) if positions else None,
            reference=torch.cat([part.reference.to(self.reference.dtype) for part in parts], 1),
            groups=groups,
            predictions=[group for part in parts for group in part.predictions],
        )

    def weighted(self, factor: float) -> "Queries":
        """The same with so many times the losses, those of the source's own predictions among them."""
        ones = self.reference.new_ones(len(self.reference))

        def times(part: Part) -> Part:
            return replace(part, weights=factor * (ones if part.weights is None else part.weights))

        return replace(self, groups=[*map(times, self.groups)], predictions=[*map(times, self.predictions)])


class QuerySource(nn.Module):
    """What every query source has in common.

    Attributes:
        num_queries: queries Q of the first group, at most.
        ranked: whether the queries of each image come in order, the best first. Then the last ones can be left out,
            and query q of one image has nothing in common with query q of another.
        by_class: whether the source's own head tells classes.
    """

    ranked = False
    by_class = False

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

    def position_of(self, reference: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Position `[B, Q, E]` of queries that start from boxes `[B, Q, 4]`; None where the decoder makes it.

        Sources of points have none to give.
        """
        raise NotImplementedError


class TrainingQueries(nn.Module):
    """What further groups of queries have in common that exist in training alone.

    Attributes:
        share: factor on the losses of the source's own queries and predictions beside these.
    """

    share = 1.0

    def forward(self, source: QuerySource, queries: Queries, memory: Memory, objects: Sequence[Objects]) -> Queries:
        """More queries for a batch of images, in groups of their own.

        Args:
            source: the detector's query source.
            queries: what the source made of this batch.
            memory: the encoder's memory.
            objects: the objects of each image.
        """
        raise NotImplementedError


class LearnedQueries(QuerySource):
    """Queries learned as parameters; the reference point is read from the position (arXiv 2010.04159, section 4.1).

    Args:
        num_queries: queries Q.
        d_model: embedding width E.
        has_position: whether the position is handed on. Otherwise the reference alone is read from it.
    """

    def __init__(self, num_queries: int = 300, d_model: int = 256, has_position: bool = True):
        super().__init__(num_queries)
        self.has_position = has_position
        self.position = nn.Parameter(torch.randn(num_queries, d_model))
        self.content = nn.Parameter(torch.randn(num_queries, d_model))
        self.reference_points = nn.Linear(d_model, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Memory, objects: Sequence[Objects] | None = None) -> Queries:
        """The same queries for each image."""
        with torch.autocast(self.position.device.type, enabled=False):  # in half precision they would move by pixels
            reference = self.reference_points(self.position).sigmoid()
        batch = memory.tokens.shape[0]
        position, content, reference = (t[None].expand(batch, -1, -1) for t in (self.position, self.content, reference))
        return Queries(content, position if self.has_position else None, reference)
