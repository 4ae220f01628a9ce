"""Runs as processes: failures, stops, kills, and going on; with a stand-in for main.py, and once for real."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from ablation import processes as runs
from ablation.grid import cells_of, variants_of
from ablation.processes import locked, run_cells, shares
from ablation.records import Record, last_figures, read_records, same_run
from util.config import Config
from util.errors import UserError

# Takes `--config FILE`, as training does, and behaves as the learning rate says: it is the only option it looks at.
STAND_IN = """
    import json, os, pathlib, signal, sys, time, yaml
    config = yaml.safe_load(open(sys.argv[sys.argv.index("--config") + 1]))
    folder, lr = pathlib.Path(config["train"]["output"]), config["train"]["lr"]
    with (folder / "starts").open("a") as file:
        print(time.time(), os.environ.get("OMP_NUM_THREADS"), sys.argv[-2:], file=file)
    if lr == 2:
        print("error: this cannot be", file=sys.stderr); sys.exit(2)
    if lr == 3:
        raise RuntimeError("a mistake")
    if lr == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if lr == 5 and not (folder / "half").exists():
        def stop(*_):
            (folder / "half").write_text("saved"); sys.exit(75)
        signal.signal(signal.SIGTERM, stop)
        (folder / "ready").write_text("")
        time.sleep(60)
    if lr == 6:
        os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)  # as if told to stop before it heeds signals
    if lr == 7:
        sys.exit(0)  # without a score
    time.sleep(1.5 if lr < 0.2 else 0)  # long enough to overlap on a busy machine
    with (folder / "metrics.jsonl").open("w") as file:
        for epoch, ap in enumerate((0.1, lr)):
            print(json.dumps({"kind": "eval", "step": epoch, "epoch": epoch, "AP": ap, "per_class": {}}), file=file)
    with (folder / "ended").open("a") as file:
        print(time.time(), file=file)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    path = tmp_path / "stand_in.py"
    path.write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setattr(runs, "MAIN", path)
    return tmp_path / "sweep"


class Stop:
    requested = False


def sweep(folder, rates, jobs=1, stop=None, seeds=1, ended=None):
    folder.mkdir(exist_ok=True)
    cells = cells_of(Config(), variants_of({"train.lr": rates}, {}), seeds)
    records = read_records(cells, folder)
    left = [c for c in cells if c.name not in records or records[c.name].status != "done"]
    with locked(folder) as lock:
        run_cells(left, records, folder, shares(jobs, []), lock, stop or Stop(), ended or (lambda *_: None))
    return cells, records


def starts(folder) -> Counter[str]:
    """How often runs of each variant were started."""
    return Counter(p.parents[1].name for p in folder.glob("*/*/starts") for _ in p.read_text().splitlines())


def test_failures_are_recorded_with_their_reason_and_the_rest_go_on(stand_in):
    _, records = sweep(stand_in, [2, 0.5, 3, 4, 0.25], jobs=2)
    by_rate = {name.split("=")[1].split("/")[0]: record for name, record in records.items()}
    assert [r.status for r in by_rate.values()] == ["failed", "done", "failed", "failed", "done"]
    assert by_rate["2"].error == "this cannot be"
    assert by_rate["3"].error == "exit code 1: RuntimeError: a mistake"
    assert by_rate["4"].error.startswith("ended by SIGKILL")
    assert by_rate["0.5"].figures == {"AP": 0.5}  # of the last evaluation
    kept = Record.read(stand_in / "lr=2" / "seed42")
    assert kept.error == "this cannot be" and kept.config == json.loads(json.dumps(asdict(cells_of(
        Config(), variants_of({"train.lr": [2]}, {}), 1)[0].config)))  # fmt: skip


def test_a_run_that_is_stopped_at_once_has_not_failed_and_one_without_a_score_has(stand_in):
    _, records = sweep(stand_in, [6, 7])
    assert records["lr=6/seed42"].status == "unfinished" and not records["lr=6/seed42"].error
    assert records["lr=7/seed42"].status == "failed" and "without a score" in records["lr=7/seed42"].error


def test_a_folder_that_cannot_be_made_fails_that_run_alone(stand_in):
    stand_in.mkdir()
    (stand_in / "lr=0.5").write_text("in the way")
    ended = []
    _, records = sweep(stand_in, [0.5, 0.25], ended=lambda cell, record: ended.append((cell.name, record.status)))
    assert ended == [("lr=0.5/seed42", "failed"), ("lr=0.25/seed42", "done")]
    assert "a file is in the way" in records["lr=0.5/seed42"].error


def test_finished_runs_are_not_repeated_and_failed_ones_are(stand_in):
    sweep(stand_in, [0.5, 2])
    sweep(stand_in, [0.5, 2, 0.25])  # a value more
    assert starts(stand_in) == {"lr=0.5": 1, "lr=2": 2, "lr=0.25": 1}
    _, records = sweep(stand_in, [0.5, 0.25], seeds=2)  # a seed more
    assert starts(stand_in)["lr=0.5"] == 2 and len(records) == 4


