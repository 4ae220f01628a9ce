"""Starts torchrun with knowledge of main.py's exit codes. `train_dist.sh` calls it with torchrun's options.

torchrun's agent starts the processes of this machine, watches them and restarts them. This agent differs in four ways:

- It passes signals on to the processes. They finish their step, save and exit with 75, and then this program does so
  too. torchrun would give them 30 seconds and end with a traceback.
- It restarts only after failures that may not occur again: not after bad input (2) or a requested stop (75).
- Its exit code is that of the process which failed, and its report is one line.
- The machines meet at `--master-addr`. Each uses the address and network interface by which it reaches that machine.
  torchrun and gloo would use the host's name, which on many machines means the loopback interface.
"""

import fcntl
import logging
import os
import signal
import socket
import struct
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from util.console import exit_quietly
from util.signals import SIGNALS, STOPPED

if __name__ == "__main__":
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # read once; without it each lost connection prints a C++ stack trace
    for _number in SIGNALS:  # importing torch takes seconds, and there is nothing to save yet
        signal.signal(_number, lambda number, frame: os._exit(STOPPED))

import torch
from torch.distributed import DistError, TCPStore
from torch.distributed.elastic.agent.server import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError, RendezvousTimeoutError
from torch.distributed.launcher import api
from torch.distributed.run import parse_args, run

USER_ERROR, PEER_LOST = 2, 3  # exit codes of main.py, besides STOPPED
TO_SAVE = 120  # seconds that a run may take to stop
TO_MEET = 600  # seconds that machines wait for each other


class Agent(LocalElasticAgent):
    """torchrun's agent, with another reaction to failures and signals.

    Attributes:
        pids: process ids of the processes on this machine.
        starts: how often they were started.
        asked: whether a signal has asked the run to stop.
        store: the store by which the processes of all machines find each other; only the first machine has it.
    """

    pids: Sequence[int] = ()
    starts = 0
    asked = False
    store: TCPStore | None = None

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        super()._rendezvous(worker_group)
        # torchrun keeps the processes' store over restarts, so it would hold the addresses of the earlier processes.
        # The agents' own store, which tells the new one's port, is new in every rendezvous.
        group: Any = worker_group  # torch declares its store, address and port as None
        if group.group_rank == 0:
            self.store = TCPStore(group.master_addr, 0, is_master=True, wait_for_workers=False)
            group.store.set("processes_port", str(self.store.port))
        group.master_port = int(group.store.get("processes_port"))

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        hangup = signal.getsignal(signal.SIGHUP)
        started = super()._start_workers(worker_group)
        self.pids, self.starts = list(started.values()), self.starts + 1
        for number in (*SIGNALS, signal.SIGHUP, signal.SIGALRM):  # replace the handlers that torchrun has just set
            signal.signal(number, self._pass_on)
        if hangup == signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return started

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Ask the processes to stop. A second Ctrl-C stops them at once."""
        if number == signal.SIGALRM:
            say(f"the processes have not ended within {TO_SAVE} s: killing them")
            number = signal.SIGKILL
        else:
            signal.alarm(TO_SAVE)
            number = signal.SIGINT if self.asked and number == signal.SIGINT else signal.SIGTERM
        self.asked, reached = True, 0
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                reached += 1
        if not reached:  # between two starts
            raise SystemExit(STOPPED)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.is_failed():
            code = exit_code(result.failures, self.asked)
            if any(f.exitcode == STOPPED for f in result.failures.values()) and code == STOPPED:
                self._exit_barrier()  # another machine may still save, and need this machine's store
            if self.asked or code in (STOPPED, USER_ERROR):
                raise SystemExit(code)
            restarts = worker_group.spec.max_restarts
            tell(result.failures, f"; restart {self.starts} of {restarts}" if self.starts <= restarts else "")
        return result


def exit_code(failures: Mapping[int, ProcessFailure], asked: bool = False) -> int:
    """One exit code for all processes: that of the first which failed by itself, not because another one ended.

    Args:
        failures: failures by rank. After one process has failed, torchrun ends the others on this machine by SIGTERM.
        asked: whether the run was asked to stop.
    """
    codes = [f.exitcode for f in sorted(failures.values(), key=lambda f: f.timestamp)]
    own = [code for code in codes if code not in (STOPPED, PEER_LOST, -signal.SIGTERM)]
    code = USER_ERROR if USER_ERROR in own else own[0] if own else STOPPED if asked or STOPPED in codes else codes[0]
    return code if code >= 0 else 128 - code  # as in a shell


def tell(failures: Mapping[int, ProcessFailure], then: str) -> None:
    """Name the processes that failed, except those that said so themselves or ended because of others."""
    for rank, failure in sorted(failures.items()):
        if failure.exitcode not in (USER_ERROR, PEER_LOST, -signal.SIGTERM):
            how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"failed ({failure.exitcode})"
            say(f"process {rank} {how}{then}")


def say(message: str) -> None:
    """Print a line to stderr."""
    print(f"launch: {message}", file=sys.stderr, flush=True)


def own_address(args: Namespace) -> str:
    """The address by which this machine reaches the one where all meet. Waits until that machine answers.

    Raises:
        OSError: there is no such machine, or it does not answer.
    """
    if args.node_rank == 0:
        return socket.gethostbyname(args.master_addr)
    deadline = time.monotonic() + TO_MEET
    while True:
        try:
            with socket.create_connection((args.master_addr, args.master_port), timeout=10) as connection:
                return connection.getsockname()[0]
        except socket.gaierror:
            raise
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def interface_of(address: str) -> str | None:
    """The network interface with an IPv4 address, if there is one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # the interface has no IPv4 address
                found = fcntl.ioctl(any_socket, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None


def main(argv: Sequence[str]) -> int:
    """Run processes on this machine, according to torchrun's options.

    Returns:
        0; 2 (bad input), 75 (stopped by a signal), or another exit code of main.py; 3 if the machines lost each other.
    """
    args = parse_args(argv)
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: sys.exit(STOPPED))
    if "LOGLEVEL" not in os.environ:  # torchrun's variable; this program says in a sentence what matters in the logs
        logging.disable(logging.ERROR)
    if not torch.cuda.is_available():  # use all cores; torchrun would set 1
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // int(args.nproc_per_node))))
    try:
        if args.nnodes == "1":
            args.standalone, address = True, "127.0.0.1"
        else:
            address = own_address(args)
            args.rdzv_backend, args.rdzv_endpoint = "c10d", f"{args.master_addr}:{args.master_port}"
            args.rdzv_id, args.rdzv_conf = "train", f"is_host={int(args.node_rank == 0)},timeout={TO_MEET}"
        args.local_addr = args.local_addr or address
        if interface := interface_of(args.local_addr):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        api.LocalElasticAgent = Agent  # type: ignore[misc]  # torchrun has no argument for it
        run(args)
        return 0
    except ChildFailedError as error:
        return exit_code(error.failures)
    except SignalException:  # processes were just starting or ending
        return STOPPED
    except RendezvousClosedError:
        say("another machine has ended the run; its message is the one to read")
    except RendezvousTimeoutError:
        say(f"not all {args.nnodes} machines were there within {TO_MEET} s")
    except (RendezvousError, DistError, OSError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        say(f"no contact with {args.master_addr}:{args.master_port}, where the machines meet ({reason})")
    return PEER_LOST


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
