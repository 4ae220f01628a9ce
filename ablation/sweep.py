"""A sweep: its plan and progress as text, and the table and plots in its folder."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ablation.charts import plot_curves, plot_scores
from ablation.costs import Cost, DataSize, estimate
from ablation.grid import Cell
from ablation.records import Record
from ablation.results import markdown, results_csv, rows_of
from util.tables import table


class Sweep:
    """All runs of a sweep with their records and costs, and the files that show them.

    Args:
        folder: the sweep's folder.
        cells: all runs.
        grid: the swept options.
        records: records of the runs that were begun, by name.
        costs: costs of the variants, by name.
        trained: whether runs are trained; otherwise they are only evaluated.

    Attributes:
        estimates: seconds that runs are expected to take, by name; `plan` fills them in.
        ended: names of the runs that have succeeded or failed; `line` adds them.
    """

    def __init__(
        self,
        folder: Path,
        cells: Sequence[Cell],
        grid: Sequence[str],
        records: dict[str, Record],
        costs: Mapping[str, Cost],
        trained: bool = True,
    ):
        self.folder, self.cells, self.grid = folder, list(cells), list(grid)
        self.records, self.costs, self.trained = records, costs, trained
        self.estimates: dict[str, float] = {}
        self.ended: list[str] = []

    @property
    def left(self) -> list[Cell]:
        """Cells to run: those that are neither finished nor impossible. Failed cells are tried again."""
        return [c for c in self.cells if not self._is_done(c) and not self.costs[c.variant.name].failure]

    def _is_done(self, cell: Cell) -> bool:
        return cell.name in self.records and self.records[cell.name].status == "done"

    def plan(self, data: Mapping[str, DataSize], jobs: int, where: str) -> str:
        """Describe what will run, what each variant costs, and about how long everything takes.

        Args:
            data: the size of each variant's data, by the variant's name.
            jobs: number of runs at one time.
            where: device and operator, in words.
        """
        seconds = {c.name: estimate(c.config, self.costs[c.variant.name], data[c.variant.name]) for c in self.cells}
        self.estimates = {name: s for name, s in seconds.items() if s}
        rows = []
        for name in dict.fromkeys(c.variant.name for c in self.cells):
            cells, cost = [c for c in self.cells if c.variant.name == name], self.costs[name]
            done = sum(map(self._is_done, cells))
            cells_text = f"{len(cells)}" + (f", {done} done" if done else "")
            if cost.failure:
                rows.append([name, cells_text, "-", "-", "impossible"])
                continue
            minutes = self.estimates.get(cells[0].name)
            minutes_text = f"{minutes / 60:.1f}" if minutes else "-"
            flops_text = "-" if cost.flops is None else f"{cost.flops / 1e9:.2f}"
            rows.append([name, cells_text, f"{cost.trainable:,}", flops_text, minutes_text])
        reasons = [f"{n} cannot be built: {c.failure}" for n, c in self.costs.items() if c.failure]
        begun = [c for c in self.left if c.name in self.records]
        left = f"{len(self.left)} of {len(self.cells)} runs to do" + (f" ({len(begun)} begun before)" if begun else "")
        total = sum(self.estimates.get(c.name, 0.0) for c in self.left) / jobs
        length = f"about {duration(total)}, by a few timed steps" if total else "no estimate"
        several = f", {jobs} at once" if jobs > 1 else ""
        lines = [table(["variant", "runs", "parameters", "GFLOPs", "min each"], rows), *reasons]
        lines += [f"{left}{several}, on {where}: {length}; in {self.folder}", ""]
        return "\n".join(["", *lines])

    def refuse_impossible(self) -> None:
        """Record the runs whose model cannot be built as failed, with the reason."""
        for cell in self.cells:
            if (reason := self.costs[cell.variant.name].failure) and not self._is_done(cell):
                self.records[cell.name] = Record("failed", {}, error=reason)

    def line(self, cell: Cell, record: Record, names: Collection[str], jobs: int) -> str:
        """Describe a run that has just ended, and how long the rest will take, estimated from the finished runs.

        Args:
            cell, record: the run and its record.
            names: names of the runs that were left when this command began.
            jobs: number of runs at one time.
        """
        if record.status != "unfinished":
            self.ended.append(cell.name)
        ended = self.ended
        done = [n for n in ended if self.records[n].status == "done"]
        number = f"[{len(ended):>{len(str(len(names)))}}/{len(names)}] {cell.name}  "
        if record.status == "done":
            ap = "  ".join(f"{n} {record.figures[n]:.3f}" for n in ("AP", "AP50") if n in record.figures)
            text = f"{ap}  {duration(record.seconds)}"
        else:
            text = f"FAILED: {record.error}" if record.status == "failed" else "stopped; can go on"
        expected = sum(self.estimates.get(n, 0.0) for n in done)
        future = sum(self.estimates.get(n, 0.0) for n in names if n not in ended)
        if not (expected and future):
            return number + text
        pace = sum(self.records[n].seconds for n in done) / expected
        spent = sum(self.records[n].elapsed for n in names if n in self.records and n not in ended)
        return f"{number}{text}; about {duration(max(0.0, pace * future - spent) / jobs)} to go"

    def write(self) -> list[Path]:
        """Write the table, the CSV file and the plots of the results so far; returns the files."""
        rows = rows_of(self.cells, self.records, self.costs)
        (self.folder / "table.md").write_text(markdown(rows, self.trained), encoding="utf-8")
        (self.folder / "results.csv").write_text(results_csv(self.cells, self.records, self.costs), encoding="utf-8")
        plots = [plot_scores(rows, self.grid, self.folder / "scores.png")]
        if self.trained:
            plots.append(plot_curves(self.cells, self.folder, self.folder / "curves.png"))
        drawn = [path for path in plots if path is not None]
        return [self.folder / "table.md", self.folder / "results.csv", *drawn]

    def summary(self) -> str:
        """Write the files, and describe the end: the table, the number of failed runs, and where the files are."""
        files = ", ".join(path.name for path in self.write())
        failed = sum(r.status == "failed" for r in self.records.values())
        warning = f"{failed} of {len(self.cells)} runs failed\n" if failed else ""
        return f"\n{(self.folder / 'table.md').read_text(encoding='utf-8')}\n{warning}{files} are in {self.folder}"


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.0f} {name}" if unit == 1 or value >= 10 else f"{value:.1f} {name}"
    return f"{seconds / 86400:.1f} days"
