"""DeformableDETR: the parts put together, images in and boxes out."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.backbone import Backbone
from models.distribution import DistributionHead
from models.heads import PredictionHead
from models.hybrid_encoder import CrossScaleFusion
from models.memory import flatten_levels, resize_mask
from models.neck import Neck
from models.position import PositionEncoding
from models.predictions import Distributions, PredictionGroup, Predictions
from models.queries import QueryGroup, QuerySource, TrainingQueries
from models.transformer import DeformableTransformer
from util.errors import UserError
from util.objects import Objects


class DeformableDETR(nn.Module):
    """Deformable DETR (arXiv 2010.04159): backbone, neck, position, encoder, queries, decoder, heads.

    Args:
        backbone: images to feature maps.
        neck: feature maps to L maps of width E.
        position: encodings of the L maps.
        transformer: encoder and decoder.
        queries: the source of the decoder's queries, such as learned queries (one stage) or proposals (two stages).
        heads: one for each decoder layer (iterative refinement), or one for all.
        training_queries: further groups of queries by name, in training alone.
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
        queries: QuerySource,
        heads: Sequence[PredictionHead | DistributionHead],
        training_queries: Mapping[str, TrainingQueries] | None = None,
        auxiliary_losses: bool = True,
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.position = position
        self.transformer = transformer
        self.queries = queries
        self.training_queries = nn.ModuleDict(training_queries or {})
        self.heads = nn.ModuleList(heads)
        self.auxiliary_losses = auxiliary_losses
        self.frozen: list[nn.Module] = []
        if not auxiliary_losses:
            for head in self.heads[:-1]:
                head.classify.requires_grad_(False)
        if all(isinstance(layer, CrossScaleFusion) for layer in transformer.encoder):  # attention alone looks at it
            self.position.level_embed.requires_grad_(False)

    @property
    def num_classes(self) -> int:
        """Classes C of the heads."""
        head = self.heads[0]
        assert isinstance(head, PredictionHead | DistributionHead)
        return head.classify.out_features

    @property
    def size_multiple(self) -> int:
        """Heights and widths are padded to a multiple of this: the backbone's, times two for each strided level."""
        strided = len(self.neck.levels) - self.backbone.num_features
        return self.backbone.size_multiple * (2**strided if self.neck.ignore_padding else 1)

    def freeze(self, parts: Sequence[str]) -> None:
        """Keep parts as they are: no gradient, no dropout, and batch norms keep their statistics, also in training.

        Args:
            parts: names of `models.limits.PARTS`.

        Raises:
            UserError: nothing is left to train.
        """
        for name in parts:
            of_transformer = name in ("encoder", "decoder")
            modules = [getattr(self.transformer if of_transformer else self, name)]
            modules += self.transformer.part(name) if of_transformer else []
            self.frozen += [module.requires_grad_(False) for module in modules]
        if not any(p.requires_grad for p in self.parameters()):
            raise UserError(f"train.freeze [{', '.join(parts)}] leaves nothing to train; leave one out")
        self.train(self.training)

    def train(self, mode: bool = True) -> "DeformableDETR":
        """Switch as any module does, but keep frozen parts in evaluation mode."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def compile_parts(self, backend: str = "inductor") -> None:
        """`torch.compile` in place, for images of any size, without graph breaks in encoder and decoder.

        Layer by layer: layers of one kind share their code, so six of them compile in the time of one.

        Args:
            backend: backend of `torch.compile`.
        """
        # Maps one pixel wide, single images and evaluation each compile anew; past the limit it would be an error.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for layer in (*self.transformer.part("encoder"), *self.transformer.part("decoder"), *self.heads):
            layer.compile(fullgraph=True, dynamic=True, backend=backend)
        for part in (self.backbone, self.neck):
            part.compile(dynamic=True, backend=backend)

    def forward(self, images: Tensor, padding_mask: Tensor, objects: Sequence[Objects] | None = None) -> Predictions:
        """Detect.

        Args:
            images: `[B, 3, H, W]`, normalised, zero on padding.
            padding_mask: `[B, H, W]`, True on padding.
            objects: the objects of each image, in training; None at inference.

        Returns:
            The decoder's predictions; given objects, also the groups that exist for training.
        """
        images, padding_mask = self.fit(images, padding_mask)
        return self.detect(self.backbone(images, padding_mask), padding_mask, objects)

    def fit(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[B, 3, H, W]` and padding_mask `[B, H, W]` as the backbone takes them: padded further, if need be."""
        return pad_to_multiple(images, padding_mask, self.size_multiple)

    def detect(
        self, features: list[Tensor], padding_mask: Tensor, objects: Sequence[Objects] | None = None
    ) -> Predictions:
        """Detect in the backbone's maps.

        Args:
            features: `[B, C_i, H_i, W_i]`, shallow first.
            padding_mask: `[B, H, W]` of the images, True on padding.
            objects: see `forward`.

        Returns:
            As `forward`.
        """
        maps = self.neck(features, padding_mask)
        masks = [resize_mask(padding_mask, m.shape[-2:]) for m in maps]
        memory = flatten_levels(maps, masks, self.position.level_embed.dtype)
        position = torch.cat([rearrange(p, "b h w e -> b (h w) e") for p in self.position(masks)], 1)  # [B, S, E]
        memory = self.transformer.encode(memory, position)
        queries = self.queries(memory, objects)
        for more in self.training_queries.values() if objects is not None else ():
            further = more(self.queries, queries, memory, objects)
            queries = (queries if more.share == 1 else queries.weighted(more.share)).and_then(further)
        logits, boxes, edges = self.transformer.decode(queries, memory, self.heads, self.auxiliary_losses)
        if objects is None:
            edges = None
        groups = [self._group(group, logits, boxes, edges) for group in queries.groups]
        starts = [start for group in groups if self.auxiliary_losses for start in group.starts()]
        return Predictions(groups + queries.predictions + starts)

    def _group(self, group: QueryGroup, logits: Tensor, boxes: Tensor, edges: Distributions | None) -> PredictionGroup:
        if group.queries is not None:
            logits, boxes = logits[:, :, group.queries], boxes[:, :, group.queries]
            if edges is not None:
                edges = Distributions(edges.logits[:, :, group.queries], edges.start[:, group.queries])
        return PredictionGroup(
            group.name,
            logits,
            boxes,
            objects=group.objects,
            assignment=group.assignment,
            layers=range(len(logits)),
            weights=group.weights,
            penalised=group.penalised,
            repeats=group.repeats,
            distributions=edges,
        )


def pad_to_multiple(images: Tensor, padding_mask: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """More padding to the right and below, until height and width are multiples; nothing to do for 1."""
    height, width = images.shape[-2:]
    more = (0, -width % multiple, 0, -height % multiple)
    return (F.pad(images, more), F.pad(padding_mask, more, value=True)) if any(more) else (images, padding_mask)
