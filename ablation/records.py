"""Records, configurations and figures of a sweep's runs, kept in their folders."""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ablation.grid import Cell
from util.checkpoint_write import kept_checkpoints
from util.config import Config
from util.errors import UserError

# Options that change where or how a run is computed, but not its result.
IMMATERIAL = {"data.workers"} | {
    f"train.{option}"
    for option in (
        *("output", "resume", "device", "log_every", "save_every", "keep_checkpoints", "eval_batch_size"),
        *("checkpoint_activations", "compile"),
    )
}


@dataclass
class Record:
    """The record of a run, kept in `cell.json` in its folder.

    Attributes:
        status: `done`, `failed`, or `unfinished` (it runs, or was stopped or killed, and can go on).
        config: the run's configuration.
        figures: the figures of its last evaluation, by name.
        error: why it failed, or "".
        attempts: for each time it ran, the begin (seconds since the epoch) and the duration in seconds; None while it
            runs, and after it was killed until the record is read again.
    """

    status: str
    config: dict[str, Any]
    figures: dict[str, float] = field(default_factory=dict)
    error: str = ""
    attempts: list[tuple[float, float | None]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The duration of all attempts, in seconds, without one that is going on."""
        return sum(duration or 0.0 for _, duration in self.attempts)

    @property
    def elapsed(self) -> float:
        """The duration of all attempts, in seconds; one that is going on counts until now."""
        return sum(time.time() - begun if duration is None else duration for begun, duration in self.attempts)

    @staticmethod
    def read(folder: Path) -> "Record | None":
        """Read the record of a folder; None if there is none.

        Raises:
            UserError: the record is damaged.
        """
        file = folder / "cell.json"
        if not file.is_file():
            return None
        try:
            record = Record(**json.loads(file.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise UserError(f"'{file}' is damaged ({error}); delete it, and the run will be looked at anew") from None
        if record.attempts and record.attempts[-1][1] is None:  # killed, but it ran at least until it last wrote
            begun = record.attempts[-1][0]
            wrote = max((p.stat().st_mtime for p in folder.iterdir()), default=begun)
            record.attempts[-1] = (begun, max(0.0, wrote - begun))
        return record

    def write(self, folder: Path) -> None:
        """Write the record into a folder, whole or not at all."""
        temporary = folder / "cell.json.tmp"
        temporary.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        temporary.replace(folder / "cell.json")


def same_run(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first option that differs between two configurations and can change results; None if there is none.

    An option that one of them lacks, because another version wrote it, counts as the default.
    """
    defaults = _leaves(asdict(Config()))
    first, second = defaults | _leaves(a), defaults | _leaves(b)
    immaterial = set(IMMATERIAL)
    if first["train.padding"] == "batch" and first["model.backbone.norm"] == "frozen":
        immaterial.add("train.max_images_per_device")  # gradient accumulation is exact then
    differing = (k for k in first | second if k not in immaterial and first.get(k) != second.get(k))
    return next(differing, None)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def read_records(cells: Sequence[Cell], folder: Path) -> dict[str, Record]:
    """The records of the cells that were begun, by name.

    Raises:
        UserError: a cell was run with another configuration, so it does not belong in the same table.
    """
    records = {}
    for cell in cells:
        record = Record.read(folder / cell.name)
        if record is None:
            continue
        option = same_run(record.config, asdict(cell.config))
        if option and (record.status != "failed" or kept_checkpoints(folder / cell.name)):
            raise UserError(
                f"'{folder / cell.name}' was run with another {option}; choose another --output, or delete that folder"
            )
        if not option:
            records[cell.name] = record
    return records


def check_folder(folder: Path, eval_only: bool) -> None:
    """Refuse a folder that holds a sweep of the other kind (trained runs or evaluations), because tables would mix.

    Raises:
        UserError: the folder holds the other kind.
    """
    file = folder / "sweep.yaml"
    if file.is_file():
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(held, dict) and bool(held.get("eval_only")) != eval_only:
            kind = "trained runs" if eval_only else "evaluations (eval_only)"
            raise UserError(f"'{folder}' holds a sweep of {kind}; choose another --output")


def last_figures(file: Path) -> dict[str, float]:
    """The figures of a run's last evaluation, with averaged weights if those are evaluated; empty if there is none."""
    evaluated = [line for line in read_log(file) if line["kind"] in ("eval", "eval_ema")]
    last = evaluated[-1] if evaluated else {}
    return {k: v for k, v in last.items() if k not in ("kind", "step", "epoch") and isinstance(v, int | float)}


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`. A last line that is only half written is left out."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines
