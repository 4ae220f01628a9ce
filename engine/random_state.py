"""The state of every random generator, as plain data."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Any]:
    """Every generator's state, as plain data."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "cpu": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
    }
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_state` returned. Generators that the state does not mention stay as they are."""
    torch.set_rng_state(state["cpu"])
    if "python" in state:
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if device.type == "cuda" and isinstance(state.get("cuda"), Tensor):
        torch.cuda.set_rng_state(state["cuda"], device)
