"""The lines that a run prints before it begins."""

from datasets.protocol import LVIS, protocol_for
from models.from_config import weighted_class_loss
from util.config import Config, ModelConfig
from util.distributed import World


def train_header(config, model, dataset, val_dataset, state, epochs: int, backend: str, world: World) -> str:
    """Say what a training run is about to do: data, model, batch, length, rates, device, folder."""
    cfg, names = config.train, [c.name for c in dataset.categories]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trainable
    batch = min(cfg.batch_size, len(dataset))
    per_process = -(-batch // world.size)
    micro = min(cfg.max_images_per_device or per_process, per_process)
    backbone, recipe = config.model.backbone, recipe_of(config, dataset.strong_epochs)
    deformed = f" with DCN {backbone.dcn} in stages {backbone.dcn_stages}" if backbone.dcn != "none" else ""
    brought = state.global_step or config.model.init_from
    weights = "" if brought else f" (weights: {backbone.weights})"
    lines = {
        "classes": f"{len(names)}: " + ", ".join(names[:8]) + (", ..." if len(names) > 8 else ""),
        "train": f"{len(dataset)} images, {dataset.labels.counts.sum()} objects"
        + (f" ({dataset.dropped} degenerate boxes left out)" if dataset.dropped else "")
        + (
            f", every object listed of {dataset.exhaustive.counts.mean():.1f} classes an image"
            if dataset.exhaustive is not None
            else ""
        ),
        "val": f"{len(val_dataset)} images, {val_dataset.labels.counts.sum()} objects"
        + (
            ", scored by LVIS's protocol" if protocol_for(val_dataset.annotations, config.data.protocol) == LVIS else ""
        ),
        "model": f"{backbone.name}{weights}{deformed}, {trainable:,} trainable parameters, {frozen:,} frozen",
        "pixels": f"mean {_numbers(backbone.mean)}, deviation {_numbers(backbone.std)}, "
        + ("padding ignored" if config.model.ignore_padding else "zero on padding"),
        "batch": f"{batch} images a step"
        + (f", {per_process} in each of {world.size} processes" if world.size > 1 else "")
        + (f", micro-batches of {micro}" if micro < per_process else "")
        + (f", padded to the largest of {'the batch' if cfg.padding == 'batch' else 'each micro-batch'}"),
        "length": f"{epochs} epochs of {state.steps_per_epoch} steps"
        + (f", from step {state.global_step} on" if state.global_step else "")
        + (f", or until {cfg.best_metric} has not risen in {cfg.early_stop} evaluations" if cfg.early_stop else ""),
        "lr": f"{cfg.lr:g}, backbone {cfg.lr_backbone:g}"
        + (f" x {cfg.layer_decay:g} for each layer below its last" if cfg.layer_decay is not None else "")
        + f", offsets {cfg.lr * cfg.lr_offset_factor:g}, {cfg.schedule}"
        + (f" from {cfg.flat_share:.0%} on" if cfg.schedule == "flat_cosine" else ""),
        "device": f"{state.device}, operator {backend}, {cfg.precision}, seed {cfg.seed}"
        + (", activations checkpointed" if cfg.checkpoint_activations else "")
        + (", compiled" if cfg.compile else "")
        + (f", EMA {cfg.ema_decay:g}" if cfg.ema_decay else "")
        + (f", feature mimicking {config.loss.mimic_weight:g}" if config.loss.mimic_weight else ""),
        **({"recipe": recipe} if recipe else {}),
        **({"kept": f"{', '.join(cfg.freeze)}: without gradient, dropout or new statistics"} if cfg.freeze else {}),
        "output": cfg.output + (f", best.pth by {cfg.best_metric}" if cfg.best_metric != "AP" else ""),
    }
    if backbone.weights == "none" and backbone.norm == "frozen" and not brought:
        lines["note"] = (
            "a random backbone hardly learns with frozen norms: "
            "--model.backbone.norm trainable --model.backbone.frozen_stages 0"
        )
    return "\n".join(f"{name:>8}  {text}" for name, text in lines.items()) + "\n"


def recipe_of(config: Config, strong_epochs: int) -> str:
    """What later detectors added and this run has, such as `tokens, class head, denoising 100`; empty if nothing.

    Args:
        config: of the run.
        strong_epochs: epochs that have the strong augmentations.
    """
    model, loss, data, plain = config.model, config.loss, config.data, ModelConfig()
    kind = loss.classification
    strong = {name: getattr(data, name) for name in ("mosaic", "mixup", "large_scale_jitter", "copy_paste")}
    augmented = [f"{name.replace('_', ' ')} {share:g}" for name, share in strong.items() if share]
    on = {
        "hybrid encoder": model.encoder == "hybrid",
        "learned boxes": model.reference == "box",
        model.query_selection: model.query_selection != "position",
        "class head": model.proposal_head == "class",
        "ATSS": loss.proposal_assignment == "atss",
        f"NMS {model.proposal_nms}": model.proposal_nms is not None,
        f"look forward {model.look_forward}": model.look_forward > 1,
        "distribution boxes": model.distribution_boxes,
        f"distillation {loss.distillation_weight:g}": loss.distillation_weight,
        "memory fusion" + (" by two layers" if model.fusion_layers == 2 else ""): model.memory_fusion,
        "relation": model.relation,
        "sine positions" + (", scaled" if model.query_scale else ""): model.decoder_query_position == "sine",
        "decoder norm": model.decoder_norm,
        f"position temperature {model.position_temperature:g}": model.position_temperature
        != plain.position_temperature,
        f"position offset {model.position_offset:g}": model.position_offset != plain.position_offset,
        f"box epsilon {model.box_epsilon:g}": model.box_epsilon != plain.box_epsilon,
        f"groups {model.query_groups}": model.query_groups > 1,
        f"hybrid {model.hybrid_queries}": model.hybrid_queries,
        f"denoising {model.denoising_queries}": model.denoising_queries,
        f"class loss {kind} {weighted_class_loss(loss)[0]:g}": kind != "focal",
        "federated class loss": loss.federated,
        f"{', '.join(augmented)} in the first {strong_epochs} epochs": augmented,
    }
    return ", ".join(name for name, is_on in on.items() if is_on)


def _numbers(values) -> str:
    """One number if all are equal, else each."""
    return "/".join(f"{v:g}" for v in (values if len(set(values)) > 1 else values[:1]))
