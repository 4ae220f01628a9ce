"""Group DETR: several groups of queries, each matched on its own, in training alone (arXiv 2207.13085)."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from models.memory import Memory
from models.queries import Queries, QueryGroup, QuerySource, TrainingQueries
from util.objects import Objects


class QueryGroups(TrainingQueries):
    """Groups of queries beside the detector's own (arXiv 2207.13085, section 3.2).

    All go through the same decoder and heads, and none sees another. Each has a source of its own: learned queries, or
    proposals by a projection, a norm and a head of its own, which have a loss of their own (as in the authors' LW-DETR,
    arXiv 2406.03459). Losses are the mean over groups, those of the detector's own queries among them, as in the
    authors' code, so that more groups do not mean longer gradients.

    Args:
        sources: one for each further group, like the detector's own.
    """

    def __init__(self, sources: Sequence[QuerySource]):
        super().__init__()
        self.sources = nn.ModuleList(sources)
        self.share = 1 / (1 + len(sources))

    def forward(self, source: QuerySource, queries: Queries, memory: Memory, objects: Sequence[Objects]) -> Queries:
        """The groups "group1", "group2", ..., and what their sources predict: "proposals1", "proposals2", ..."""
        first, *others = (self._group(i, of(memory, objects)) for i, of in enumerate(self.sources, 1))
        return first.and_then(*others).weighted(self.share)

    @staticmethod
    def _group(number: int, queries: Queries) -> Queries:
        predictions = [replace(group, name=f"{group.name}{number}") for group in queries.predictions]
        return replace(queries, groups=[QueryGroup(f"group{number}")], predictions=predictions, proposals=None)
