"""Programs whose output nobody reads any more, by real pipes: they end, and say nothing."""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.datasets.helpers import annotation, write_coco
from tests.processes import CONTEXT
from util.console import CLOSED, exit_quietly, is_unread

ROOT = Path(__file__).resolve().parents[2]
# What a user starts. `main.py` is tried on its own below: it starts fast.
PROGRAMS = sorted(
    file
    for folder in ("datasets", "ops", "scripts")
    for file in (ROOT / folder).rglob("*.py")
    if 'if __name__ == "__main__":' in file.read_text()
)
LONG = {
    "--help": "Deformable DETR: train, evaluate, predict, ablate, check data and profile from one command line.",
    "train --help": "usage: main.py train [--config FILE ...] [--OPTION VALUE ...]",
    "check-data --data.root DATA --show 100000": "train: DATA/annotations/instances_train2017.json",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data set with so many defects that their list does not fit into a pipe."""
    folder = tmp_path_factory.mktemp("coco")
    outside = [annotation(i, 1, 1, [-5, 0, 2, 2]) for i in range(1, 2001)]
    for split in ("train", "val"):
        write_coco(folder, outside, split=split)
    return folder


def environment(unbuffered: bool) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return kept | ({"PYTHONUNBUFFERED": "1"} if unbuffered else {})


def closed_pipe() -> int:
    """A pipe to write into, which nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def unread(*argv: object, unbuffered: bool = False) -> subprocess.CompletedProcess:
    """Run Python with a standard output whose reader has gone before it starts."""
    writer = closed_pipe()
    try:
        command = [sys.executable, *map(str, argv)]
        settings = {"cwd": ROOT, "env": environment(unbuffered), "timeout": 120}
        return subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, **settings)
    finally:
        os.close(writer)


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("arguments", LONG)
def test_the_first_line_of_a_long_output(arguments, unbuffered, data):
    words = arguments.replace("DATA", str(data))
    script = f"set -o pipefail; {sys.executable} main.py {words} | head -1"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment(unbuffered), capture_output=True, text=True, timeout=120
    )
    assert done.stdout == LONG[arguments].replace("DATA", str(data)) + "\n" and done.stderr == ""
    # Help may be in the pipe as a whole before the reader goes; the list of defects is too long for that.
    assert done.returncode in ((CLOSED,) if "check-data" in arguments else (0, CLOSED))


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("arguments", LONG)
def test_an_output_that_nobody_reads_from_the_beginning(arguments, unbuffered, data):
    done = unread("main.py", *arguments.replace("DATA", str(data)).split(), unbuffered=unbuffered)
    assert done.stderr == "" and done.returncode == CLOSED


def test_mistakes_are_told_and_keep_their_code():
    done = unread("main.py", "trian")
    assert done.returncode == 2 and done.stderr.startswith("error: unknown command 'trian'")


def test_a_program_without_standard_output_keeps_its_code():
    script = f"{sys.executable} main.py --help >&-"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("file", PROGRAMS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_other_program(file, tmp_path):
    """In processes that have torch imported, for the sake of time."""
    said = tmp_path / "said.txt"
    process = CONTEXT.Process(target=_help, args=(str(file), str(said)))
    process.start()
    process.join(120)
    assert said.read_text() == ""
    # 0 where the help is long: argparse passes over what it cannot write at once.
    assert process.exitcode in (0, CLOSED, -signal.SIGPIPE)


def _help(file: str, said: str) -> None:
    """What `python FILE --help` does when nobody reads."""
    os.dup2(closed_pipe(), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)  # buffered, whatever the environment says
    sys.argv = [file, "--help"]
    runpy.run_path(file, run_name="__main__")


def test_another_pipe_that_breaks_is_an_error(capfd):
    def main(argv: Sequence[str]) -> int:
        os.write(closed_pipe(), b"to somebody else")
        return 0

    with pytest.raises(BrokenPipeError):
        exit_quietly(main, [])


def test_the_code_and_what_ends_a_program_pass_through(capfd):
    for code in (0, 1, 75):
        with pytest.raises(SystemExit) as end:
            exit_quietly(lambda argv: len(argv), ["x"] * code)
        assert end.value.code == code
    with pytest.raises(KeyError):
        exit_quietly(lambda argv: {}[argv[0]], ["x"])


def test_a_pipe_is_unread_when_its_reader_has_gone(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert not is_unread()
        os.close(reader)
        assert is_unread()
    assert not is_unread()  # of a file that is closed nothing is known
    monkeypatch.setattr(sys, "stdout", None)
    assert not is_unread()
