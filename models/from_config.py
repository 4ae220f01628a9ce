"""From the configuration to the model and its criterion."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from models.anchors import AnchorQueries
from models.backbone import Backbone
from models.backbone_package import package_weights
from models.backbone_tags import known_name
from models.backbone_weights import fill_backbone, load_backbone_weights
from models.class_losses import AlignedLoss, ClassLoss, FocalLoss, MatchabilityLoss, PositionLoss, VarifocalLoss
from models.criterion import Criterion
from models.deform_backbone import deform_stages
from models.denoising import DenoisingQueries
from models.detector import DeformableDETR
from models.distribution import distribution_heads
from models.distribution_losses import DistillationLoss, fine_grained_loss
from models.heads import PredictionHead, decoder_heads
from models.hybrid import HybridQueries
from models.hybrid_encoder import hybrid_encoder
from models.limits import check_model
from models.losses import Loss, giou_loss, l1_loss
from models.matcher import HungarianMatcher
from models.memory_fusion import MemoryFusion
from models.mimic import FeatureMimic, WithMimicking
from models.neck import Neck
from models.position import PositionEncoding
from models.proposals import ProposalGenerator
from models.queries import LearnedQueries, QuerySource, TrainingQueries
from models.query_groups import QueryGroups
from models.query_position import QueryPosition
from models.relation import BoxRelation
from models.transformer import DeformableTransformer
from util.config import BackboneConfig, LossConfig, ModelConfig
from util.errors import UserError


def build_model(
    config: ModelConfig, num_classes: int, loss: LossConfig | None = None, backbone_weights: str | None = None
) -> DeformableDETR:
    """Build the detector that a configuration describes.

    Args:
        config: the `model` section.
        num_classes: classes C.
        loss: the `loss` section, by which queries for training are made; None takes its defaults.
        backbone_weights: overrides `config.backbone.weights` (`none` when a checkpoint will fill the model).

    Raises:
        UserError: numbers that do not fit each other, or a backbone that cannot be had.
    """
    loss = loss or LossConfig()
    check_model(config, loss)
    backbone = build_backbone(config.backbone, min(3, config.num_levels), backbone_weights, config.ignore_padding)
    neck = Neck(backbone.channels, config.d_model, config.num_levels, config.norm_groups, config.ignore_padding)
    from_boxes = config.two_stage or config.reference == "box"
    self_attention_heads = config.self_attention_heads or config.num_heads
    coordinates = 4 if from_boxes or config.refinement else 2
    encoder = build_encoder(config, backbone.strides)
    stages = config.encoder_layers if encoder is None else len(encoder)
    transformer = DeformableTransformer(
        config.d_model,
        config.num_levels,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        encoder_heads=config.encoder_heads or config.num_heads,
        decoder_heads=config.decoder_heads or config.num_heads,
        encoder_points=config.encoder_points or config.num_points,
        decoder_points=config.decoder_points or config.num_points,
        self_attention_heads=self_attention_heads,
        ffn_dim=config.ffn_dim,
        dropout=config.dropout,
        cross_level=config.cross_level,
        look_forward=config.look_forward,
        encoder=encoder,
        memory_fusion=MemoryFusion(config.d_model, stages, config.fusion_layers) if config.memory_fusion else None,
        query_position=None
        if config.decoder_query_position == "learned"
        else QueryPosition(config.d_model, coordinates, on_padded=not config.ignore_padding, scaled=config.query_scale),
        relation=BoxRelation(self_attention_heads) if config.relation else None,
        decoder_norm=nn.LayerNorm(config.d_model) if config.decoder_norm else None,
        box_epsilon=config.box_epsilon,
    )
    heads = decoder_heads(config.decoder_layers, config.d_model, num_classes, config.refinement, from_boxes)
    queries = build_queries(config, loss, heads[0])
    more = build_training_queries(config, loss, num_classes, heads[0])
    position = PositionEncoding(config.d_model, config.num_levels, config.position_temperature, config.position_offset)
    of_layers = distribution_heads(heads) if config.distribution_boxes else heads
    return DeformableDETR(backbone, neck, position, transformer, queries, of_layers, more, loss.auxiliary)


def build_backbone(
    config: BackboneConfig, num_features: int, weights: str | None = None, ignore_padding: bool = False
) -> Backbone:
    """The backbone with its weights.

    Args:
        config: the `model.backbone` section.
        num_features: maps to return, the deepest ones.
        weights: overrides `config.weights`.
        ignore_padding: see `Backbone`.

    Raises:
        UserError: a backbone, a change of it, or weights that cannot be had.
    """
    weights = weights or config.weights
    backbone = Backbone(
        known_name(config.name, pretrained=weights == "timm"),
        num_features,
        pretrained=weights == "timm",
        norm=config.norm,
        frozen_stages=config.frozen_stages,
        output_stride=config.output_stride,
        changes=backbone_changes(config),
        mean=config.mean,
        std=config.std,
        ignore_padding=ignore_padding,
        pyramid=config.pyramid,
    )
    if weights == "package":
        fill_backbone(backbone.body, package_weights(config.name), "the package")
    elif weights not in ("timm", "none"):
        load_backbone_weights(backbone.body, weights)
    return backbone


def build_encoder(config: ModelConfig, strides: Sequence[int]) -> list[nn.Module] | None:
    """The encoder's layers, if they are not the deformable ones that the transformer makes itself.

    Args:
        config: the `model` section.
        strides: of the backbone's maps; each further level has twice the stride of the one before.
    """
    if config.encoder == "deformable":
        return None
    scales = [deeper // shallower for shallower, deeper in pairwise(strides)] + [2] * (config.num_levels - len(strides))
    return hybrid_encoder(
        config.d_model,
        scales,
        config.encoder_layers,
        config.encoder_heads or config.num_heads,
        config.ffn_dim,
        config.dropout,
        config.norm_groups,
        config.ignore_padding,
    )


def with_normalisation(config: BackboneConfig, backbone: Backbone) -> BackboneConfig:
    """The configuration with the numbers that images are normalised by written out, for checkpoints to keep."""
    return replace(config, mean=list(backbone.mean), std=list(backbone.std))


def backbone_changes(config: BackboneConfig) -> list[Callable[[nn.Module], None]]:
    """What is changed in timm's network. A further option is a function of its own and a line here."""
    changes: list[Callable[[nn.Module], None]] = []
    if config.dcn != "none":
        groups, modulation = config.dcn_offset_groups, config.dcn_initial_modulation
        deform = partial(deform_stages, version=config.dcn, stages=config.dcn_stages, offset_groups=groups)
        changes.append(partial(deform, initial_modulation=modulation))
    return changes


