"""Hybrid matching: further queries that are matched one-to-many, in training alone (H-DETR, arXiv 2207.13080)."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from models.memory import Memory
from models.proposals import ProposalGenerator
from models.queries import Queries, QueryGroup, QuerySource, TrainingQueries
from util.objects import Objects


class HybridQueries(TrainingQueries):
    """A second group of queries, to which each object is given several times (arXiv 2207.13080, section 3.2).

    They go through the same layers and heads as the first group, and neither sees the other. Their losses are divided
    by the number of objects, repetitions counted, as the paper's code does. Self-attention is not told how their
    boxes lie (`models.relation`), as in Relation-DETR's code: that helps to leave out duplicates, and these are to be
    duplicates.

    Args:
        count: queries H.
        repeats: how many queries k each object is matched to.
        weight: factor on their losses, lambda of the paper's equation.
        source: where they start in a one-stage detector. None: from the proposals that come after those of the
            detector's own queries, fewer if the memory has fewer tokens, and none if it has none left.
        content: `[H, E]`, their content where it is learned; None makes it as for the detector's own queries.
    """

    def __init__(
        self,
        count: int,
        repeats: int = 6,
        weight: float = 1.0,
        source: QuerySource | None = None,
        content: nn.Parameter | None = None,
    ):
        super().__init__()
        self.count, self.repeats, self.weight, self.source, self.content = count, repeats, weight, source, content

    def forward(self, source: QuerySource, queries: Queries, memory: Memory, objects: Sequence[Objects]) -> Queries:
        """The group "hybrid"."""
        found = self.source(memory) if self.source is not None else self._next_proposals(source, queries)
        group = QueryGroup("hybrid", repeats=self.repeats, related=False)
        return replace(found, groups=[group]).weighted(self.weight / self.repeats)

    def _next_proposals(self, source: QuerySource, queries: Queries) -> Queries:
        assert isinstance(source, ProposalGenerator) and queries.proposals is not None
        content: Tensor | None = self.content
        return source.pick(queries.proposals, source.num_queries, self.count, content)
