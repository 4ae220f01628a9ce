"""Arguments of a command line before they are parsed: one looked up, and all brought into the form that is parsed."""

import datetime
import json
from collections.abc import Sequence
from typing import Any

from util.config_files import read_yaml
from util.errors import UserError
from util.files import at_home


def take(argv: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """All values of an option that may be given several times, and the other arguments."""
    values, rest, i = [], [], 0
    while i < len(argv):
        if argv[i] == f"--{option}":
            if i + 1 == len(argv):
                raise UserError(f"option --{option} needs a value")
            values.append(argv[i + 1])
            i += 1
        elif argv[i].startswith(f"--{option}="):
            values.append(argv[i].split("=", 1)[1])
        else:
            rest.append(argv[i])
        i += 1
    return values, rest


def peek(argv: Sequence[str], option: str) -> str | None:
    """The value of one option, before all are parsed: on the line itself, else in the last --config file with it."""
    for i, argument in enumerate(argv):
        if argument == f"--{option}" and i + 1 < len(argv):
            return None if argv[i + 1] == "null" else at_home(argv[i + 1])
        if argument.startswith(f"--{option}="):
            return None if argument == f"--{option}=null" else at_home(argument.split("=", 1)[1])
    for file in reversed(take(argv, "config")[0]):
        value: Any = read_yaml(file)
        for part in option.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return at_home(str(value))
    return None


def peek_mapping(argv: Sequence[str], option: str) -> dict:
    """The value of an option that is a mapping, of the last --config file with it; empty if there is none."""
    for file in reversed(take(argv, "config")[0]):
        value = read_yaml(file).get(option)
        if isinstance(value, dict):
            return value
    return {}


def with_auto_batch(argv: Sequence[str]) -> list[str]:
    """`--train.batch_size auto` asks how many images fit, which must not change what a step is made of.

    So the batch stays what a preset says, and it is `max_images_per_device` that is found.
    """
    given = [argument.replace("--train.batch-size", "--train.batch_size") for argument in argv]
    found = "--train.max_images_per_device"
    for i, argument in enumerate(given):
        if argument == "--train.batch_size=auto" or (
            argument == "--train.batch_size" and given[i + 1 : i + 2] == ["auto"]
        ):
            given[i] = argument.replace("--train.batch_size", found)
    return given


def as_argument(value: Any) -> str:
    """A value of a file as it would stand on the command line."""
    if isinstance(value, datetime.date):  # YAML makes one of 2024-01-31, which was meant as text
        return str(value)
    return at_home(value) if isinstance(value, str) else json.dumps(value, default=str)


def with_home(argv: list[str]) -> list[str]:
    """Paths in the home folder: shells leave `~` as it is after an equals sign and in quotes. No other text has it."""
    written = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        written.append(name + equals + at_home(value) if argument.startswith("--") else at_home(argument))
    return written


def with_underscores(argv: list[str], options: dict[str, Any]) -> list[str]:
    """`--dry-run` is `--dry_run`: both are habits."""
    written = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        known = name.startswith("--") and name[2:].replace("-", "_") in options
        written.append(f"--{name[2:].replace('-', '_')}{equals}{value}" if known else argument)
    return written


def complete_flags(argv: list[str], options: dict[str, Any]) -> list[str]:
    """`--train.fast_dev_run` alone means true."""
    completed = []
    for i, argument in enumerate(argv):
        completed.append(argument)
        alone = i + 1 == len(argv) or argv[i + 1].startswith("--")
        if options.get(argument.removeprefix("--")) is bool and argument.startswith("--") and alone:
            completed.append("true")
    return completed