def test_jobs_run_at_once_each_with_its_share(stand_in, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runs, "_cores", lambda: 6)
    sweep(stand_in, [0.11, 0.12, 0.13, 0.14], jobs=2)
    lines = [p.read_text().split() for p in stand_in.glob("*/*/starts")]
    assert {line[1] for line in lines} == {"3"} and all("auto']" in line[-1] for line in lines)
    begun = [float(line[0]) for line in lines]
    over = [float(p.read_text()) for p in stand_in.glob("*/*/ended")]
    most = max(sum(b <= t < e for b, e in zip(begun, over)) for t in begun)
    assert most == 2


def test_gpus_are_dealt_out_in_turn(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert [s["CUDA_VISIBLE_DEVICES"] for s in shares(3, ["4", "6"])] == ["4", "6", "4"]
    assert all("OMP_NUM_THREADS" not in s for s in shares(3, ["4"]))  # the user's own stays
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert runs.visible_gpus() == ["2", "5"]


def test_a_stop_is_passed_on_and_the_sweep_goes_on_later(stand_in):
    class WhenReady:
        @property
        def requested(self):
            return (stand_in / "lr=5" / "seed42" / "ready").exists()

    _, records = sweep(stand_in, [5, 0.5], stop=WhenReady())
    assert records["lr=5/seed42"].status == "unfinished" and len(records) == 1
    assert (stand_in / "lr=5" / "seed42" / "half").exists()
    _, records = sweep(stand_in, [5, 0.5])
    assert [r.status for r in records.values()] == ["done", "done"]
    attempts = records["lr=5/seed42"].attempts
    assert len(attempts) == 2 and records["lr=5/seed42"].seconds == pytest.approx(sum(d for _, d in attempts))


def test_an_error_of_the_sweep_leaves_nothing_running(stand_in):
    def ended(cell, record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(stand_in, [0.9, 5], jobs=2, ended=ended)
    with locked(stand_in):  # which a run that lives on would hold
        pass
    assert (stand_in / "lr=5" / "seed42" / "half").exists()  # it could save


def test_two_sweeps_do_not_share_a_folder(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another sweep works in"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_runs_of_a_killed_sweep_save_and_end_and_hold_the_folder_until_then(stand_in):
    """kill -9 of the sweep itself: nobody tells its runs, and yet they stop, and nothing starts beside them."""
    program = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from pathlib import Path
        from ablation import processes as runs
        runs.MAIN = Path({str(runs.MAIN)!r})
        from tests.ablation.test_processes import sweep
        sweep(Path({str(stand_in)!r}), [5])
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    folder = stand_in / "lr=5" / "seed42"
    deadline = time.monotonic() + 60
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    with pytest.raises(UserError, match="another sweep"), locked(stand_in):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while True:
        try:
            with locked(stand_in):
                break
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert (folder / "half").read_text() == "saved"
    record = Record.read(folder)
    assert record.status == "unfinished" and 0 <= record.seconds < 60  # as long as it wrote
    _, records = sweep(stand_in, [5])
    assert records["lr=5/seed42"].status == "done"


def test_another_configuration_is_refused_and_what_does_not_matter_is_not(stand_in):
    sweep(stand_in, [0.5])
    cells = cells_of(Config(), variants_of({"train.lr": [0.5]}, {}), 1)
    cells[0].config.train.epochs = 7
    with pytest.raises(UserError, match=r"lr=0.5/seed42' was run with another train.epochs"):
        read_records(cells, stand_in)
    cells[0].config.train.epochs = Config().train.epochs
    cells[0].config.train.device, cells[0].config.data.workers = "cpu", 0
    assert read_records(cells, stand_in)


def test_same_run_looks_into_sections():
    one = asdict(Config())
    two = asdict(Config())
    assert same_run(one, two) is None
    two["model"]["backbone"]["name"] = "resnet18"
    assert same_run(one, two) == "model.backbone.name"


def test_accumulation_matters_where_it_is_not_exact():
    one, two = asdict(Config()), asdict(Config())
    two["train"]["max_images_per_device"] = 2
    assert same_run(one, two) is None
    one["train"]["padding"] = two["train"]["padding"] = "micro_batch"
    assert same_run(one, two) == "train.max_images_per_device"


def test_options_that_came_later_count_as_their_defaults():
    one, two = asdict(Config()), asdict(Config())
    del one["model"]["cross_level"]
    assert same_run(one, two) is None
    two["model"]["cross_level"] = False
    assert same_run(one, two) == same_run(two, one) == "model.cross_level"


def test_a_log_may_be_half_written(tmp_path):
    (tmp_path / "m.jsonl").write_text(
        '{"kind": "train", "step": 1}\n{"kind": "eval", "AP": 0.5, "step": 2}\n{"kind": "ev'
    )
    assert last_figures(tmp_path / "m.jsonl") == {"AP": 0.5}
    assert last_figures(tmp_path / "none.jsonl") == {}


def test_a_damaged_record_is_named(stand_in):
    sweep(stand_in, [0.5])
    (stand_in / "lr=0.5" / "seed42" / "cell.json").write_text("{")
    with pytest.raises(UserError, match=r"cell.json' is damaged"):
        sweep(stand_in, [0.5])
