"""main.py in processes of its own, to be killed or to train together.

They are forked from a server that has imported it once: a start takes half a second instead of six.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from torch.distributed import TCPStore

from tests.quick import make_quick

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["main", "engine.train"])


class Launched:
    """Processes that run one command of main.py together, as torchrun would start them.

    Args:
        argv: of main.py.
        log: file for what they print.
        size: how many.
        prepare: called in each before main, with its rank.
    """

    def __init__(self, argv: Sequence[object], log: Path, size: int = 1, prepare: Callable[[int], None] | None = None):
        self.log = log
        # As torchrun's agent has one, which outlives the processes.
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes = []
        for rank in range(size):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.store.port),
            }
            environment |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
            environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            job = ([str(a) for a in argv], environment if size > 1 else {}, str(log), prepare, rank)
            self.processes.append(CONTEXT.Process(target=_run, args=job))
        for process in self.processes:
            process.start()

    def wait(self, timeout: float = 120) -> list[int]:
        """Exit codes; negative ones are signals."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [process for process in self.processes if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        assert not late, f"{len(late)} processes did not end:\n{self.printed()}"
        return [process.exitcode for process in self.processes]

    def signal(self, number: signal.Signals, rank: int = 0) -> None:
        """Send a signal to one of them."""
        os.kill(self.processes[rank].pid, number)

    def printed(self) -> str:
        """What they have printed so far."""
        return self.log.read_text() if self.log.exists() else ""


class Forked:
    """What `subprocess.Popen` is to a sweep: a run of main.py, but forked from the server.

    Args:
        command: Python, main.py, and its arguments.
        stdout: file for what it prints.
        env: its environment.
        other: the rest of what a sweep says of its runs, which is of no matter here.
    """

    def __init__(self, command: Sequence[str], stdout: IO, env: dict[str, str], **other: object):
        assert command[0] == sys.executable and Path(command[1]).name == "main.py"
        self._process = CONTEXT.Process(target=_run, args=(list(command[2:]), env, stdout.name, None, 0))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Exit code, negative if a signal ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """The same, after it has ended."""
        self._process.join(timeout)
        return self._process.exitcode

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()


def _run(argv: list[str], environment: dict[str, str], log: str, prepare: Callable | None, rank: int) -> None:
    # Workers are forked as ever: started by a server of their own, they would not see it when this process is killed.
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    torch.set_num_threads(1)
    make_quick()
    if prepare is not None:
        prepare(rank)
    from main import main

    sys.exit(main(argv))
