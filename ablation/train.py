"""The sweep that trains: plan, run every cell, compare."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from ablation.costs import Cost, DataSize, data_sizes, measure_side_by_side, untrained_cost
from ablation.grid import Cell, cells_of, variants_of
from ablation.processes import locked, run_cells, shares, visible_gpus
from ablation.records import Record, check_folder, read_records
from ablation.sweep import Sweep
from engine.backend import selected_backend
from models.from_config import build_model
from util.command_config import AblateConfig
from util.config import Config
from util.config_files import to_yaml
from util.devices import pick_device
from util.files import make_folder
from util.options import from_dict
from util.progress import progress
from util.signals import STOPPED, StopRequest


def ablate_training(config: AblateConfig) -> int:
    """Train every variant with every seed, going on where an earlier call ended, and compare them.

    Returns:
        0, 1 if a run failed, or 75 if the sweep was asked to stop.

    Raises:
        UserError: options or a folder that cannot be used.
    """
    cells = cells_of(from_dict(Config, asdict(config)), variants_of(config.grid, config.variants), config.seeds)
    device, output = pick_device(config.train.device), Path(config.output)
    backend = selected_backend(device)
    check_folder(output, eval_only=False)
    records = read_records(cells, output)
    first = {cell.variant.name: cell.config for cell in reversed(cells)}
    data = data_sizes(first)
    gpus = visible_gpus() if device.type == "cuda" and device.index in (None, 0) else []
    places = shares(config.jobs, gpus)
    costs = estimate_costs(cells, records, first, data, device, int(places[0].get("OMP_NUM_THREADS", 0)))
    sweep = Sweep(output, cells, list(config.grid), records, costs)
    print(sweep.plan(data, config.jobs, f"{device}, operator {backend}"))
    if config.dry_run:
        return 0

    make_folder(output, "output")
    with StopRequest() as stop:
        run_sweep(sweep, config, places, stop)
        if stop.requested:
            print(f"stopped; the same command goes on, in {output}", flush=True)
            return STOPPED
    possible = {name: first[name] for name, cost in costs.items() if not cost.failure}
    models = {n: build_model(c.model, data[n].classes, c.loss, "none") for n, c in possible.items()}
    measure_side_by_side(models, costs, device, config.repeats)
    print(sweep.summary())
    return int(any(record.status == "failed" for record in records.values()))


def estimate_costs(
    cells: list[Cell],
    records: Mapping[str, Record],
    configs: Mapping[str, Config],
    data: Mapping[str, DataSize],
    device: torch.device,
    threads: int,
) -> dict[str, Cost]:
    """The cost of each variant; a training step is timed where runs are left to do.

    Args:
        cells: all of them.
        records: of those that were begun, by name.
        configs, data: of each variant, by name.
        device: where.
        threads: that each run will have; 0 for as many as this process has.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)  # as the runs, whose time is estimated
    unfinished = {c.variant.name for c in cells if c.name not in records or records[c.name].status != "done"}
    costs = {
        name: untrained_cost(configs[name], data[name], device, timed=name in unfinished)
        for name in progress(dict.fromkeys(c.variant.name for c in cells), "plan")
    }
    torch.set_num_threads(before)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the runs need it
    return costs


def run_sweep(sweep: Sweep, config: AblateConfig, places: list[dict[str, str]], stop: StopRequest) -> None:
    """Run the cells that are left, one at each place at a time; the table is brought up to date as they end.

    Args:
        sweep: plan and records.
        config: as it was called, for sweep.yaml.
        places: environment of each of the runs that go on at once.
        stop: looked at all the time.
    """
    output, records = sweep.folder, sweep.records
    with locked(output) as lock, progress(None, "sweep") as bar:
        (output / "sweep.yaml").write_text(to_yaml(config))
        records.update(read_records(sweep.cells, output))  # of another sweep that has just ended
        sweep.refuse_impossible()
        names = [cell.name for cell in sweep.left]

        def ended(cell: Cell, record: Record) -> None:
            bar.write(sweep.line(cell, record, names, config.jobs))
            sys.stdout.flush()  # into a file, too, at once
            bar.update(record.status != "unfinished")
            try:
                sweep.write()
            except OSError as error:  # a full disk must not end the runs that are going on
                print(f"table and plots of '{output}' are not up to date: {error}", file=sys.stderr)

        def going_on(now: list[str]) -> None:
            bar.set_postfix_str(", ".join(now))

        bar.reset(len(names))
        run_cells(sweep.left, records, output, places, lock, stop, ended, going_on)
