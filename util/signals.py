"""SIGTERM and Ctrl-C as a request: finish the step, save, end."""

import signal
import sys
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
GRACE = 60  # seconds that a process which loads data lives on after SIGTERM
STOPPED = 75  # exit code of a run that was asked to stop and can be resumed (sysexits.h: EX_TEMPFAIL)


class StopRequest:
    """Whether this process was asked to stop; a context in which signals are requests.

    A second Ctrl-C interrupts at once.

    Args:
        quiet: print nothing, for another process of the run does.

    Attributes:
        requested: set by the first signal.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.requested, self.quiet = False, quiet
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested and not self.quiet:
            again = "; once more to end at once, without saving" if number == signal.SIGINT else ""
            print(f"{signal.Signals(number).name}: stopping after this step{again}", file=sys.stderr, flush=True)
        self.requested = True


def outlive_signals(worker: int = 0) -> None:
    """Let a process that loads data outlive a signal that reaches every process: the step still needs it.

    The process that started it ends it. SIGTERM ends it, too, but not at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
