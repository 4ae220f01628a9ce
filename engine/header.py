"""The lines that a run prints before it begins."""

from models.from_config import weighted_class_loss
from util.distributed import World


def train_header(config, model, dataset, val_dataset, state, epochs: int, backend: str, world: World) -> str:
    """Say what a training run is about to do: data, model, batch, length, rates, device, folder."""
    cfg, names = config.train, [c.name for c in dataset.categories]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trainable
    batch = min(cfg.batch_size, len(dataset))
    per_process = -(-batch // world.size)
    micro = min(cfg.max_images_per_device or per_process, per_process)
    backbone, kind = config.model.backbone, config.loss.classification
    deformed = f" with DCN {backbone.dcn} in stages {backbone.dcn_stages}" if backbone.dcn != "none" else ""
    brought = state.global_step or config.model.init_from
    weights = "" if brought else f" (weights: {backbone.weights})"
    lines = {
        "classes": f"{len(names)}: " + ", ".join(names[:8]) + (", ..." if len(names) > 8 else ""),
        "train": f"{len(dataset)} images, {sum(map(len, dataset.labels))} objects"
        + (f" ({dataset.dropped} degenerate boxes left out)" if dataset.dropped else ""),
        "val": f"{len(val_dataset)} images, {sum(map(len, val_dataset.labels))} objects",
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
        "lr": f"{cfg.lr:g}, backbone {cfg.lr_backbone:g}, offsets {cfg.lr * cfg.lr_offset_factor:g}, {cfg.schedule}",
        "device": f"{state.device}, operator {backend}, {cfg.precision}, seed {cfg.seed}"
        + (", activations checkpointed" if cfg.checkpoint_activations else "")
        + (", compiled" if cfg.compile else "")
        + (f", EMA {cfg.ema_decay:g}" if cfg.ema_decay else "")
        + (f", class loss {kind} {weighted_class_loss(config.loss)[0]:g}" if kind != "focal" else "")
        + (f", feature mimicking {config.loss.mimic_weight:g}" if config.loss.mimic_weight else ""),
        **({"kept": f"{', '.join(cfg.freeze)}: without gradient, dropout or new statistics"} if cfg.freeze else {}),
        "output": cfg.output + (f", best.pth by {cfg.best_metric}" if cfg.best_metric != "AP" else ""),
    }
    if backbone.weights == "none" and backbone.norm == "frozen" and not brought:
        lines["note"] = (
            "a random backbone hardly learns with frozen norms: "
            "--model.backbone.norm trainable --model.backbone.frozen_stages 0"
        )
    return "\n".join(f"{name:>8}  {text}" for name, text in lines.items()) + "\n"


def _numbers(values) -> str:
    """One number if all are equal, else each."""
    return "/".join(f"{v:g}" for v in (values if len(set(values)) > 1 else values[:1]))
