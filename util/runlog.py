"""What a run leaves behind to read: metrics.jsonl, TensorBoard, tables."""

import json
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from util.errors import UserError


class RunLog:
    """Appends figures to `metrics.jsonl` and TensorBoard in a run's folder.

    Args:
        folder: of the run.
        resumed_at: when going on from a checkpoint, its step: lines of later steps are dropped, for they will be
            written again. None starts a new file.
    """

    def __init__(self, folder: str | Path, resumed_at: int | None = None):
        self.path = Path(folder) / "metrics.jsonl"
        kept = []
        if resumed_at is not None and self.path.is_file():
            lines = self.path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= resumed_at]
        self.path.write_text("".join(line + "\n" for line in kept))
        self.board = SummaryWriter(str(folder), purge_step=None if resumed_at is None else resumed_at + 1)

    def write(self, kind: str, step: int, **figures: float | int | dict) -> None:
        """One line: `kind` is `train` or `eval`, figures by name."""
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **figures}) + "\n")
        for name, value in figures.items():
            if isinstance(value, int | float):
                self.board.add_scalar(f"{kind}/{name}", value, step)

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


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut short


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


def train_header(config, model, dataset, val_dataset, device, num_steps: int, epochs: int, backend: str) -> str:
    """What a training run is about to do, one line for each thing."""
    cfg, names = config.train, [c.name for c in dataset.categories]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trainable
    micro = min(cfg.max_images_per_device or cfg.batch_size, cfg.batch_size)
    lines = {
        "classes": f"{len(names)}: " + ", ".join(names[:8]) + (", ..." if len(names) > 8 else ""),
        "train": f"{len(dataset)} images, {sum(map(len, dataset.labels))} objects"
        + (f" ({dataset.dropped} degenerate boxes left out)" if dataset.dropped else ""),
        "val": f"{len(val_dataset)} images, {sum(map(len, val_dataset.labels))} objects",
        "model": f"{config.model.backbone.name}, {trainable:,} trainable parameters, {frozen:,} frozen",
        "batch": f"{cfg.batch_size} images a step"
        + (f" in micro-batches of {micro}" if micro < cfg.batch_size else ""),
        "length": f"{epochs} epochs of {num_steps} steps",
        "lr": f"{cfg.lr:g}, backbone {cfg.lr_backbone:g}, offsets {cfg.lr * cfg.lr_offset_factor:g}, {cfg.schedule}",
        "device": f"{device}, operator {backend}, {cfg.precision}, seed {cfg.seed}",
        "output": cfg.output,
    }
    backbone = config.model.backbone
    if backbone.weights == "none" and backbone.norm == "frozen" and not (cfg.resume or config.model.init_from):
        lines["note"] = (
            "a random backbone hardly learns with frozen norms: "
            "--model.backbone.norm trainable --model.backbone.frozen_stages 0"
        )
    return "\n".join(f"{name:>8}  {text}" for name, text in lines.items()) + "\n"
