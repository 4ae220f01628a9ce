"""What the numbers of a model may be, and how they must fit each other. Asked before anything is built.

Nothing here imports torch, so that a command can refuse such numbers at once.
"""

from collections.abc import Sequence
from difflib import get_close_matches

from util.command_config import ProfileConfig, VisualizeConfig
from util.config import Config, LossConfig, ModelConfig, TrainConfig
from util.errors import UserError

PARTS = ("backbone", "neck", "position", "encoder", "decoder", "queries", "heads")  # of a detector, by name


def check_own_model(options: Config | VisualizeConfig | ProfileConfig) -> None:
    """Refuse a command's model that cannot be built, unless a checkpoint brings it, and options that need others."""
    if not getattr(options, "checkpoint", None):
        check_model(options.model, options.loss if isinstance(options, Config) else LossConfig())
    if isinstance(options, Config):
        check_freeze(options.train.freeze, options.loss.mimic_weight)
        check_rates(options.train)
    if isinstance(options, VisualizeConfig) and options.compare and not options.explore:
        raise UserError("--compare puts a second detector into explorer.html, which only --explore writes; give both")


def check_freeze(parts: Sequence[str], mimic_weight: float) -> None:
    """Refuse parts that a detector does not have, or that leave nothing to train.

    Raises:
        UserError: names the part and what is like it.
    """
    for part in parts:
        if part not in PARTS:
            near = get_close_matches(part, PARTS, n=1)
            hint = f"did you mean '{near[0]}'? there" if near else "there"
            raise UserError(f"train.freeze has '{part}'; {hint} are {', '.join(PARTS)}")
    if set(parts) == set(PARTS):
        raise UserError("train.freeze has every part, which leaves nothing to train; leave one out")
    if mimic_weight and "backbone" in parts:
        raise UserError("loss.mimic_weight teaches the backbone, which train.freeze keeps as it is; leave one out")


def check_rates(config: TrainConfig) -> None:
    """Refuse options of learning rates that do nothing.

    Raises:
        UserError: names the option and what it needs.
    """
    if config.flat_share != TrainConfig().flat_share and config.schedule != "flat_cosine":
        raise UserError(
            f"train.flat_share says when train.schedule flat_cosine begins to fall; with {config.schedule} it does "
            "nothing, leave it out"
        )
    if config.layer_decay is not None and "backbone" in config.freeze:
        raise UserError("train.layer_decay is about the backbone, which train.freeze keeps as it is; leave one out")


def check_model(config: ModelConfig, loss: LossConfig | None = None) -> None:
    """Refuse numbers that cannot make a model, and options that do nothing together.

    Raises:
        UserError: names the option and what would fit.
    """

    def at_least(option: str, least: int) -> None:
        if getattr(config, option) < least:
            raise UserError(f"model.{option} is {getattr(config, option)}; it must be at least {least}")

    for option in ("d_model", "num_levels", "num_queries", "decoder_layers", "num_heads", "norm_groups", "ffn_dim"):
        at_least(option, 1)
    at_least("query_groups", 1)
    for option in ("encoder_layers", "hybrid_queries", "denoising_queries"):
        at_least(option, 0)
    if not 0 <= config.dropout < 1:
        raise UserError(f"model.dropout is {config.dropout}; it must be in [0, 1)")
    for option in ("num_heads", "encoder_heads", "decoder_heads", "self_attention_heads", "norm_groups"):
        divisor = getattr(config, option)
        if divisor is not None and (divisor < 1 or config.d_model % divisor):
            raise UserError(
                f"model.{option} is {divisor}, which does not divide model.d_model {config.d_model}; "
                f"try {_divisor_near(config.d_model, divisor)}"
            )
    if config.d_model % 4:
        raise UserError(f"model.d_model is {config.d_model}; the sine encoding needs a multiple of 4")
    for option, off in (("encoder_points", None), ("cross_level", True)):
        if config.encoder == "hybrid" and getattr(config, option) != off:
            raise UserError(
                f"model.{option} is about sampling in the deformable encoder; model.encoder hybrid samples nothing, "
                "leave one of them out"
            )
    in_encoder = config.encoder_points or config.num_points
    if not config.cross_level and isinstance(in_encoder, list):
        raise UserError(
            f"model.cross_level is false, so levels share the encoder's weights, and K must be one number, not "
            f"{in_encoder}; give model.encoder_points"
        )
    for option in ("num_points", "encoder_points", "decoder_points"):
        points = getattr(config, option)
        if isinstance(points, list) and len(points) != config.num_levels:
            raise UserError(
                f"model.{option} lists {len(points)} numbers, but model.num_levels is {config.num_levels}; "
                "give one number, or one for each level"
            )
        if points is not None and (min(points) < 0 or sum(points) < 1 if isinstance(points, list) else points < 1):
            raise UserError(f"model.{option} is {points}; at least one sampling point is needed")
    _check_recipe(config, loss or LossConfig())
    backbone = config.backbone
    for option in ("mean", "std"):
        numbers = getattr(backbone, option)
        if numbers is not None and len(numbers) != 3:
            raise UserError(
                f"model.backbone.{option} lists {len(numbers)} numbers; it must be 3, of red, green and blue"
            )
    if backbone.dcn != "none" and (frozen := [s for s in backbone.dcn_stages if s <= backbone.frozen_stages]):
        raise UserError(
            f"model.backbone.dcn_stages has {frozen}, but the first {backbone.frozen_stages} are frozen, and offsets "
            "would stay zero there; leave them out, or lower model.backbone.frozen_stages"
        )