def build_queries(config: ModelConfig, loss: LossConfig, head: PredictionHead) -> QuerySource:
    """Where the decoder starts. A further scheme is a class of its own and a line here.

    Args:
        config: the `model` section.
        loss: the `loss` section.
        head: the decoder's first, `[..., E]` to C classes; a source with a head of its own starts from a copy.
    """
    if config.two_stage:
        head = head.copy(initial_size_bias=0.0)
        return ProposalGenerator(
            config.num_queries,
            config.d_model,
            head,
            config.ignore_padding,
            config.query_selection,
            config.proposal_head == "class",
            config.proposal_nms,
            loss.proposal_assignment,
            has_position=config.decoder_query_position == "learned",
        )
    return learned_queries(config, config.num_queries)


def learned_queries(config: ModelConfig, count: int) -> QuerySource:
    """So many queries that do not come from proposals."""
    kind = AnchorQueries if config.reference == "box" else LearnedQueries
    return kind(count, config.d_model, has_position=config.decoder_query_position == "learned")


def build_training_queries(
    config: ModelConfig, loss: LossConfig, num_classes: int, head: PredictionHead
) -> dict[str, TrainingQueries]:
    """Further groups of queries for training. Each is a class of its own and a line here.

    Those of one length come first, next to the detector's own queries, for they attend as one batch.
    """
    more: dict[str, TrainingQueries] = {}
    if config.query_groups > 1:
        more["groups"] = QueryGroups([build_queries(config, loss, head) for _ in range(config.query_groups - 1)])
    if config.hybrid_queries:
        more["hybrid"] = build_hybrid_queries(config, loss)
    if config.denoising_queries:
        noise = loss.denoising_label_noise, loss.denoising_box_noise
        more["denoising"] = DenoisingQueries(config.denoising_queries, num_classes, config.d_model, *noise)
    return more


