"""A command of `main.py`, and how its options are read. Nothing here imports torch unless a checkpoint is named."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from util import cli
from util.arguments import peek
from util.errors import UserError
from util.ranges import check_ranges


@dataclass(frozen=True)
class Command:
    """A word of the command line.

    Attributes:
        run: the function, from its options (and the processes, if they may be several) to an exit code.
        options: dataclass of its options.
        example: options that show its use.
        together: whether several processes may run it, started by torchrun.
        described_by: option that names a checkpoint, whose configuration is where the options start.
        by_pattern: whether that option may be a pattern; then the first checkpoint that it matches counts.
        passed_over: sections of a preset that mean nothing to it, for a preset describes training.
        rewrite: brings arguments of its own into the form that is parsed.
        check: refuses options that do not fit each other.
    """

    run: Callable[..., int]
    options: type
    example: str
    together: bool = False
    described_by: str | None = None
    by_pattern: bool = False
    passed_over: tuple[str, ...] = ()
    rewrite: Callable[[Sequence[str]], Sequence[str]] = list
    check: Callable[[Any], None] = lambda options: None

    def parse(self, name: str, argv: Sequence[str]) -> Any:
        """The options that `argv` gives to the command of this name, checked.

        Raises:
            UserError: an option, file or checkpoint that cannot be used.
        """
        base = {}
        if self.described_by and (path := peek(argv, self.described_by)):
            from util.described import described_options

            base = described_options(path, self.described_by, argv, self.by_pattern)
        example = f"example: python main.py {name} {self.example}"
        options: Any = cli.parse(self.options, self.rewrite(argv), f"main.py {name}", example, base, self.passed_over)
        check_ranges(options)
        self.check(options)
        return options


def required(value: str | None, option: str) -> str:
    """The value of an option that a command cannot do without.

    Raises:
        UserError: it was not given.
    """
    if not value:
        raise UserError(f"--{option} is missing")
    return value