def _check_recipe(config: ModelConfig, loss: LossConfig) -> None:
    """Refuse options of queries, proposals and denoising that would do nothing, or not what they say."""
    if config.look_forward not in (1, 2):
        raise UserError(f"model.look_forward is {config.look_forward}; it must be 1 or 2")
    if config.look_forward == 2 and not (config.refinement and loss.auxiliary):
        raise UserError(
            "model.look_forward 2 lets a layer's box teach the layer before; it needs model.refinement true and "
            "loss.auxiliary true (without the latter the gradient reaches all layers anyway)"
        )
    if config.look_forward == 2 and config.decoder_layers == 1:
        raise UserError("model.look_forward 2 needs a layer to look at; model.decoder_layers is 1, take 2 or more")
    if config.distribution_boxes and (not config.refinement or config.decoder_layers == 1):
        raise UserError(
            "model.distribution_boxes refines distributions layer by layer; it needs model.refinement true and "
            "model.decoder_layers of 2 or more"
        )
    if config.distribution_boxes and config.look_forward == 2:
        raise UserError(
            "model.look_forward 2 adds nothing to model.distribution_boxes, where a layer's box teaches all layers "
            "before; leave one of them out"
        )
    for option in ("fgl_weight", "distillation_weight"):
        if getattr(loss, option) != getattr(LossConfig(), option) and not config.distribution_boxes:
            raise UserError(f"loss.{option} is about distributions; it needs model.distribution_boxes true")
    if loss.distillation_weight and not loss.auxiliary:
        raise UserError(
            "loss.distillation_weight teaches the layers before the last; with loss.auxiliary false they have no "
            "losses, so leave one of them out"
        )
    if config.memory_fusion and not config.encoder_layers:
        raise UserError("model.memory_fusion needs encoder layers to fuse; model.encoder_layers is 0, take 1 or more")
    if config.fusion_layers != 1 and not config.memory_fusion:
        raise UserError("model.fusion_layers is about model.memory_fusion; add --model.memory_fusion true")
    if config.query_scale and config.decoder_query_position != "sine":
        raise UserError("model.query_scale scales what each layer encodes; add --model.decoder_query_position sine")
    if config.query_selection == "mixed_wide" and config.decoder_query_position == "sine":
        raise UserError(
            "model.query_selection mixed_wide is about a projection that model.decoder_query_position sine does "
            "without; take mixed"
        )
    if config.relation:
        least = 2 if config.two_stage or config.reference == "box" else 3  # points have no boxes before the first layer
        if not config.refinement or config.decoder_layers < least:
            raise UserError(
                "model.relation compares the boxes of two layers; it needs model.refinement true and "
                f"model.decoder_layers {least} or more"
            )
    if config.hybrid_queries and not loss.hybrid_weight:
        raise UserError("loss.hybrid_weight 0 leaves model.hybrid_queries without losses; raise it, or leave them out")
    for option in ("hybrid_repeats", "hybrid_weight"):
        if getattr(loss, option) != getattr(LossConfig(), option) and not config.hybrid_queries:
            raise UserError(f"loss.{option} is about hybrid queries; it needs model.hybrid_queries, such as 1500")
    if config.proposal_nms is not None and not 0 <= config.proposal_nms < 1:
        raise UserError(
            f"model.proposal_nms is {config.proposal_nms}; it must be at least 0 and below 1 (no boxes overlap by more "
            "than 1), or null"
        )
    for section, option, off in (
        (config, "query_selection", "position"),
        (config, "proposal_head", "objectness"),
        (config, "proposal_nms", None),
        (loss, "proposal_assignment", "hungarian"),
    ):
        name = f"{'model' if section is config else 'loss'}.{option}"
        if getattr(section, option) != off and not config.two_stage:
            raise UserError(f"{name} is about proposals; it needs model.two_stage true")
    if config.reference == "box" and config.two_stage:
        raise UserError("model.reference is about learned queries; with model.two_stage they start from proposed boxes")
    if loss.classification != "focal" and loss.class_weight == 0:
        raise UserError(
            f"loss.classification {loss.classification} does nothing with loss.class_weight 0; leave one of them out"
        )
    if loss.federated and loss.class_weight == 0:
        raise UserError("loss.federated is about the class loss, which loss.class_weight 0 takes away; leave one out")
    if config.denoising_queries and not config.two_stage and config.reference == "point":
        raise UserError("model.denoising_queries start from boxes, as all queries must: add --model.reference box")
    for option in ("denoising_label_noise", "denoising_box_noise"):
        if not config.denoising_queries and getattr(loss, option) != getattr(LossConfig(), option):
            raise UserError(f"loss.{option} is about noised objects; it needs model.denoising_queries, like 100")
    if not loss.denoising_box_noise:
        raise UserError("loss.denoising_box_noise is 0, by which negatives start where positives do; give it more")


def _divisor_near(number: int, wish: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wish))
