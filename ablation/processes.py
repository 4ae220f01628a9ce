"""Runs of a sweep as processes, several at a time, each in its folder and with a GPU or a share of the cores."""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ablation.grid import Cell
from ablation.records import Record, last_figures
from util.config import Config
from util.config_files import to_yaml
from util.errors import UserError
from util.files import make_folder
from util.signals import STOPPED, StopRequest

MAIN = Path(__file__).resolve().parents[1] / "main.py"
POLL = 0.2  # seconds between looks at the running processes
PATIENCE = 60  # seconds that runs have to save when the sweep itself fails


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keep other sweeps out of a folder, also while runs of a killed sweep are still saving.

    Yields:
        A file descriptor. A process that inherits it holds the lock, too.

    Raises:
        UserError: another sweep works in the folder.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another sweep works in '{folder}', or its runs are still stopping; wait for them"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def shares(jobs: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """The environment variables of each of the runs at one time: a GPU, if there are any, and a share of the cores.

    Args:
        jobs: number of runs at one time.
        gpus: the GPUs' names in CUDA_VISIBLE_DEVICES, which the runs take in turn; empty to use the CPU.
    """
    found = []
    for i in range(jobs):
        share = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, _cores() // jobs))}
        if gpus:
            share["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
        found.append(share)
    return found


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Job:
    """A run that is going on, with its record, process and environment, and the place in the log where it began."""

    cell: Cell
    record: Record
    process: subprocess.Popen
    share: dict[str, str]
    folder: Path
    log_from: int


def run_cells(
    cells: Sequence[Cell],
    records: dict[str, Record],
    folder: Path,
    environments: Sequence[dict[str, str]],
    lock: int,
    stop: StopRequest,
    ended: Callable[[Cell, Record], None],
    going_on: Callable[[list[str]], None] | None = None,
) -> None:
    """Train cells, as many at a time as there are environments. A run that fails does not stop the others.

    When a stop is requested, the runs are asked to save and end, and no other run starts.

    Args:
        cells: the cells to run, in order.
        records: records of cells that were begun, by name; this function updates them.
        folder: the sweep's folder.
        environments: the environment variables for each of the runs at one time.
        lock: descriptor of the lock, which runs inherit.
        stop: the request to stop, checked several times a second.
        ended: called when a run has ended, also if it is unfinished.
        going_on: called several times a second with the names of the runs that are going on.
    """
    waiting, free = deque(cells), list(environments)
    running: list[_Job] = []
    asked = False
    try:
        while running or (waiting and not stop.requested):
            while waiting and free and not stop.requested:
                cell = waiting.popleft()
                records[cell.name] = record = records.get(cell.name) or Record("unfinished", {})
                try:
                    running.append(_start(cell, record, folder / cell.name, free[0], lock))
                    free.pop(0)
                except (OSError, UserError) as error:  # a full disk, a file in the way
                    record.status, record.error = "failed", str(error)
                    ended(cell, record)
            if stop.requested and not asked:
                asked = True
                for job in running:
                    job.process.terminate()
            if going_on is not None:
                going_on([job.cell.name for job in running])
            time.sleep(POLL)
            for job in [j for j in running if j.process.poll() is not None]:
                running.remove(job)
                free.append(job.share)
                _conclude(job)
                ended(job.cell, job.record)
    except BaseException:  # a second Ctrl-C, or an error here: no run may be left
        for job in running:
            job.process.terminate()
        for job in running:
            try:
                job.process.wait(PATIENCE)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                job.process.kill()
                job.process.wait()
        raise


def _start(cell: Cell, record: Record, folder: Path, share: dict[str, str], lock: int) -> _Job:
    make_folder(folder, "output")
    record.status, record.error, record.config = "unfinished", "", asdict(cell.config)
    record.attempts = [*record.attempts, (time.time(), None)]
    record.write(folder)
    (folder / "cell.yaml").write_text(to_yaml(_placed(cell.config, folder)), encoding="utf-8")
    command = [sys.executable, str(MAIN), "train", "--config", str(folder / "cell.yaml"), "--train.resume", "auto"]
    with (folder / "train.log").open("ab") as log:
        log_from = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **share},
            pass_fds=(lock,),
            start_new_session=True,  # the sweep passes Ctrl-C on, once
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    return _Job(cell, record, process, share, folder, log_from)


def _placed(config: Config, folder: Path) -> Config:
    return replace(config, train=replace(config.train, output=str(folder), resume=None))


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Runs between fork and exec. If the sweep is killed, its runs get SIGTERM, so that they save and end."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _conclude(job: _Job) -> None:
    record, code = job.record, job.process.returncode
    begun = record.attempts[-1][0]
    record.attempts[-1] = (begun, time.time() - begun)
    # SIGTERM ends a run that has not installed its handler yet.
    record.status = {0: "done", STOPPED: "unfinished", -signal.SIGTERM: "unfinished"}.get(code, "failed")
    if code == 0:
        record.figures = last_figures(job.folder / "metrics.jsonl")
        if "AP" not in record.figures:
            record.status, record.error = "failed", f"it ended without a score in {job.folder / 'metrics.jsonl'}"
    elif record.status == "failed":
        record.error = _reason(job.folder / "train.log", job.log_from, code)
    with contextlib.suppress(OSError):  # a full disk; the record is read again when the sweep goes on
        record.write(job.folder)


def _reason(log: Path, begin: int, code: int) -> str:
    """The message of a run that failed: its own sentence, or else the end of its traceback."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    sentences = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    said = sentences[-1] if sentences else (lines[-1] if lines else "it printed nothing")
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        return f"ended by {name}{' (memory?)' if code == -signal.SIGKILL else ''}"
    return f"{said}" if sentences else f"exit code {code}: {said}"
