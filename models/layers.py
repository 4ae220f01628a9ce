"""The layers of the deformable encoder and decoder (arXiv 2010.04159, section 4.1)."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from models.dropout import Dropout
from models.queries import Run
from ops import MSDeformAttn


class FeedForward(nn.Module):
    """Two linear layers with ReLU and dropout."""

    def __init__(self, d_model: int, width: int, dropout: float):
        super().__init__()
        self.linear1 = nn.Linear(d_model, width)
        self.linear2 = nn.Linear(width, d_model)
        self.dropout = Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., E]` -> `[..., E]`."""
        return self.linear2(self.dropout(self.linear1(x).relu()))


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each followed by dropout, residual and LayerNorm.

    Args:
        d_model: embedding width E.
        num_levels: feature levels L.
        num_heads: heads M.
        num_points: sampling points K, one number or one for each level.
        ffn_dim: width of the feed-forward layers.
        dropout: probability.
        cross_level: whether a token samples all levels, or only its own, by the same weights on each (the paper's
            ablation without multi-scale attention, table 2).
    """

    def __init__(
        self,
        d_model: int,
        num_levels: int,
        num_heads: int,
        num_points: int | Sequence[int],
        ffn_dim: int,
        dropout: float,
        cross_level: bool = True,
    ):
        super().__init__()
        self.cross_level = cross_level
        self.self_attn = MSDeformAttn(d_model, num_levels if cross_level else 1, num_heads, num_points)
        self.norm1 = nn.LayerNorm(d_model)
        self.ffn = FeedForward(d_model, ffn_dim, dropout)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, spatial_shapes, padding_mask) -> Tensor:
        """Tokens `[B, S, E]`, position `[B, S, E]`, reference `[B, S, L, 2]` -> tokens `[B, S, E]`."""
        if self.cross_level:
            attended = self.self_attn(tokens + position, reference, tokens, spatial_shapes, padding_mask)
        else:
            attended = self._attend_within_levels(tokens + position, reference, tokens, spatial_shapes, padding_mask)
        tokens = self.norm1(tokens + self.dropout(attended))
        return self.norm2(tokens + self.dropout(self.ffn(tokens)))

    def _attend_within_levels(self, query, reference, tokens, spatial_shapes, padding_mask) -> Tensor:
        lengths = [height * width for height, width in spatial_shapes]
        parts = zip(*(t.split(lengths, 1) for t in (query, reference, tokens, padding_mask)))
        return torch.cat(
            [
                self.self_attn(q, r[:, :, i : i + 1], t, [spatial_shapes[i]], mask)
                for i, (q, r, t, mask) in enumerate(parts)
            ],
            1,
        )


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention to the memory, feed-forward."""

    def __init__(
        self,
        d_model: int,
        num_levels: int,
        num_heads: int,
        num_points: int | Sequence[int],
        self_attention_heads: int,
        ffn_dim: int,
        dropout: float,
    ):
        super().__init__()
        # Norms are numbered as in the published weights: cross-attention owns norm1 though it comes second.
        self.self_attn = nn.MultiheadAttention(d_model, self_attention_heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(d_model)
        self.cross_attn = MSDeformAttn(d_model, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(d_model)
        self.ffn = FeedForward(d_model, ffn_dim, dropout)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        nn.init.xavier_uniform_(self.self_attn.out_proj.weight)

    def forward(self, content, position, reference, tokens, spatial_shapes, padding_mask, groups=None) -> Tensor:
        """Content and position `[B, Q, E]`, reference `[B, Q, L, 2 or 4]`, tokens `[B, S, E]` -> `[B, Q, E]`.

        `groups`, as `Queries.runs` gives them, do not see each other; None: all queries are one group. In place of a
        mask a run may have what is added to its attention logits, as `models.relation` makes it.
        """
        q = content + position
        if groups is None:
            attended = self.self_attn(q, q, content, need_weights=False)[0]
        else:
            attended = self._attend_within_groups(q, content, groups)
        content = self.norm2(content + self.dropout(attended))
        attended = self.cross_attn(content + position, reference, tokens, spatial_shapes, padding_mask)
        content = self.norm1(content + self.dropout(attended))
        return self.norm3(content + self.dropout(self.ffn(content)))

    def _attend_within_groups(self, q: Tensor, content: Tensor, groups: Sequence[Run]) -> Tensor:
        """Self-attention of each group on its own, which costs less than to mask all others."""
        attended = []
        lengths = [run.length * run.groups for run in groups]
        for run, of_q, of_content in zip(groups, q.split(lengths, 1), content.split(lengths, 1)):
            of_q, of_content = (rearrange(t, "b (n q) e -> (b n) q e", n=run.groups) for t in (of_q, of_content))
            mask = run.mask
            if mask is not None:
                heads = self.self_attn.num_heads
                mask = mask.repeat_interleave(heads, 0) if mask.dim() == 3 else mask.flatten(0, 1)  # [B * n * M, q, q]
            found = self.self_attn(of_q, of_q, of_content, need_weights=False, attn_mask=mask)[0]
            attended.append(rearrange(found, "(b n) q e -> b (n q) e", n=run.groups))
        return torch.cat(attended, 1)
