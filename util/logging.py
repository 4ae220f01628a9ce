"""The log of a run: metrics.jsonl and TensorBoard."""

import json
import math
import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Appends figures to `metrics.jsonl` and TensorBoard in a run's folder.

    Args:
        folder: the run's folder.
        kept_bytes: when going on from a checkpoint, how long the file was: later lines will be written again.
            None starts a new file.
        step: the checkpoint's step; TensorBoard shows nothing old after it.
    """

    def __init__(self, folder: str | Path, kept_bytes: int | None = None, step: int | None = None):
        self.path = Path(folder) / "metrics.jsonl"
        if kept_bytes is None or not self.path.is_file():
            self.path.write_text("")
        elif self.path.stat().st_size > kept_bytes:
            os.truncate(self.path, kept_bytes)
        self.board = SummaryWriter(str(folder), purge_step=None if step is None else step + 1)

    def write(self, kind: str, step: int, **figures: float | int | dict | None) -> None:
        """Write a line: `kind` is `train` or `eval`, then the figures by name."""
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
