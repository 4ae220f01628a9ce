"""The deformable encoder and decoder (arXiv 2010.04159, section 4.1)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.distribution import DistributionHead, EdgeRefinement
from models.dropout import Dropout
from models.heads import PredictionHead, update_box
from models.memory import Memory
from models.predictions import Distributions
from models.queries import Queries
from ops import MSDeformAttn


class FeedForward(nn.Module):
    """Two linear layers with an activation, ReLU unless another is given, and dropout."""

    def __init__(self, d_model: int, width: int, dropout: float, activation: Callable[[Tensor], Tensor] = torch.relu):
        super().__init__()
        self.activation = activation
        self.linear1 = nn.Linear(d_model, width)
        self.linear2 = nn.Linear(width, d_model)
        self.dropout = Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., E]` -> `[..., E]`."""
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


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

        `groups`, as `Queries.runs` gives them, do not see each other; None: all queries are one group.
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

    def _attend_within_groups(self, q: Tensor, content: Tensor, groups: Sequence[tuple]) -> Tensor:
        """Self-attention of each group on its own, which costs less than to mask all others."""
        attended = []
        lengths = [length * count for length, count, _ in groups]
        for (_, count, mask), of_q, of_content in zip(groups, q.split(lengths, 1), content.split(lengths, 1)):
            of_q, of_content = (rearrange(t, "b (n q) e -> (b n) q e", n=count) for t in (of_q, of_content))
            if mask is not None:
                mask = mask.repeat_interleave(self.self_attn.num_heads, 0)
            found = self.self_attn(of_q, of_q, of_content, need_weights=False, attn_mask=mask)[0]
            attended.append(rearrange(found, "(b n) q e -> b (n q) e", n=count))
        return torch.cat(attended, 1)


