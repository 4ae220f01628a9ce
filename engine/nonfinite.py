"""A step whose losses or gradients are not finite: its images, and a file for `scripts/replay_batch.py`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from datasets.batch import Batch
from util.distributed import World
from util.errors import NonFinite


@dataclass
class Culprit:
    """A step that was not finite.

    Attributes:
        micro_batches: the batches of this process, on the host, as loaded.
        losses: `[N]` of each micro-batch that was computed before.
        random_state: before the step.
        num_boxes: objects in the whole batch.
        size: (H, W) of its largest image.
        processes: number of processes.
        step: number of the step, from 1.
        reason: what was seen.
    """

    micro_batches: Sequence[Batch]
    losses: Sequence[Tensor]
    random_state: dict[str, Any]
    num_boxes: int
    size: tuple[int, int]
    processes: int
    step: int
    reason: str = ""

    def image_ids(self) -> list[int | float | str]:
        """Ids of the images in micro-batches whose loss is not finite or was not reached; every id if all are."""
        finite = [bool(torch.isfinite(loss).all()) for loss in self.losses]
        suspects = [
            b for i, b in enumerate(self.micro_batches) if i == len(finite) or (i < len(finite) and not finite[i])
        ]
        return [o.image_id for batch in suspects or self.micro_batches for o in batch.objects]

    def all_finite(self) -> bool:
        """Whether every micro-batch's loss was computed and is finite."""
        reached = len(self.losses) == len(self.micro_batches)
        return reached and all(bool(torch.isfinite(loss).all()) for loss in self.losses)

    def content(self) -> dict[str, Any]:
        """The step as plain data, for a file."""
        return {
            "micro_batches": [
                {"images": b.images, "padding_mask": b.padding_mask, "targets": [asdict(o) for o in b.objects]}
                for b in self.micro_batches
            ],
            "random_state": self.random_state,
            "num_boxes": self.num_boxes,
            "size": list(self.size),
            "processes": self.processes,
            "step": self.step,
            "reason": self.reason,
        }


def dump_and_raise(culprit: Culprit, world: World, together: bool, dump: Callable[[Culprit], Any] | None) -> NoReturn:
    """Write down the step and end the run.

    Args:
        culprit: the step, as this process saw it.
        world: the processes.
        together: whether every process is here: they have the gradients' norm in common.
        dump: writes a file, gives its name.

    Raises:
        NonFinite: always; names the step, the images and the file.
    """
    guilty = not culprit.all_finite()
    if together and not any(world.all_gather(guilty)):  # the losses are finite everywhere, their gradients are not
        guilty = True
    ids, file = (culprit.image_ids(), dump(culprit) if dump else None) if guilty else ([], None)
    if together:  # the same sentence, whichever process gets to print it
        parts = world.all_gather((ids, file))
        ids, file = [i for part, _ in parts for i in part], next((f for _, f in parts if f), None)
    replay = f"; python scripts/replay_batch.py {file} computes the step again" if file else ""
    raise NonFinite(f"step {culprit.step}: {culprit.reason}; images {', '.join(map(str, ids[:32]))}{replay}")
