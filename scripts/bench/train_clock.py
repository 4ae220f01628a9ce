"""Measures how long each part of a training step takes."""

import time
from collections import defaultdict
from collections.abc import Callable

import torch

PARTS = (
    "transfer, normalise",
    "backbone",
    "neck",
    "encoder",
    "queries",
    "decoder, heads",
    "masks, positions",
    "mimicking",
    "matching",
    "losses",
    "backward to the maps",
    "backward of the backbone",
    "clip, check",
    "optimizer",
    "EMA",
)


class Clock:
    """Notes when wrapped calls begin and end, on the device's clock."""

    def __init__(self, device: torch.device):
        self.on_cuda = device.type == "cuda"
        self.spans: dict[str, list[tuple]] = defaultdict(list)

    def now(self):
        """The present time: an event in CUDA's queue, or seconds."""
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(self, call: Callable, name: str, then: Callable | None = None) -> Callable:
        """Wrap `call` so that its time is noted under a name; `then` is given its result."""

        def run(*args, **kwargs):
            begin = self.now()
            out = call(*args, **kwargs)
            self.spans[name].append((begin, self.now()))
            if then is not None:
                then(out)
            return out

        return run

    def wrap(self, owner: object, method: str, name: str, then: Callable | None = None) -> None:
        """Replace a method by a timed one; for a compiled module, replace the compiled call."""
        if method == "forward" and getattr(owner, "_compiled_call_impl", None) is not None:
            method = "_compiled_call_impl"
        setattr(owner, method, self.timed(getattr(owner, method), name, then))

    def take(self) -> dict[str, float]:
        """Milliseconds of the parts of the last step, in the order of `PARTS`; clears the notes."""
        if self.on_cuda:
            torch.cuda.synchronize()
        spans, self.spans = self.spans, defaultdict(list)
        between = (lambda a, b: a.elapsed_time(b)) if self.on_cuda else (lambda a, b: 1e3 * (b - a))
        ms = {name: sum(between(*span) for span in found) for name, found in spans.items()}
        computed, unscaled = spans["criterion"][0][1], spans["unscale"][0][0]
        reached = spans["maps"][0][0] if "maps" in spans else unscaled
        if "mimicking" in ms:
            ms["backbone"] = between(*spans["backbone"][0])  # the second call is for the crops
        ms["masks, positions"] = ms["forward"] - sum(ms[name] for name in (*PARTS[1:6], "mimicking") if name in ms)
        ms["losses"] = ms["criterion"] - ms["matching"]
        ms["backward to the maps"] = between(computed, reached)
        ms["backward of the backbone"] = between(reached, unscaled)
        ms["clip, check"] = between(unscaled, spans["optimizer"][0][0])
        return {name: ms[name] for name in PARTS if name in ms}


def note_gradients(clock: Clock, maps: list[torch.Tensor]) -> None:
    """Note when the deepest map has its gradient; after that only the backbone's gradients remain to be computed."""
    if maps[-1].requires_grad:
        maps[-1].register_hook(clock.timed(lambda grad: None, "maps"))