def build_hybrid_queries(config: ModelConfig, loss: LossConfig) -> HybridQueries:
    """Queries matched one-to-many. They start as the detector's own do."""
    count, content = config.hybrid_queries, None
    source = None if config.two_stage else learned_queries(config, count)
    if config.query_selection in ("mixed", "mixed_wide"):
        content = nn.Parameter(torch.randn(count, config.d_model))
    return HybridQueries(count, loss.hybrid_repeats, loss.hybrid_weight, source, content)


def build_criterion(config: LossConfig) -> Criterion:
    """Matcher and losses of the `loss` section."""
    alpha, gamma = config.focal_alpha, config.focal_gamma
    modulation = 0.5 if config.classification == "position" else 0.0
    matcher = HungarianMatcher(config.class_cost, config.l1_cost, config.giou_cost, alpha, gamma, modulation)
    losses: dict[str, tuple[float, Loss]] = {
        "class": weighted_class_loss(config),
        "l1": (config.l1_weight, l1_loss),
        "giou": (config.giou_weight, giou_loss),
        "fgl": (config.fgl_weight, fine_grained_loss),
    }
    if config.distillation_weight:
        losses["distill"] = (config.distillation_weight, DistillationLoss())
    return Criterion(matcher, losses, config.auxiliary, config.federated)


def weighted_class_loss(config: LossConfig) -> tuple[float, Loss]:
    """The class loss of the `loss` section, and its weight: the one asked for, else that of its paper."""
    alpha, gamma = config.focal_alpha, config.focal_gamma
    losses: dict[str, ClassLoss] = {
        "focal": FocalLoss(alpha, gamma),
        "varifocal": VarifocalLoss(),
        "ia_bce": AlignedLoss(),
        "mal": MatchabilityLoss(),
        "position": PositionLoss(alpha, gamma),
    }
    loss = losses[config.classification]
    return (loss.weight if config.class_weight is None else config.class_weight), loss


def as_trained(loss: LossConfig, model: ModelConfig, detector: DeformableDETR) -> tuple[nn.Module, FeatureMimic | None]:
    """What training runs, and what of it stays behind: the detector itself, or with it a mimicking branch.

    Raises:
        UserError: the backbone has no deformable convolutions, which mimicking would teach.
    """
    branch = build_mimic(loss, model, detector)
    return (WithMimicking(detector, branch) if branch else detector), branch


def build_mimic(loss: LossConfig, model: ModelConfig, detector: DeformableDETR) -> FeatureMimic | None:
    """The branch of feature mimicking for a detector, or None if the `loss` section asks for none.

    Raises:
        UserError: the backbone has no deformable convolutions, which it would teach.
    """
    if not loss.mimic_weight:
        return None
    if model.backbone.dcn == "none":
        raise UserError(
            "loss.mimic_weight teaches deformable backbones where to look; add --model.backbone.dcn v2, or leave it 0"
        )
    backbone = detector.backbone
    return FeatureMimic(
        backbone.channels[-1],
        backbone.strides[-1],
        detector.num_classes,
        loss.mimic_regions,
        loss.mimic_size,
        loss.mimic_weight,
    )
