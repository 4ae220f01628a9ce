"""Means of losses for the log, which cost no transfer to the host before they are logged."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from util.distributed import World


class LossMeans:
    """Sums of losses on the device, which are brought to the host only to be logged."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.recent: Tensor | None = None
        self.total: Tensor | None = None
        self.counts = [0, 0]  # steps in recent, in total

    def add(self, names: Sequence[str], values: Tensor) -> None:
        """Add the values `[N]` of one step, for this process's images."""
        self.names = list(names)
        self.recent = values.clone() if self.recent is None else self.recent + values
        self.total = values.clone() if self.total is None else self.total + values
        self.counts = [count + 1 for count in self.counts]

    def take(self, world: World) -> dict[str, float]:
        """Means since the last call, over all processes; `loss` is the sum of the losses."""
        means = _named(self.names, self.recent, self.counts[0], world)
        self.recent, self.counts[0] = None, 0
        return means

    def take_total(self, world: World) -> dict[str, float]:
        """Means of the whole pass; begins a new one."""
        means = _named(self.names, self.total, self.counts[1], world)
        self.names, self.recent, self.total, self.counts = [], None, None, [0, 0]
        return means

    def state_dict(self, world: World) -> dict[str, Any]:
        """The sums over all processes."""
        sums = {
            k: None if v is None else world.sum(v).cpu() for k, v in (("recent", self.recent), ("total", self.total))
        }
        return {"names": self.names, "counts": list(self.counts), **sums}

    def load_state_dict(self, saved: dict[str, Any], device: torch.device, world: World) -> None:
        """Restore the sums. Rank 0 takes them all, for the sums of the processes are added later."""
        self.names, self.counts = saved["names"], list(saved["counts"])
        for k in ("recent", "total"):
            value = saved[k]
            if value is not None:
                value = value.to(device) if world.is_main else torch.zeros_like(value, device=device)
            setattr(self, k, value)


def _named(names: Sequence[str], sums: Tensor | None, steps: int, world: World) -> dict[str, float]:
    """Means over steps and processes, by name; `loss` is the sum of the losses."""
    if sums is None:
        raise ValueError("there is no step to take the mean of")
    means = dict(zip(names, (world.sum(sums) / steps).tolist()))
    return {"loss": sum(v for name, v in means.items() if name != "grad_norm"), **means}
