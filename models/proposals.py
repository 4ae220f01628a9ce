"""Two-stage: every memory token proposes a box, the best become the decoder's queries."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from models.atss import assign_tokens
from models.heads import PredictionHead
from models.memory import Memory
from models.nms import distinct_first
from models.position import sine_encoding
from models.predictions import PredictionGroup
from models.queries import Proposals, Queries, QuerySource
from util.objects import Objects

NEVER = -1e4  # a logit whose probability, loss and gradient are zero, in half precision too


class ProposalGenerator(QuerySource):
    """Proposals from the encoder's memory (arXiv 2010.04159, section 4.2 and appendix A.4).

    In training the proposals are a group of predictions of their own: those of all tokens, or, matched by class, the
    selected ones.

    Args:
        num_queries: proposals Q handed to the decoder; fewer if the memory has fewer tokens.
        d_model: embedding width E.
        head: scores tokens and moves their boxes.
        ignore_padding: whether tokens on padding are left out of the proposals and of their losses. Otherwise they
            compete and are penalised as background, as in the paper's code.
        selection: content of the queries: of the proposals' boxes (`position`, the paper's), learned for each rank
            (`mixed`, arXiv 2203.03605, section 3.4; in `mixed_wide` the position is one half of what would make both,
            normalised together, as in the code of arXiv 2207.13080), or the proposals' tokens (`tokens`, arXiv
            2304.08069, whose code detaches them too).
        by_class: whether the head tells classes and tokens are ranked by the best of them (arXiv 2203.03605). Otherwise
            it is trained on class-agnostic objects: channel 0 means "an object", the others nothing.
        nms: IoU above which a better proposal puts off a worse one, among four times Q; None for no suppression.
        assignment: whether tokens are matched with objects one to one, or many to one by ATSS (`models.atss`).
        has_position: whether the queries' position is made of boxes here. Otherwise at most their content is.

    Attributes:
        by_class: see above.
    """

    ranked = True

    def __init__(
        self,
        num_queries: int,
        d_model: int,
        head: PredictionHead,
        ignore_padding: bool = False,
        selection: Literal["position", "mixed", "mixed_wide", "tokens"] = "position",
        by_class: bool = False,
        nms: float | None = None,
        assignment: Literal["hungarian", "atss"] = "hungarian",
        has_position: bool = True,
    ):
        super().__init__(num_queries)
        self.d_model, self.ignore_padding = d_model, ignore_padding
        self.selection, self.by_class, self.nms, self.assignment = selection, by_class, nms, assignment
        self.compared = 4 * num_queries  # fixed: with fewer queries at inference, the best must be the same
        self.memory_proj = nn.Linear(d_model, d_model)
        self.memory_norm = nn.LayerNorm(d_model)
        makes_content, is_learned = (
            selection in kinds for kinds in (("position", "mixed_wide"), ("mixed", "mixed_wide"))
        )
        self.encoded = [name for name, on in (("position", has_position), ("content", makes_content)) if on]
        width = d_model * len(self.encoded)
        self.query_proj = nn.Linear(2 * d_model, width) if width else None
        self.query_norm = nn.LayerNorm(width) if width else None
        self.content = nn.Parameter(torch.randn(num_queries, d_model)) if is_learned else None
        self.head = head
        nn.init.xavier_uniform_(self.memory_proj.weight)
        if self.query_proj is not None:
            nn.init.xavier_uniform_(self.query_proj.weight)

    def forward(self, memory: Memory, objects: Sequence[Objects] | None = None) -> Queries:
        """Score every token, and make queries of the best."""
        proposals = self.propose(memory)
        best = self.rank(proposals, self.num_queries)
        queries = self.make(proposals, best, self.content)
        if objects is not None:
            queries.predictions.append(self.supervise(memory, proposals, best, objects))
            queries.proposals = proposals
        return queries

    def propose(self, memory: Memory) -> Proposals:
        """A score and a box for every token."""
        anchors, usable = token_anchors(memory)
        # A token on padding or at the very edge proposes nothing: no features, an anchor at infinity (box 1, 1, 1, 1).
        tokens = self.memory_norm(self.memory_proj(memory.tokens.masked_fill(~usable, 0.0)))
        logits, deltas = self.head(tokens)  # [B, S, C], [B, S, 4]
        if self.ignore_padding:  # neither chosen nor penalised, as if it were not there
            logits = logits.masked_fill(memory.padding_mask[..., None], NEVER)
        unactivated = deltas + torch.log(anchors / (1 - anchors)).masked_fill(~usable, float("inf"))
        proposals = Proposals(tokens, logits, unactivated, anchors, usable)
        if self.nms is not None:
            best = self.scores(proposals).topk(min(self.compared, logits.shape[1]), dim=1).indices
            order = distinct_first(take(unactivated.detach(), best).sigmoid(), self.nms)
            proposals.distinct = best.gather(1, order)
        return proposals

    def scores(self, proposals: Proposals) -> Tensor:
        """What tokens are ranked by: `[B, S]`."""
        return proposals.logits.amax(-1) if self.by_class else proposals.logits[..., 0]

    def supervise(
        self, memory: Memory, proposals: Proposals, best: Tensor, objects: Sequence[Objects]
    ) -> PredictionGroup:
        """The group of predictions that teaches the head; `best` `[B, Q]` are the selected tokens."""
        logits, unactivated = proposals.logits, proposals.unactivated
        truth = None if self.by_class else class_agnostic(objects)
        if self.assignment == "atss":
            pairs, weights = assign_tokens(memory, proposals.anchors, proposals.usable[..., 0], objects)
            boxes = unactivated.sigmoid()[None]
            return PredictionGroup("proposals", logits[None], boxes, truth, pairs, weights=weights)
        if self.by_class:
            logits, unactivated = take(logits, best), take(unactivated, best)
        return PredictionGroup("proposals", logits[None], unactivated.sigmoid()[None], truth)

    def pick(self, proposals: Proposals, start: int, count: int, content: Tensor | None = None) -> Queries:
        """Queries of `count` proposals, from the one of rank `start` on; fewer where there are not so many.

        Args:
            proposals: what is proposed.
            start, count: see above.
            content: `[count, E]`, learned content in the order of ranks, where content is learned.
        """
        return self.make(proposals, self.rank(proposals, start + count)[:, start:], content)

    def rank(self, proposals: Proposals, count: int) -> Tensor:
        """The best `count` tokens, the best first; fewer where there are not so many: `[B, <= count]`."""
        first = proposals.distinct
        if first is not None and count <= first.shape[1]:
            return first[:, :count]
        scores = self.scores(proposals)
        best = scores.topk(min(count, scores.shape[1]), dim=1).indices
        return best if first is None else torch.cat([first, best[:, first.shape[1] :]], 1)

    def make(self, proposals: Proposals, best: Tensor, learned: Tensor | None) -> Queries:
        """Queries of the tokens `best` `[B, q]`; `learned` content `[>= q, E]` where it is."""
        reference = take(proposals.unactivated.detach(), best).sigmoid()
        position, content = self.encode(reference, proposals.tokens.dtype)
        if learned is not None:
            content = learned[: best.shape[1]].expand(best.shape[0], -1, -1)
        elif content is None:
            content = take(proposals.tokens.detach(), best)
        return Queries(content, position, reference)

    def encode(self, reference: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Position and content `[B, Q, E]` of boxes `[B, Q, 4]`; None for what boxes do not make here."""
        if self.query_proj is None or self.query_norm is None:
            return None, None
        embedding = sine_encoding(reference, self.d_model // 2).to(dtype)  # [B, Q, 2E]
        encoded = self.query_norm(self.query_proj(embedding)).chunk(len(self.encoded), dim=-1)
        made = dict(zip(self.encoded, encoded))
        return made.get("position"), made.get("content")

    def position_of(self, reference: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Position `[B, Q, E]` of boxes `[B, Q, 4]`; None where the decoder makes it."""
        return self.encode(reference, dtype)[0]


def take(values: Tensor, tokens: Tensor) -> Tensor:
    """Values `[B, S, N]` of some tokens `[B, q]`: `[B, q, N]`."""
    return values.gather(1, tokens[..., None].expand(-1, -1, values.shape[-1]))


def class_agnostic(objects: Sequence[Objects]) -> list[Objects]:
    """The same objects, all of label 0. Nobody says whether all objects of any class are listed."""
    return [replace(o, labels=torch.zeros_like(o.labels), exhaustive=None) for o in objects]


def token_anchors(memory: Memory) -> tuple[Tensor, Tensor]:
    """A box around every token: its pixel centre, 5% of the image wide and high, doubling with each level.

    Args:
        memory: levels and padding; the values of the tokens do not matter.

    Returns:
        Anchors `[B, S, 4]`, cxcywh in [0, 1] of the unpadded image, and whether each is usable `[B, S, 1]`: not on
        padding and with all four numbers within (0.01, 0.99).
    """
    of_levels, valid_ratios = [], memory.valid_ratios
    for level, (height, width) in enumerate(memory.spatial_shapes):
        valid_x = (valid_ratios[:, level, :1] * width).round()  # [B, 1], unpadded pixels
        valid_y = (valid_ratios[:, level, 1:] * height).round()
        y = torch.arange(height, device=valid_ratios.device, dtype=valid_ratios.dtype) + 0.5
        x = torch.arange(width, device=valid_ratios.device, dtype=valid_ratios.dtype) + 0.5
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack([x.flatten() / valid_x, y.flatten() / valid_y], -1)  # [B, H*W, 2]
        of_levels.append(torch.cat([centres, torch.full_like(centres, 0.05 * 2.0**level)], -1))
    anchors = torch.cat(of_levels, 1)
    usable = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True) & ~memory.padding_mask[..., None]
    return anchors, usable
