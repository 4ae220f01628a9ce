"""The launchers: `train_dist.sh` on one machine and as several; `train_slurm.sh` with stand-ins for Slurm."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scripts.launch import exit_code, interface_of
from tests.processes import Launched
from tests.test_distributed import data, options, preset  # noqa: F401 (fixtures)
from tests.test_resume import lines_of, newest_change
from util.signals import STOPPED

ROOT = Path(__file__).resolve().parents[2]
TRAIN_DIST, TRAIN_SLURM = ROOT / "scripts" / "train_dist.sh", ROOT / "scripts" / "train_slurm.sh"
KNOBS = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "MAX_RESTARTS", "GLOO_SOCKET_IFNAME", "LOGLEVEL")
# Settings with which processes only differ by rounding, and a detector that finds something.
EXACT = {"train.precision": "fp64", "train.lr": 0.003, "train.epochs": 4, "train.eval_every": 4}


def environment(**more: object) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in KNOBS and not k.startswith("SLURM_")}
    return {**inherited, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in more.items()}}


def start(log: Path, processes: object, argv: list[object], *before: str, **knobs: object) -> subprocess.Popen:
    """train_dist.sh in the background; what it prints goes to a file. `argv` is main.py's."""
    command = [*before, str(TRAIN_DIST), str(processes), *(str(a) for a in argv[1:])]
    with log.open("a") as file:
        return subprocess.Popen(command, env=environment(**knobs), stdout=file, stderr=subprocess.STDOUT)


def finish(launched: list[subprocess.Popen], seconds: float = 120) -> list[int]:
    """Exit codes; nothing is left running."""
    deadline = time.monotonic() + seconds
    try:
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in launched]
    finally:
        for process in launched:
            if process.poll() is None:
                process.kill()


def wait_for(path: Path, process: subprocess.Popen, log: Path) -> None:
    """Until a file is there."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.pth", weights_only=True)["model"]


# Arguments


@pytest.mark.parametrize(
    ("argv", "knobs", "says"),
    [
        ([], {}, "how many processes?"),
        (["0"], {}, "the number of processes is '0'"),
        (["two"], {}, "the number of processes is 'two'"),
        (["--config", "x"], {}, "the number of processes is '--config'"),
        (["1; touch hacked"], {}, "the number of processes is '1; touch hacked'"),
        (["a[$(touch hacked)]"], {}, "the number of processes is 'a["),
        (["2"], {"NNODES": "none"}, "NNODES is 'none'"),
        (["2"], {"NNODES": "2"}, "NODE_RANK does not say"),
        (["2"], {"NNODES": "2", "NODE_RANK": "2"}, "the last machine is 1"),
        (["2"], {"NNODES": "2", "NODE_RANK": "1"}, "MASTER_ADDR does not say"),
        (["2"], {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "b"}, "MASTER_PORT is 'b'"),
        (["2"], {"MAX_RESTARTS": "-1"}, "MAX_RESTARTS is '-1'"),
    ],
)
def test_what_cannot_be_started_is_one_sentence(tmp_path, argv, knobs, says):
    done = subprocess.run([TRAIN_DIST, *argv], env=environment(**knobs), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and says in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def stand_in_python(folder: Path) -> Path:
    """A copy of the launcher whose Python only shows its arguments, one a line."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "scripts").mkdir()
    (folder / "scripts" / "train_dist.sh").symlink_to(TRAIN_DIST)
    python = folder / ".venv" / "bin" / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    return folder / "scripts" / "train_dist.sh"


@pytest.mark.parametrize(
    ("argv", "knobs", "expected"),
    [
        ([], {}, "0"),
        (["--train.resume", "auto"], {}, "3"),
        (["--train.resume=auto"], {}, "3"),
        (["--train.resume", "runs/auto"], {}, "0"),
        (["--train.resume", "auto"], {"MAX_RESTARTS": "1"}, "1"),
    ],
)
def test_only_a_run_that_goes_on_by_itself_is_restarted(tmp_path, argv, knobs, expected):
    script = stand_in_python(tmp_path)
    done = subprocess.run([script, "3", *argv, "--x", "a b"], env=environment(**knobs), capture_output=True, text=True)
    passed = done.stdout.splitlines()
    assert passed[0].endswith("/scripts/launch.py") and passed[-len(argv) - 3 :] == ["train", *argv, "--x", "a b"]
    assert passed[passed.index("--max-restarts") + 1] == expected
    assert passed[passed.index("--nproc-per-node") + 1] == "3"


