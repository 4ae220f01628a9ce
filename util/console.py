"""Remarks that are made once, and the end of a program whose output nobody reads any more."""

import os
import select
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import NoReturn

CLOSED = 141  # exit code of a program that SIGPIPE ended, as a shell reports it


def exit_quietly(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> NoReturn:
    """Run a program and exit with its code; say nothing if the reader of its output has gone, as after `| head -1`.

    Args:
        main: the program; takes the arguments, gives the exit code.
        argv: its arguments.

    Raises:
        BrokenPipeError: something else than standard output has lost its reader.
    """
    try:
        try:
            code = main(argv)
        finally:
            if sys.stdout is not None:  # as it is if the program was started without one
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
        # Linux reports an error, other systems that the other end has hung up.
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # a system without poll, or no file at all
        return False


@cache
def say_once(remark: str) -> None:
    """To stderr, once, from one process."""
    if os.environ.get("RANK", "0") == "0":
        print(remark, file=sys.stderr)
