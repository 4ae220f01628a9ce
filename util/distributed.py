"""One training run over several processes: who they are, and the little they say to each other besides gradients.

`torchrun` starts the processes and tells each, by environment variables, its rank. Everything here also works in a
single process, where it says nothing to anybody.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from util.errors import PeerLost, UserError


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: number of this process; 0 writes files and prints.
        size: number of processes.
        local_rank: number on this machine, which is also that of its GPU.
        local_size: number of processes on this machine.
        store: key-value store of the launcher; None in a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    store: dist.Store | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any] | None:
        """One picklable value of every process, in the order of ranks; None but in rank 0."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_main else None
        with _peers():
            dist.gather_object(value, values)
        return values

    def all_gather(self, value: Any) -> list[Any]:
        """One picklable value of every process, in the order of ranks, in each of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _peers():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """A picklable value of rank 0, in every process."""
        if self.size == 1:
            return value
        values = [value]
        with _peers():
            dist.broadcast_object_list(values)
        return values[0]

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        """A few whole numbers of every process, in each of them; between hosts, without waiting for a GPU."""
        if self.size == 1:
            return [list(numbers)]
        rows = [torch.empty(len(numbers), dtype=torch.int64) for _ in range(self.size)]
        with _peers():
            dist.all_gather(rows, torch.tensor(numbers, dtype=torch.int64))
        return [row.tolist() for row in rows]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes of a tensor on any device; the argument keeps its own."""
        if self.size == 1:
            return values
        total = values.clone()
        with _peers():
            dist.all_reduce(total)
        return total

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.exchange([0])

    @contextmanager
    def one_a_machine_first(self) -> Iterator[None]:
        """Run the block in one process of each machine, then in the others, which find what it left on the disk."""
        if self.local_rank != 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()

    def failed(self) -> bool:
        """Whether any process has failed."""
        try:
            return self.store is not None and self.store.add("failures", 0) > 0
        except RuntimeError:
            return True

    def first_to_fail(self) -> bool:
        """Whether no other process has failed before: only the first failure is worth printing."""
        if self.store is None:
            return True
        try:
            return self.store.add("failures", 1) == 1
        except RuntimeError:  # the machine with the store is gone
            return True


ALONE = World()


@contextmanager
def join() -> Iterator[World]:
    """Meet the other processes that `torchrun` started; alone without it.

    Processes other than rank 0 print nothing to stdout.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    try:
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        store, rank, size = next(iter(dist.rendezvous("env://")))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"WORLD_SIZE is set, but the rest of torchrun's environment is not ({error}); unset it"
        ) from None
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":  # torchrun on one machine keeps its store when it restarts
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    # Two backends: tensors on GPUs go over NCCL, what hosts tell each other over gloo, without a GPU's waiting.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    with _peers():
        dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size)
    world = World(rank, size, local_rank, local_size, store)
    printed = sys.stdout
    if not world.is_main:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (closed with the process)
    try:
        yield world
        if not world.failed():  # with a peer gone there is nobody to part from
            dist.destroy_process_group()
    finally:
        sys.stdout = printed


@contextmanager
def _peers() -> Iterator[None]:
    """Turn torch's many errors about a connection that another process closed into one."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(lost_contact(error)) from None


def lost_contact(error: RuntimeError) -> str:
    """A sentence for the user, from the first one of torch's message."""
    return f"lost contact with another process of this run ({str(error).splitlines()[0].split('. ')[0]})"


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error, of the gradients' exchange for one, says that another process has gone."""
    signs = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")
    return dist.is_initialized() and any(sign in str(error).lower() for sign in signs)


def share_of(count: int, size: int, rank: int) -> range:
    """The part of `count` things that a process takes: contiguous, in the order of ranks, sizes as even as can be."""
    return range(count * rank // size, count * (rank + 1) // size)


def check_gpus(world: World, device: str) -> None:
    """Refuse a GPU for several processes."""
    if world.local_size == 1 or not torch.cuda.is_available():
        return
    if device.startswith("cuda:"):
        raise UserError(
            f"device '{device}' is one GPU, but there are {world.local_size} processes here; give cuda or auto"
        )
    if device in ("auto", "cuda") and world.local_size > torch.cuda.device_count():
        raise UserError(
            f"{world.local_size} processes on this machine, but torch sees {torch.cuda.device_count()} GPUs; start as "
            "many processes as GPUs, or give the device cpu"
        )