# Exit codes


@pytest.mark.parametrize(
    ("codes", "asked", "expected"),
    [
        ([3, 2], False, 2),  # bad input in one process, which the other lost
        ([3, -signal.SIGKILL], False, 128 + 9),
        ([-signal.SIGTERM, 1], False, 1),  # SIGTERM is torchrun's, after the other's failure
        ([3, -signal.SIGTERM], False, 3),
        ([STOPPED, -signal.SIGTERM], False, STOPPED),
        ([-signal.SIGTERM, 3], True, STOPPED),  # stopped before there was anything to save
        ([STOPPED, 1], True, 1),
    ],
)
def test_the_exit_code_is_of_what_failed_by_itself(codes, asked, expected):
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=rank) for rank, code in enumerate(codes)}
    assert exit_code(failures, asked) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback has another name")
def test_interface_of_an_address():
    assert interface_of("127.0.0.1") == "lo" and interface_of("192.0.2.1") is None


def test_bad_input_is_said_once_and_not_tried_again(preset, tmp_path):  # noqa: F811
    log = tmp_path / "log"
    argv = options(preset, tmp_path / "nowhere", tmp_path / "run", **{"train.resume": "auto"})
    assert finish([start(log, 2, argv)]) == [2]
    printed = [line for line in log.read_text().splitlines() if "Warning" not in line]
    assert [line[:7] for line in printed] == ["error: "] and "nowhere" in printed[0], printed


def test_a_signal_before_anything_runs(preset, data, tmp_path):  # noqa: F811
    """While torch is imported, in the launcher."""
    process = start(tmp_path / "log", 2, options(preset, data, tmp_path / "run"))
    time.sleep(1)
    process.terminate()
    assert finish([process], 30) == [STOPPED] and (tmp_path / "log").read_text() == ""


# Training


@pytest.fixture(scope="module")
def alone(preset, data, tmp_path_factory) -> Path:  # noqa: F811
    """One process."""
    folder = tmp_path_factory.mktemp("alone")
    launched = Launched(options(preset, data, folder / "run", **EXACT), folder / "log")
    assert launched.wait() == [0], launched.printed()
    return folder / "run"


def assert_same_as_alone(folder: Path, alone: Path) -> None:
    exact = weights(alone)
    assert max(float((w - exact[k]).abs().max()) for k, w in weights(folder).items()) < 1e-9
    of_each = [{k: v for k, v in lines_of(f)[-1].items() if k.startswith("A")} for f in (folder, alone)]
    assert of_each[0] == of_each[1] and of_each[1]["AR_100"] > 0


@pytest.mark.slow
def test_two_agents_on_one_machine_train_as_one_process(preset, data, alone, tmp_path):  # noqa: F811
    argv = options(preset, data, tmp_path / "run", **EXACT)
    meeting = {"NNODES": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 21000 + os.getpid() % 9000}
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    launched = [start(log, 1, argv, NODE_RANK=rank, **meeting) for rank, log in enumerate(logs)]
    assert finish(launched) == [0, 0], [log.read_text() for log in logs]
    assert_same_as_alone(tmp_path / "run", alone)


def ip(*argv: str) -> None:
    done = subprocess.run(["ip", *argv], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"network namespaces need root's rights: ip {' '.join(argv)}: {done.stderr.strip()}")


