"""From finished runs to a table: means, deviations, differences; CSV and Markdown."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from ablation.costs import Cost
from ablation.grid import Cell, Variant, short_names
from ablation.records import Record

# Columns of the Markdown table, and the figure in each; results.csv has every figure.
DIFFERENCE = "Δ AP"
COLUMNS = {
    **{"AP": "AP", DIFFERENCE: None, "AP50": "AP50", "AP75": "AP75"},
    **{"APs": "AP_small", "APm": "AP_medium", "APl": "AP_large"},
}
ABSENT = -1  # as pycocotools has it: nothing to score


@dataclass(frozen=True)
class Spread:
    """Mean and sample deviation (n - 1) over seeds; `deviation` is None for a single one."""

    mean: float
    deviation: float | None
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread | None":
        """Mean and deviation of some numbers; None for no numbers."""
        if not values:
            return None
        return Spread(mean(values), stdev(values) if len(values) > 1 else None, len(values))

    def text(self, factor: float = 1.0, digits: int = 1, sign: bool = False) -> str:
        """`44.5 ± 0.2`."""
        first = f"{self.mean * factor:{'+' if sign else ''}.{digits}f}"
        return first if self.deviation is None else f"{first} ± {self.deviation * factor:.{digits}f}"


@dataclass
class Row:
    """A variant in the table.

    Attributes:
        variant: what it changes.
        figures: spread over its finished runs by name; those with nothing to score are not there.
        difference: of AP to the first row's run with the same seed; None if no seed is in both.
        minutes: of training.
        cost: of the model.
        done, failed, left: how many runs.
        error: of a failed run, or "".
        by_seed: AP of each finished run.
    """

    variant: Variant
    figures: dict[str, Spread]
    difference: Spread | None
    minutes: Spread | None
    cost: Cost
    done: int
    failed: int
    left: int
    error: str
    by_seed: dict[int, float]


def rows_of(cells: Sequence[Cell], records: Mapping[str, Record], costs: Mapping[str, Cost]) -> list[Row]:
    """One row for each variant, in the order of the plan."""
    by_variant: dict[str, list[Cell]] = {}
    for cell in cells:
        by_variant.setdefault(cell.variant.name, []).append(cell)
    rows: list[Row] = []
    first: dict[int, float] = {}
    for group in by_variant.values():
        variant = group[0].variant
        found = {c.seed: records[c.name] for c in group if c.name in records}
        done = {seed: record for seed, record in found.items() if record.status == "done"}
        failed = [record for record in found.values() if record.status == "failed"]
        by_seed = {seed: record.figures["AP"] for seed, record in done.items()}
        if not rows:
            first = by_seed
        figures = {
            name: spread
            for name in next(iter(done.values())).figures
            if (spread := Spread.of([v for r in done.values() if (v := r.figures.get(name, ABSENT)) != ABSENT]))
        } if done else {}  # fmt: skip
        both = [ap - first[seed] for seed, ap in by_seed.items() if seed in first]
        rows.append(
            Row(
                variant=variant,
                figures=figures,
                difference=Spread.of(both) if rows else None,
                minutes=Spread.of([record.seconds / 60 for record in done.values()]),
                cost=costs.get(variant.name, Cost()),
                done=len(done),
                failed=len(failed),
                left=len(group) - len(done) - len(failed),
                error=failed[0].error if failed else "",
                by_seed=by_seed,
            )
        )
    return rows


def markdown(rows: Sequence[Row], trained: bool = True) -> str:
    """The table as Markdown, with what its columns mean below it.

    Args:
        rows: of the table.
        trained: whether the runs were trained, or only evaluated.
    """
    columns, settings = _settings(rows)
    size = next((row.cost.size for row in rows if row.cost.size != (0, 0)), (0, 0))
    header = [*columns, *COLUMNS, "params M", "GFLOPs", "latency ms", "peak MiB", "minutes", "runs"]
    lines = []
    for row, values in zip(rows, settings):
        scores = {
            heading: row.figures[name].text(100) if name in row.figures else "-" for heading, name in COLUMNS.items()
        }
        scores[DIFFERENCE] = row.difference.text(100, sign=True) if row.difference else "-"
        cost = row.cost
        lines.append(
            [
                *values,
                *scores.values(),
                f"{cost.trainable / 1e6:.2f}" if cost.trainable else "-",
                _number(cost.flops, 1e-9, 2),
                _number(cost.latency, 1e3, 1),
                _number(cost.peak_bytes, 2**-20, 0),
                row.minutes.text() if row.minutes else "-",
                f"{row.done}"
                + (f", {row.failed} failed" if row.failed else "")
                + (f", {row.left} left" if row.left else ""),
            ]
        )
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths)) + " |" for line in [header, *lines]]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    notes = [
        "AP in percent: mean ± sample deviation over the runs (seeds) of a variant, each at its last evaluation. Δ AP: "
        "mean and deviation of the differences to the first row, seed by seed.",
        f"Parameters that are trained; GFLOPs (a multiply-add is two), latency (median, variants taking turns) and "
        f"most memory of tensors of a forward pass of one image of {size[0]}x{size[1]} in fp32; "
        + ("minutes of each run from start to end." if trained else "minutes of each evaluation."),
    ]
    sizes = {row.cost.size for row in rows} - {(0, 0)}
    if len(sizes) > 1:
        notes[1] = notes[1].replace(f" of {size[0]}x{size[1]}", " of the variant's own evaluation size")
    failures = [f"- `{row.variant.name}`: {row.error}" for row in rows if row.error]
    return "\n".join([*text, "", *notes, *(["", "Failed:", "", *failures] if failures else []), ""])


def _settings(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns that tell variants apart and each row's values: swept options, or names where they do not suffice."""
    keys = list(dict.fromkeys(key for row in rows for key in row.variant.values))
    everywhere = [key for key in keys if all(key in row.variant.values for row in rows)]
    named = len(everywhere) < len(keys) or len({_values(row, everywhere) for row in rows}) < len(rows) or not keys
    names = short_names(everywhere)
    columns = (["variant"] if named else []) + [names[key] for key in everywhere if not named]
    values = [
        [row.variant.name.replace("|", "\\|")] if named else [show(row.variant.values[key]) for key in everywhere]
        for row in rows
    ]
    return columns, values


