"""What a run leaves behind to read: metrics.jsonl, TensorBoard, tables."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from util.distributed import World
from util.errors import UserError


class RunLog:
    """Appends figures to `metrics.jsonl` and TensorBoard in a run's folder.

    Args:
        folder: of the run.
        kept_bytes: when going on from a checkpoint, how long the file was: later lines will be written again.
            None starts a new file.
        step: of the checkpoint, after which TensorBoard shows nothing old.
    """

    def __init__(self, folder: str | Path, kept_bytes: int | None = None, step: int | None = None):
        self.path = Path(folder) / "metrics.jsonl"
        if kept_bytes is None or not self.path.is_file():
            self.path.write_text("")
        elif self.path.stat().st_size > kept_bytes:
            os.truncate(self.path, kept_bytes)
        self.board = SummaryWriter(str(folder), purge_step=None if step is None else step + 1)

    def write(self, kind: str, step: int, **figures: float | int | dict) -> None:
        """One line: `kind` is `train` or `eval`, figures by name."""
        # NaN is not JSON: a mean over fp16 steps, of which some overflowed, has none.
        figures = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **figures}) + "\n")
        for name, value in figures.items():
            if isinstance(value, int | float):
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> int:
        """Bring what is written to the disk; gives the length of `metrics.jsonl`."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Flush TensorBoard."""
        self.board.close()


def make_folder(path: str | Path, option: str) -> Path:
    """The folder, made if it is not there yet."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise UserError(f"{option}: cannot make the folder '{path}': {reason}") from None
    return Path(path)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned plain text: the first column to the left, all others to the right."""
    cells = [[str(c) for c in header], *([_cell(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if value == -1 else f"{value:.3f}"
    return str(value)


def score_tables(figures: dict[str, float], per_class: dict[str, dict[str, float]]) -> str:
    """The COCO figures and the AP of every class, to print."""
    rows = [[name, *(v[k] for k in ("AP", "AP50", "AP75", "objects"))] for name, v in per_class.items()]
    coco = "\n".join(table(names, [[figures[n] for n in names]]) for names in (list(figures)[:6], list(figures)[6:]))
    return f"{coco}\n\n" + table(["class", "AP", "AP50", "AP75", "objects"], rows)


def train_header(config, model, dataset, val_dataset, state, epochs: int, backend: str, world: World) -> str:
    """What a training run is about to do, one line for each thing."""
    cfg, names = config.train, [c.name for c in dataset.categories]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trainable
    batch = min(cfg.batch_size, len(dataset))
    per_process = -(-batch // world.size)
    micro = min(cfg.max_images_per_device or per_process, per_process)
    backbone = config.model.backbone
    deformed = f" with DCN {backbone.dcn} in stages {backbone.dcn_stages}" if backbone.dcn != "none" else ""
    lines = {
        "classes": f"{len(names)}: " + ", ".join(names[:8]) + (", ..." if len(names) > 8 else ""),
        "train": f"{len(dataset)} images, {sum(map(len, dataset.labels))} objects"
        + (f" ({dataset.dropped} degenerate boxes left out)" if dataset.dropped else ""),
        "val": f"{len(val_dataset)} images, {sum(map(len, val_dataset.labels))} objects",
        "model": f"{backbone.name}{deformed}, {trainable:,} trainable parameters, {frozen:,} frozen",
        "batch": f"{batch} images a step"
        + (f", {per_process} in each of {world.size} processes" if world.size > 1 else "")
        + (f", micro-batches of {micro}" if micro < per_process else "")
        + (f", padded to the largest of {'the batch' if cfg.padding == 'batch' else 'each micro-batch'}"),
        "length": f"{epochs} epochs of {state.steps_per_epoch} steps"
        + (f", from step {state.global_step} on" if state.global_step else ""),
        "lr": f"{cfg.lr:g}, backbone {cfg.lr_backbone:g}, offsets {cfg.lr * cfg.lr_offset_factor:g}, {cfg.schedule}",
        "device": f"{state.device}, operator {backend}, {cfg.precision}, seed {cfg.seed}"
        + (", activations checkpointed" if cfg.checkpoint_activations else "")
        + (", compiled" if cfg.compile else "")
        + (f", EMA {cfg.ema_decay:g}" if cfg.ema_decay else "")
        + (f", feature mimicking {config.loss.mimic_weight:g}" if config.loss.mimic_weight else ""),
        "output": cfg.output,
    }
    if backbone.weights == "none" and backbone.norm == "frozen" and not (state.global_step or config.model.init_from):
        lines["note"] = (
            "a random backbone hardly learns with frozen norms: "
            "--model.backbone.norm trainable --model.backbone.frozen_stages 0"
        )
    return "\n".join(f"{name:>8}  {text}" for name, text in lines.items()) + "\n"