@pytest.fixture
def machines() -> Iterator[dict[str, str]]:
    """Two network namespaces with a cable between them: address by name."""
    try:
        subprocess.run(["ip", "-V"], check=True, capture_output=True)
    except OSError:
        pytest.skip("there is no ip, to make network namespaces with")
    stem = f"launch{os.getpid()}"
    addresses = {f"{stem}a": "10.213.7.1", f"{stem}b": "10.213.7.2"}
    try:
        for name in addresses:
            ip("netns", "add", name)
        first, second = addresses
        ip("-n", first, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", second)
        for name, address in addresses.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for interface in ("lo", "cable"):
                ip("-n", name, "link", "set", interface, "up")
        yield addresses
    finally:
        for name in addresses:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
def test_two_machines_train_as_one_process(preset, data, alone, tmp_path, machines):  # noqa: F811
    """Both have the same name, which resolves to the loopback: they must go by addresses. The first comes later."""
    argv = options(preset, data, tmp_path / "run", **EXACT)
    first, _ = machines
    meeting = {"NNODES": 2, "MASTER_ADDR": machines[first]}  # ports are each machine's own
    launched = []
    for rank, name in reversed(list(enumerate(machines))):
        inside = ("ip", "netns", "exec", name)
        launched.append(start(tmp_path / f"{rank}.log", 1, argv, *inside, NODE_RANK=rank, **meeting))
        time.sleep(1)
    assert finish(launched) == [0, 0], [log.read_text() for log in tmp_path.glob("*.log")]
    assert_same_as_alone(tmp_path / "run", alone)


# To be stopped, and to crash: with dropout, whose numbers are each process's own.
LONG = {"train.epochs": 24, "train.eval_every": 24, "train.save_every": 2, "train.resume": "auto", "model.dropout": 0.1}


@pytest.fixture(scope="module")
def whole(preset, data, tmp_path_factory) -> Path:  # noqa: F811
    """Two processes, uninterrupted."""
    folder = tmp_path_factory.mktemp("whole")
    launched = Launched(options(preset, data, folder / "run", **LONG), folder / "log", 2)
    assert launched.wait() == [0, 0], launched.printed()
    return folder / "run"


def assert_same_to_the_bit(folder: Path, whole: Path) -> None:
    exact = weights(whole)
    assert all(torch.equal(w, exact[k]) for k, w in weights(folder).items())
    assert lines_of(folder) == lines_of(whole)


@pytest.mark.slow
def test_stopped_by_a_signal_and_started_again(preset, data, whole, tmp_path):  # noqa: F811
    argv, log = options(preset, data, tmp_path / "run", **LONG), tmp_path / "log"
    process = start(log, 2, argv)
    wait_for(tmp_path / "run" / "last.pth", process, log)
    process.terminate()
    time.sleep(0.05)
    process.terminate()  # a second one ends neither the launcher nor the saving
    assert finish([process]) == [STOPPED], log.read_text()
    printed = log.read_text()
    assert "stopped after step" in printed and "Traceback" not in printed and "Signal" not in printed, printed
    step = torch.load(tmp_path / "run" / "last.pth", weights_only=True)["schedule"]["step"]
    assert f"stopped after step {step};" in printed and step < 120
    assert finish([start(log, 2, argv)]) == [0], log.read_text()
    assert_same_to_the_bit(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_killed_process_is_a_restart(preset, data, whole, tmp_path):  # noqa: F811
    argv, log = options(preset, data, tmp_path / "run", **LONG), tmp_path / "log"
    process = start(log, 2, argv)
    wait_for(tmp_path / "run" / "last.pth", process, log)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert finish([process]) == [0], log.read_text()
    assert re.search(r"launch: process \d was killed by SIGKILL; restart 1 of 3", log.read_text())
    assert_same_to_the_bit(tmp_path / "run", whole)


@pytest.mark.slow
def test_one_machine_is_stopped_and_the_other_stops_with_it(preset, data, whole, tmp_path):  # noqa: F811
    """Also after a crash on one of them, which restarts both."""
    argv = options(preset, data, tmp_path / "run", **LONG)
    meeting = {"NNODES": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 31000 + os.getpid() % 1000}
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    launched = [start(log, 1, argv, NODE_RANK=rank, **meeting) for rank, log in enumerate(logs)]
    wait_for(tmp_path / "run" / "last.pth", launched[0], logs[0])
    os.kill(children(launched[1].pid)[-1], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while sum(log.read_text().count("  output  ") for log in logs) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    before = newest_change(tmp_path / "run")  # signals count from the first step on
    while newest_change(tmp_path / "run") in (0, before) and time.monotonic() < deadline:
        time.sleep(0.02)
    launched[0].send_signal(signal.SIGUSR1)
    assert finish(launched) == [STOPPED, STOPPED], [log.read_text() for log in logs]
    assert finish([start(tmp_path / "log", 2, argv)]) == [0]
    assert_same_to_the_bit(tmp_path / "run", whole)


# Slurm

STAND_INS = {
    # Notes its arguments and what the nodes would see; ends as told, or when it gets the signal.
    "srun": """
printf '%s\\n' "$@" > "$NOTES/srun"
echo "$NNODES $MASTER_ADDR $MASTER_PORT" > "$NOTES/environment"
if [[ "$SRUN_DOES" == wait ]]; then
  trap 'echo USR1 > "$NOTES/signal"; exit 75' USR1
  touch "$NOTES/waiting"
  while :; do sleep 0.05; done
fi
exit "$SRUN_DOES"
""",
    "scontrol": """
if [[ "$1 $2" == "show hostnames" ]]; then
  [[ "$3" == "node[3-4]" ]] && printf 'node3\\nnode4\\n'
else
  echo "$@" >> "$NOTES/scontrol"
fi
""",
    "squeue": 'echo "$STATE"\n',
}


@pytest.fixture
def job(tmp_path) -> dict[str, object]:
    """The environment of a job on two nodes, and Slurm's commands."""
    for name, text in STAND_INS.items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/usr/bin/env bash\n{text}")
        command.chmod(0o755)
    (tmp_path / "notes").mkdir()
    (tmp_path / "copy.sh").write_text(TRAIN_SLURM.read_text())  # Slurm runs a copy from elsewhere
    (tmp_path / "copy.sh").chmod(0o755)
    slurm = {"JOB_ID": 123456, "JOB_NUM_NODES": 2, "JOB_NODELIST": "node[3-4]", "SUBMIT_DIR": ROOT}
    more = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "NOTES": tmp_path / "notes", "STATE": "RUNNING"}
    return {**{f"SLURM_{k}": v for k, v in slurm.items()}, **more}


def submit(tmp_path: Path, job: dict[str, object], *argv: str) -> subprocess.CompletedProcess:
    command = [tmp_path / "copy.sh", *argv]
    return subprocess.run(command, env=environment(**job), cwd=tmp_path, capture_output=True, text=True, timeout=30)


def test_slurm_starts_one_agent_on_each_node(tmp_path, job):
    job |= {"SRUN_DOES": 0, "SLURM_GPUS_ON_NODE": 8, "SLURM_CPUS_PER_TASK": 64}
    done = submit(tmp_path, job, "--config", "configs/base.yaml", "--data.root", "with space; $HOME")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "notes" / "srun").read_text().splitlines() == [
        *("--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1", "--kill-on-bad-exit=0", "--cpus-per-task", "64"),
        *("scripts/train_dist.sh", "8", "--config", "configs/base.yaml", "--data.root", "with space; $HOME"),
        *("--train.resume", "auto"),
    ]
    assert (tmp_path / "notes" / "environment").read_text() == "2 node3 23456\n"
    assert not (tmp_path / "notes" / "scontrol").exists()


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [
        (0, "RUNNING", False),
        (1, "RUNNING", False),
        (2, "RUNNING", False),
        (75, "RUNNING", True),
        (75, "COMPLETING", False),  # after scancel
    ],
)
def test_slurm_requeues_what_was_stopped(tmp_path, job, code, state, requeued):
    done = submit(tmp_path, {**job, "SRUN_DOES": code, "STATE": state})
    assert done.returncode == code
    calls = tmp_path / "notes" / "scontrol"
    assert (calls.read_text() if calls.exists() else "") == ("requeue 123456\n" if requeued else "")
    assert "train_dist.sh\n1\n" in (tmp_path / "notes" / "srun").read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_passes_its_signal_on(tmp_path, job, number):
    command, log = [tmp_path / "copy.sh"], tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment(**job, SRUN_DOES="wait"), stdout=file, stderr=file)
    wait_for(tmp_path / "notes" / "waiting", process, log)
    process.send_signal(number)
    assert finish([process], 20) == [STOPPED]
    assert (tmp_path / "notes" / "signal").read_text() == "USR1\n"
    assert (tmp_path / "notes" / "scontrol").read_text() == "requeue 123456\n"


@pytest.mark.parametrize(
    ("change", "argv", "says"),
    [
        ({"SLURM_JOB_ID": ""}, [], "this is for sbatch"),
        ({"SLURM_SUBMIT_DIR": "/"}, [], "'/' is not the root of the repository"),
        ({}, ["--train.resume=runs/x"], "leave out --train.resume"),
    ],
)
def test_slurm_jobs_that_cannot_run(tmp_path, job, change, argv, says):
    done = submit(tmp_path, {**job, "SRUN_DOES": 0, **change}, *argv)
    assert done.returncode == 2 and says in done.stderr and not list((tmp_path / "notes").iterdir())


def test_slurm_options_of_the_script():
    lines = re.findall(r"^#SBATCH (.*)$", TRAIN_SLURM.read_text(), re.MULTILINE)
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@300", "--ntasks-per-node=1"} <= set(lines)
