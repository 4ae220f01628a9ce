"""From the command line and YAML files to a typed configuration, with errors of one sentence."""

import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from util.arguments import as_argument, complete_flags, take, with_home, with_underscores
from util.config_files import flatten, read_yaml
from util.errors import UserError
from util.option_parser import describe, make_parser, nearest
from util.options import build, field_types, values_of

T = TypeVar("T")


def parse(
    kind: type[T],
    argv: Sequence[str],
    prog: str,
    epilog: str = "",
    base: dict[str, Any] | None = None,
    passed_over: Sequence[str] = (),
) -> T:
    """Build a configuration: defaults, then `base`, then `--config` files in order, then dotted options.

    Args:
        kind: dataclass of the command.
        argv: arguments after the command's name.
        prog: shown in the help.
        epilog: examples, shown below the help.
        base: nested dictionary from a checkpoint; keys that `kind` does not have are left out.
        passed_over: sections of files that are another command's.

    Raises:
        UserError: unknown key (names the nearest), wrong type, or a file that cannot be read.
    """
    options = field_types(kind)
    files, argv = take(argv, "config")
    merged = {k: v for k, v in flatten(base or {}, options).items() if k in options}
    for file in files:
        values = flatten({k: v for k, v in read_yaml(file).items() if k not in passed_over}, options)
        for key, value in values.items():
            if key not in options:
                raise UserError(f"{file}: unknown key '{key}'{nearest(key, options)}")
            if value is None and type(None) not in typing.get_args(options[key]):
                raise UserError(f"{file}: {key} is null, but must be {describe(options[key])}")
        merged |= values
    argv = complete_flags(with_underscores(with_home(argv), options), options)
    parser = make_parser(kind, prog, epilog)
    # Files go through the same parser as options, and before them, so that options win.
    namespace = parser.parse_args([f"--{k}={as_argument(v)}" for k, v in merged.items()] + argv)
    return build(kind, namespace)


def override(config: T, values: dict[str, Any]) -> T:
    """A copy of a configuration with some options changed, checked as on the command line.

    Args:
        config: keeps its values.
        values: values by dotted option name.

    Raises:
        UserError: unknown key (names the nearest), or wrong type.
    """
    return parse(
        type(config),
        [f"--{key}={as_argument(value)}" for key, value in values.items()],
        "",
        "",
        values_of(config),
    )