def _values(row: Row, keys: Sequence[str]) -> str:
    return repr([row.variant.values[key] for key in keys])


def show(value: Any) -> str:
    """A swept value as a person writes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(show, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def results_csv(cells: Sequence[Cell], records: Mapping[str, Record], costs: Mapping[str, Cost]) -> str:
    """One line for each run, also for those that failed or are left."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.variant.values))
    names = list(dict.fromkeys(name for record in records.values() for name in record.figures))
    header = ["variant", *keys, "seed", "status", *names, "minutes", "parameters", "trainable", "flops"]
    header += ["latency_s", "peak_bytes", "folder", "error"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    for cell in cells:
        record = records.get(cell.name) or Record("left", {})
        cost = costs.get(cell.variant.name, Cost())
        swept = [show(cell.variant.values[key]) if key in cell.variant.values else "" for key in keys]
        figures = ["" if (v := record.figures.get(n, ABSENT)) == ABSENT else v for n in names]
        minutes = round(record.seconds / 60, 3)
        writer.writerow(
            [
                *(cell.variant.name, *swept, cell.seed, record.status, *figures, minutes),
                *(cost.parameters or "", cost.trainable or "", _blank(cost.flops), _blank(cost.latency)),
                *(_blank(cost.peak_bytes), cell.name, record.error),
            ]
        )
    return text.getvalue()


def _blank(value: float | None) -> float | str:
    return "" if value is None else value