class DeformableTransformer(nn.Module):
    """Encoder over the tokens of all levels, decoder from queries to predictions.

    Args:
        d_model: embedding width E.
        num_levels: feature levels L.
        encoder_layers, decoder_layers: numbers of layers; without encoder layers the tokens stay as they are.
        encoder_heads, decoder_heads: heads M of deformable attention.
        encoder_points, decoder_points: sampling points K, one number or one for each level.
        self_attention_heads: heads of the decoder's self-attention.
        ffn_dim: width of the feed-forward layers.
        dropout: probability.
        cross_level: see `EncoderLayer`.
        look_forward: box heads that learn from a layer's box: its own, or also that of the layer before (look forward
            twice, arXiv 2203.03605, section 3.5).
        encoder: layers in the place of the deformable ones, which take and give what those do, such as the
            `hybrid_encoder`; None makes deformable ones.

    Attributes:
        checkpointing: keep only each layer's input in training, and compute its inside again in the backward pass.
    """

    def __init__(
        self,
        d_model: int = 256,
        num_levels: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        encoder_heads: int = 8,
        decoder_heads: int = 8,
        encoder_points: int | Sequence[int] = 4,
        decoder_points: int | Sequence[int] = 4,
        self_attention_heads: int = 8,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        cross_level: bool = True,
        look_forward: int = 1,
        encoder: Sequence[nn.Module] | None = None,
    ):
        super().__init__()
        self.checkpointing = False
        self.look_forward = look_forward
        if encoder is None:
            of_layer = d_model, num_levels, encoder_heads, encoder_points, ffn_dim, dropout, cross_level
            encoder = [EncoderLayer(*of_layer) for _ in range(encoder_layers)]
        self.encoder = nn.ModuleList(encoder)
        self.decoder = nn.ModuleList(
            DecoderLayer(d_model, num_levels, decoder_heads, decoder_points, self_attention_heads, ffn_dim, dropout)
            for _ in range(decoder_layers)
        )
        for layers in (self.encoder, self.decoder):
            _share_first_biases(layers)

    def encode(self, memory: Memory, position: Tensor) -> Memory:
        """The memory with tokens that have looked at each other; their position is `[B, S, E]`."""
        tokens, shapes = memory.tokens, memory.spatial_shapes
        reference = encoder_reference_points(shapes, memory.valid_ratios)
        for layer in self.encoder:
            tokens = self._run(layer, tokens, position, reference, shapes, memory.padding_mask)
        return replace(memory, tokens=tokens)

    def decode(
        self,
        queries: Queries,
        memory: Memory,
        heads: Sequence[PredictionHead | DistributionHead] | nn.ModuleList,
        detach_references: bool = True,
    ) -> tuple[Tensor, Tensor, Distributions | None]:
        """Run the decoder and predict after every layer.

        Args:
            queries: the queries to start from.
            memory: the encoder's memory.
            heads: one for each layer (iterative refinement: a layer's boxes are the next one's reference), or a
                single one for all (every layer starts from the same reference).
            detach_references: stop the gradient from a layer into the box head of the layer before.

        Returns:
            Class logits `[N_dec, B, Q, C]` and boxes `[N_dec, B, Q, 4]` of every layer; and of what the boxes are the
            means, if the heads predict that.
        """
        content, reference = queries.content, queries.reference
        start = reference  # what boxes move from: the reference, which looking forward twice does not detach
        groups = queries.runs() if len(queries.groups) > 1 else None
        refinement = len(heads) > 1
        edges = EdgeRefinement(detach_references) if isinstance(heads[0], DistributionHead) else None
        logits, boxes = [], []
        for i, layer in enumerate(self.decoder):
            ratios = torch.cat([memory.valid_ratios] * (reference.shape[-1] // 2), -1)  # [B, L, 2 or 4]
            on_maps = reference[:, :, None] * ratios[:, None]  # [B, Q, L, 2 or 4]
            content = self._run(
                layer,
                content,
                queries.position,
                on_maps,
                memory.tokens,
                memory.spatial_shapes,
                memory.padding_mask,
                groups,
            )
            if edges is not None:
                layer_logits, layer_boxes = edges(heads[i], content, reference)
            else:
                layer_logits, delta = heads[i if refinement else 0](content)
                layer_boxes = update_box(delta, start)
            logits.append(layer_logits)
            boxes.append(layer_boxes)
            if refinement:
                moved = update_box(delta, reference) if self.look_forward > 1 else layer_boxes
                reference = moved.detach() if detach_references else moved
                start = moved if self.look_forward > 1 else reference
        return torch.stack(logits), torch.stack(boxes), None if edges is None else edges.distributions()

    def _run(self, layer: nn.Module, *inputs) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


@torch.no_grad()
def _share_first_biases(layers: nn.ModuleList) -> None:
    """Feed-forward biases start alike in all layers, for the published detectors copied one layer.

    Its matrices were drawn anew in each copy. All other biases start at zero.
    """
    first = dict(layers[:1].named_parameters())
    for name, values in layers[1:].named_parameters():
        if ".ffn." in name and name.endswith(".bias"):
            values.copy_(first["0." + name.partition(".")[2]])


def encoder_reference_points(spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """Every token's pixel centre on every level.

    Args:
        spatial_shapes: `[(H, W), ...]` of the L levels.
        valid_ratios: `[B, L, 2]`, unpadded share (x, y) of each level.

    Returns:
        `[B, S, L, 2]`: (x, y) in [0, 1] of each padded level.
    """
    centres = []
    for level, (height, width) in enumerate(spatial_shapes):
        y = torch.arange(height, device=valid_ratios.device, dtype=valid_ratios.dtype) + 0.5
        x = torch.arange(width, device=valid_ratios.device, dtype=valid_ratios.dtype) + 0.5
        y, x = torch.meshgrid(y, x, indexing="ij")
        ratio_x, ratio_y = valid_ratios[:, level, :, None].unbind(1)  # [B, 1] each
        centres.append(torch.stack([x.flatten() / (ratio_x * width), y.flatten() / (ratio_y * height)], -1))
    return torch.cat(centres, 1)[:, :, None] * valid_ratios[:, None]
