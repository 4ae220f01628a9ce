"""The end of a program whose output nobody reads any more."""

import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

CLOSED = 141  # exit code of a program that SIGPIPE ended, as a shell reports it


def exit_quietly(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> NoReturn:
    """Run a program and exit with its code; say nothing if the reader of its output has gone, as after `| head -1`."""
    try:
        try:
            code = main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not is_unread():
            raise
        # The interpreter flushes once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = CLOSED
    sys.exit(code)


def is_unread() -> bool:
    """Whether standard output is a pipe whose reader has gone."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # a system without poll, or no file at all
        return False
