"""DeformableDETR: the parts put together, images in and boxes out."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.backbone import Backbone
from models.heads import PredictionHead
from models.neck import Neck
from models.position import PositionEncoding
from models.proposals import ProposalGenerator
from models.queries import LearnedQueries
from models.transformer import DeformableTransformer


@dataclass
class Proposals:
    """What the first of two stages says of every memory token.

    Attributes:
        logits: `[B, S, C]`; only channel 0 is trained towards objects, whatever their class.
        boxes: `[B, S, 4]`, cxcywh in [0, 1] of the unpadded image.
    """

    logits: Tensor
    boxes: Tensor


@dataclass
class Predictions:
    """What every decoder layer predicts; the last one is the detector's answer.

    Attributes:
        logits: `[N_dec, B, Q, C]`, one sigmoid a class.
        boxes: `[N_dec, B, Q, 4]`, cxcywh in [0, 1] of the unpadded image.
        proposals: of a two-stage detector.
        mimicry: losses of feature mimicking in training, summed over regions, by name; see `models.mimic`.
    """

    logits: Tensor
    boxes: Tensor
    proposals: Proposals | None = None
    mimicry: dict[str, Tensor] | None = None


class DeformableDETR(nn.Module):
    """Deformable DETR (arXiv 2010.04159): backbone, neck, position, encoder, queries, decoder, heads.

    Args:
        backbone: images to feature maps.
        neck: feature maps to L maps of width E.
        position: encodings of the L maps.
        transformer: encoder and decoder.
        queries: learned queries (one stage) or a proposal generator (two stages).
        heads: one for each decoder layer (iterative refinement), or one for all.
        auxiliary_losses: whether every layer's predictions are penalised in training. Without them only the last
            layer is, so class heads that nothing uses are frozen, and the gradient runs through the references into
            the earlier box heads, which nothing else would teach.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        position: PositionEncoding,
        transformer: DeformableTransformer,
        queries: LearnedQueries | ProposalGenerator,
        heads: list[PredictionHead],
        auxiliary_losses: bool = True,
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.position = position
        self.transformer = transformer
        self.queries = queries
        self.heads = nn.ModuleList(heads)
        self.auxiliary_losses = auxiliary_losses
        if not auxiliary_losses:
            for head in self.heads[:-1]:
                head.classify.requires_grad_(False)
        if not len(transformer.encoder):  # which alone looks at where tokens lie
            self.position.level_embed.requires_grad_(False)

    @property
    def num_classes(self) -> int:
        """Classes C of the heads."""
        return self.heads[0].classify.out_features

    def compile_parts(self, backend: str = "inductor") -> None:
        """`torch.compile` in place, for images of any size, without graph breaks in encoder and decoder.

        Layer by layer: layers of one kind share their code, so six of them compile in the time of one.

        Args:
            backend: of `torch.compile`.
        """
        # Maps one pixel wide, single images and evaluation each compile anew; past the limit it would be an error.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for layer in (*self.transformer.encoder, *self.transformer.decoder, *self.heads):
            layer.compile(fullgraph=True, dynamic=True, backend=backend)
        for part in (self.backbone, self.neck):
            part.compile(dynamic=True, backend=backend)

    def forward(self, images: Tensor, padding_mask: Tensor) -> Predictions:
        """Detect.

        Args:
            images: `[B, 3, H, W]`, normalised, zero on padding.
            padding_mask: `[B, H, W]`, True on padding.

        Returns:
            Predictions of every decoder layer, and of the proposals if there are two stages.
        """
        images, padding_mask = self.fit(images, padding_mask)
        return self.detect(self.backbone(images), padding_mask)

    def fit(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[B, 3, H, W]` and padding_mask `[B, H, W]` as the backbone takes them: padded further, if need be."""
        return pad_to_multiple(images, padding_mask, self.backbone.size_multiple)

    def detect(self, features: list[Tensor], padding_mask: Tensor) -> Predictions:
        """Detect in the backbone's maps.

        Args:
            features: `[B, C_i, H_i, W_i]`, shallow first.
            padding_mask: `[B, H, W]` of the images, True on padding.

        Returns:
            Predictions of every decoder layer, and of the proposals if there are two stages.
        """
        maps = self.neck(features)
        masks = [_resize_mask(padding_mask, m.shape[-2:]) for m in maps]
        spatial_shapes = [(m.shape[-2], m.shape[-1]) for m in maps]
        dtype = self.position.level_embed.dtype
        valid_ratios = torch.stack([valid_ratio(mask, dtype) for mask in masks], 1)  # [B, L, 2]

        tokens = torch.cat([rearrange(m, "b e h w -> b (h w) e") for m in maps], 1)  # [B, S, E]
        mask = torch.cat([rearrange(m, "b h w -> b (h w)") for m in masks], 1)  # [B, S]
        position = torch.cat([rearrange(p, "b h w e -> b (h w) e") for p in self.position(masks)], 1)  # [B, S, E]
        memory = self.transformer.encode(tokens, position, mask, spatial_shapes, valid_ratios)

        proposals = None
        if isinstance(self.queries, ProposalGenerator):
            queries, logits, boxes = self.queries(memory, mask, spatial_shapes, valid_ratios)
            proposals = Proposals(logits, boxes)
        else:
            queries = self.queries(len(padding_mask))
        logits, boxes = self.transformer.decode(
            queries, memory, mask, spatial_shapes, valid_ratios, self.heads, detach_references=self.auxiliary_losses
        )
        return Predictions(logits, boxes, proposals)


def pad_to_multiple(images: Tensor, padding_mask: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """More padding to the right and below, until height and width are multiples; nothing to do for 1."""
    height, width = images.shape[-2:]
    more = (0, -width % multiple, 0, -height % multiple)
    return (F.pad(images, more), F.pad(padding_mask, more, value=True)) if any(more) else (images, padding_mask)


def _resize_mask(padding_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour `[B, H, W]` -> `[B, h, w]`; the first row and column are never padding."""
    return F.interpolate(padding_mask[:, None].float(), size=size).squeeze(1).bool()


def valid_ratio(padding_mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpadded share of the width and height: `[B, H, W]` -> `[B, 2]`, (x, y)."""
    inside = (~padding_mask).to(dtype)
    return torch.stack([inside[:, 0, :].mean(1), inside[:, :, 0].mean(1)], -1)
