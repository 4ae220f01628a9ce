"""The deformable encoder and decoder (arXiv 2010.04159, section 4.1)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.distribution import DistributionHead, EdgeRefinement
from models.heads import PredictionHead, update_box
from models.layers import DecoderLayer, EncoderLayer
from models.memory import Memory
from models.memory_fusion import MemoryFusion
from models.predictions import Distributions
from models.queries import Queries
from models.query_position import QueryPosition
from models.relation import BoxRelation


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
        memory_fusion: makes the memory of the tokens of all encoder layers; None takes those of the last one.
        query_position: makes the queries' position of each layer's reference; None keeps that which they come with.
        relation: makes a bias of self-attention of the boxes of the two layers before, from the second layer on, or
            from the third if queries start from points. It needs iterative refinement.
        decoder_norm: of the states that heads predict from. As in DINO's code, what moves a layer's reference to that
            of the next is predicted from the state without it.
        box_epsilon: see `update_box`.

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
        memory_fusion: MemoryFusion | None = None,
        query_position: QueryPosition | None = None,
        relation: BoxRelation | None = None,
        decoder_norm: nn.LayerNorm | None = None,
        box_epsilon: float = 1e-5,
    ):
        super().__init__()
        self.checkpointing = False
        self.look_forward, self.box_epsilon = look_forward, box_epsilon
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
        self.memory_fusion, self.query_position = memory_fusion, query_position
        self.relation, self.decoder_norm = relation, decoder_norm

    def part(self, name: str) -> list[nn.Module]:
        """The layers of the `encoder` or the `decoder`, and what belongs to it beside them."""
        of_decoder = (self.query_position, self.relation, self.decoder_norm)
        more = (self.memory_fusion,) if name == "encoder" else of_decoder
        return [*getattr(self, name), *(module for module in more if module is not None)]

    def encode(self, memory: Memory, position: Tensor) -> Memory:
        """The memory with tokens that have looked at each other; their position is `[B, S, E]`."""
        tokens, shapes = memory.tokens, memory.spatial_shapes
        reference = encoder_reference_points(shapes, memory.valid_ratios)
        stages = [tokens]
        for layer in self.encoder:
            tokens = self._run(layer, tokens, position, reference, shapes, memory.padding_mask)
            if self.memory_fusion is not None:
                stages.append(tokens)
        if self.memory_fusion is not None:
            tokens = self._run(self.memory_fusion, stages)
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
        edges = EdgeRefinement(detach_references, self.box_epsilon) if isinstance(heads[0], DistributionHead) else None
        # Whether a layer's boxes are the next one's reference, or what moves that is another prediction.
        predicts_reference = edges is not None or (self.look_forward == 1 and self.decoder_norm is None)
        known = [reference] if reference.shape[-1] == 4 else []  # boxes of all layers so far
        logits, boxes = [], []
        for i, layer in enumerate(self.decoder):
            ratios = torch.cat([memory.valid_ratios] * (reference.shape[-1] // 2), -1)  # [B, L, 2 or 4]
            on_maps = reference[:, :, None] * ratios[:, None]  # [B, Q, L, 2 or 4]
            position = queries.position
            if self.query_position is not None:
                known_content = content if i and self.query_position.scale is not None else None
                position = self._run(self.query_position, reference, ratios[:, 0], known_content)
            if self.relation is not None and len(known) > 1:
                groups = self._run(self.relation, *known[-2:], queries.runs(by_relation=True))
            content = self._run(
                layer,
                content,
                position,
                on_maps,
                memory.tokens,
                memory.spatial_shapes,
                memory.padding_mask,
                groups,
            )
            head, states = heads[i if refinement else 0], content
            if self.decoder_norm is not None:
                states = self.decoder_norm(content)
            if edges is not None:
                layer_logits, layer_boxes = edges(head, states, reference)
            else:
                layer_logits, delta = head(states)
                layer_boxes = update_box(delta, start, self.box_epsilon)
            logits.append(layer_logits)
            boxes.append(layer_boxes)
            known.append(layer_boxes)
            if refinement and i + 1 < len(self.decoder):
                if not predicts_reference and self.decoder_norm is not None:
                    delta = head(content)[1]
                moved = layer_boxes if predicts_reference else update_box(delta, reference, self.box_epsilon)
                reference = moved.detach() if detach_references else moved
                start = moved if self.look_forward > 1 else reference
        return torch.stack(logits), torch.stack(boxes), None if edges is None else edges.distributions()

    def _run(self, layer: nn.Module, *inputs) -> Any:
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
