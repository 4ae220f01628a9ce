"""Two-stage: every memory token proposes a box, the best become the decoder's queries."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.heads import PredictionHead
from models.memory import Memory
from models.position import sine_encoding
from models.predictions import PredictionGroup
from models.queries import Proposals, Queries, QuerySource
from util.objects import Objects

NEVER = -1e4  # a logit whose probability, loss and gradient are zero, in half precision too


class ProposalGenerator(QuerySource):
    """Proposals from the encoder's memory (arXiv 2010.04159, section 4.2 and appendix A.4).

    In training the proposals of all tokens are a group of predictions of their own.

    Args:
        num_queries: proposals Q handed to the decoder; fewer if the memory has fewer tokens.
        d_model: embedding width E.
        head: scores tokens and moves their boxes. It is trained on class-agnostic objects: channel 0 means "an object".
        ignore_padding: whether tokens on padding are left out of the proposals and of their losses. Otherwise they
            compete and are penalised as background, as in the paper's code.
    """

    ranked = True

    def __init__(self, num_queries: int, d_model: int, head: PredictionHead, ignore_padding: bool = False):
        super().__init__(num_queries)
        self.d_model, self.ignore_padding = d_model, ignore_padding
        self.memory_proj = nn.Linear(d_model, d_model)
        self.memory_norm = nn.LayerNorm(d_model)
        self.query_proj = nn.Linear(2 * d_model, 2 * d_model)
        self.query_norm = nn.LayerNorm(2 * d_model)
        self.head = head
        nn.init.xavier_uniform_(self.memory_proj.weight)
        nn.init.xavier_uniform_(self.query_proj.weight)

    def forward(self, memory: Memory, objects: Sequence[Objects] | None = None) -> Queries:
        """Score every token, and make queries of the best."""
        proposals = self.propose(memory)
        queries = self.pick(proposals, 0, self.num_queries)
        if objects is not None:
            logits, boxes = proposals.logits[None], proposals.unactivated.sigmoid()[None]
            queries.predictions.append(PredictionGroup("proposals", logits, boxes, class_agnostic(objects)))
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
        return Proposals(tokens, logits, unactivated)

    def pick(self, proposals: Proposals, start: int, count: int, content: Tensor | None = None) -> Queries:
        """Queries of `count` proposals, from the one of rank `start` on; fewer where there are not so many.

        Args:
            proposals: what is proposed.
            start, count: see above.
            content: `[count, E]`, learned content in the order of ranks; None makes it as for all queries.
        """
        scores = proposals.logits[..., 0]
        best = scores.topk(min(start + count, scores.shape[1]), dim=1).indices[:, start:]
        chosen = proposals.unactivated.detach().gather(1, best[..., None].expand(-1, -1, 4))
        reference = chosen.sigmoid()
        position, computed = self.encode(reference, proposals.tokens.dtype)
        if content is not None:
            computed = content[: best.shape[1]].expand_as(computed)
        return Queries(computed, position, reference)

    def encode(self, reference: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Position and content `[B, Q, E]` of boxes `[B, Q, 4]`."""
        embedding = sine_encoding(reference, self.d_model // 2).to(dtype)  # [B, Q, 2E]
        position, content = self.query_norm(self.query_proj(embedding)).chunk(2, dim=-1)
        return position, content

    def position_of(self, reference: Tensor, dtype: torch.dtype) -> Tensor:
        """Position `[B, Q, E]` of boxes `[B, Q, 4]`."""
        return self.encode(reference, dtype)[0]


def class_agnostic(objects: Sequence[Objects]) -> list[Objects]:
    """The same objects, all of label 0."""
    return [replace(o, labels=torch.zeros_like(o.labels)) for o in objects]


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
