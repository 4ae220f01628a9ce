"""From the command line and YAML files to a typed configuration, with errors of one sentence."""

import datetime
import difflib
import functools
import json
import operator
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

import docstring_parser
import jsonargparse
import yaml

from util.errors import UserError
from util.files import at_home

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
    merged = {k: v for k, v in _flatten(base or {}, options).items() if k in options}
    for file in files:
        values = _flatten({k: v for k, v in _read_yaml(file).items() if k not in passed_over}, options)
        for key, value in values.items():
            if key not in options:
                raise UserError(f"{file}: unknown key '{key}'{_nearest(key, options)}")
            if value is None and type(None) not in typing.get_args(options[key]):
                raise UserError(f"{file}: {key} is null, but must be {describe(options[key])}")
        merged |= values
    argv = _complete_flags(_with_underscores(_with_home(argv), options), options)
    parser = _parser(kind, prog, epilog)
    # Files go through the same parser as options, and before them, so that options win.
    namespace = parser.parse_args([f"--{k}={_as_argument(v)}" for k, v in merged.items()] + argv)
    return _build(kind, namespace)


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
        [f"--{key}={_as_argument(value)}" for key, value in values.items()],
        "",
        "",
        _values(config),
    )


def peek(argv: Sequence[str], option: str) -> str | None:
    """The value of one option, before all are parsed: on the line itself, else in the last --config file with it."""
    for i, argument in enumerate(argv):
        if argument == f"--{option}" and i + 1 < len(argv):
            return None if argv[i + 1] == "null" else at_home(argv[i + 1])
        if argument.startswith(f"--{option}="):
            return None if argument == f"--{option}=null" else at_home(argument.split("=", 1)[1])
    for file in reversed(take(argv, "config")[0]):
        value: Any = _read_yaml(file)
        for part in option.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return at_home(str(value))
    return None


def peek_mapping(argv: Sequence[str], option: str) -> dict:
    """The value of an option that is a mapping, of the last --config file with it; empty if there is none."""
    for file in reversed(take(argv, "config")[0]):
        value = _read_yaml(file).get(option)
        if isinstance(value, dict):
            return value
    return {}


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


def to_yaml(config: Any) -> str:
    """The whole configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(_values(config), sort_keys=False, default_flow_style=None, width=100)


def field_types(kind: type, prefix: str = "") -> dict[str, Any]:
    """Types of all options by dotted name."""
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for f in fields(kind):
        if is_dataclass(hints[f.name]):
            found |= field_types(hints[f.name], f"{prefix}{f.name}.")
        else:
            found[prefix + _option_of(f.name)] = hints[f.name]
    return found


def _values(config: Any) -> dict[str, Any]:
    """All values of a configuration, nested, by the names of their options."""
    copied = asdict(config)
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return {_option_of(n): _values(v) if is_dataclass(v) else copied[n] for n, v in values.items()}


def _option_of(field: str) -> str:
    """The option of a field: `from_` is `from`, which Python keeps for itself."""
    return field.removesuffix("_")


class _Parser(jsonargparse.ArgumentParser):
    """jsonargparse with errors for users."""

    options: dict[str, Any]

    def print_help(self, file: Any = None) -> None:
        """Fail if nobody reads it any more, where argparse would ignore that."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:
        key = re.search(r'[Kk]ey "([\w.]+)"', message)
        given = re.search(r"(?:Got value|Given value): (.*)", message)
        if key and given and key.group(1) in self.options:
            name = key.group(1)
            raise UserError(f"{name} is '{given.group(1).strip()}', but must be {describe(self.options[name])}")
        unknown = re.search(r"unrecognized arguments: (.*)", message, re.DOTALL)
        if unknown:
            first = unknown.group(1).split()[0]
            name = first.lstrip("-").split("=")[0]
            if not first.startswith("--"):
                several = "; a pattern of files is quoted" if Path(first).exists() else ""
                raise UserError(f"'{first}' is no option; options are written --name value{several}")
            raise UserError(f"unknown option '--{name}'{_nearest(name, self.options)}")
        expected = re.search(r"argument (\S+): expected one argument", message)
        if expected:
            raise UserError(f"option {expected.group(1).split('/')[0]} needs a value")
        raise UserError(" ".join(message.split()))


def _parser(kind: type, prog: str, epilog: str) -> _Parser:
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [--config FILE ...] [--OPTION VALUE ...]",
        description=(kind.__doc__ or "").strip(),
        epilog=epilog,
        allow_abbrev=False,
        default_env=False,
    )
    parser.options = field_types(kind)
    parser.add_argument(
        "--config", metavar="FILE", help="YAML preset; may be given several times, later ones and options win"
    )
    _add_options(parser, kind)
    return parser


def _add_options(parser: _Parser, kind: type, prefix: str = "") -> None:
    """One group of options for each dataclass, with the help that stands below each field."""
    hints = typing.get_type_hints(kind)
    help_of = _help_of(kind)
    plain = [f for f in fields(kind) if not is_dataclass(hints[f.name])]
    target = parser.add_argument_group((kind.__doc__ or "").strip()) if prefix and plain else parser
    for f in plain:
        default = f.default if f.default_factory is MISSING else f.default_factory()
        target.add_argument(
            f"--{prefix}{_option_of(f.name)}", type=_written_out(hints[f.name]), default=default, help=help_of[f.name]
        )
    for f in fields(kind):
        if is_dataclass(hints[f.name]):
            _add_options(parser, hints[f.name], f"{prefix}{f.name}.")


@functools.cache  # it reads the sources, which takes longer than all else that is parsed
def _help_of(kind: type) -> dict[str, str | None]:
    """What stands below each field of a dataclass."""
    ancestors = [k for k in reversed(kind.__mro__) if is_dataclass(k)]  # each documents its own fields
    return {p.arg_name: p.description for k in ancestors for p in docstring_parser.parse_from_object(k).params}


def _written_out(hint: Any) -> Any:
    """`int | None` for `Optional[int]`, which is what Python makes of `Positive | None`, so that the help says null."""
    return functools.reduce(operator.or_, typing.get_args(hint)) if typing.get_origin(hint) is Union else hint


def describe(hint: Any) -> str:
    """A type in words: `int`, `list of int`, `one of 'a', 'b'`, `... or null`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(f"'{a}'" for a in arguments)
    if origin is list:
        return (
            "a list of names, like [a,b]" if arguments[0] is str else f"a list of {arguments[0].__name__}, like [1,2]"
        )
    if origin is dict:
        return "a mapping, like {key: value}"
    return {type(None): "null", bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint]


def _nearest(name: str, options: dict[str, Any]) -> str:
    leaf = name.rsplit(".", 1)[-1]
    near = [o for o in options if o.rsplit(".", 1)[-1] == leaf][:1]  # the right name under the wrong section
    near = near or difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if not near:
        leaves = difflib.get_close_matches(leaf, [o.rsplit(".", 1)[-1] for o in options], n=1, cutoff=0.6)
        near = [o for o in options if leaves and o.rsplit(".", 1)[-1] == leaves[0]][:1]
    return f"; did you mean '{near[0]}'?" if near else "; see --help for all"


def _read_yaml(file: str) -> dict:
    path = Path(at_home(file))
    if not path.is_file():
        presets = sorted(str(p) for p in Path(__file__).resolve().parent.parent.glob("configs/*.yaml"))
        near = difflib.get_close_matches(path.stem, [Path(p).stem for p in presets], n=1)
        hint = f"; did you mean configs/{near[0]}.yaml?" if near else ""
        raise UserError(f"no configuration file '{file}'{hint}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"configuration file '{file}' is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"configuration file '{file}' must hold sections such as 'model:' and 'train:'")
    return content


def _flatten(values: dict, options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        is_section = any(option.startswith(f"{name}.") for option in options)
        if is_section and isinstance(value, dict):
            flat |= _flatten(value, options, f"{name}.")
        elif is_section and value is None:
            continue
        elif is_section:
            raise UserError(f"'{name}' is a section that holds options; it cannot be {value!r}")
        else:
            flat[name] = value
    return flat


def _as_argument(value: Any) -> str:
    if isinstance(value, datetime.date):  # YAML makes one of 2024-01-31, which was meant as text
        return str(value)
    return at_home(value) if isinstance(value, str) else json.dumps(value, default=str)


def _with_home(argv: list[str]) -> list[str]:
    """Paths in the home folder: shells leave `~` as it is after an equals sign and in quotes. No other text has it."""
    written = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        written.append(name + equals + at_home(value) if argument.startswith("--") else at_home(argument))
    return written


def _with_underscores(argv: list[str], options: dict[str, Any]) -> list[str]:
    """`--dry-run` is `--dry_run`: both are habits."""
    written = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        known = name.startswith("--") and name[2:].replace("-", "_") in options
        written.append(f"--{name[2:].replace('-', '_')}{equals}{value}" if known else argument)
    return written


def _complete_flags(argv: list[str], options: dict[str, Any]) -> list[str]:
    """`--train.fast_dev_run` alone means true."""
    completed = []
    for i, argument in enumerate(argv):
        completed.append(argument)
        alone = i + 1 == len(argv) or argv[i + 1].startswith("--")
        if options.get(argument.removeprefix("--")) is bool and argument.startswith("--") and alone:
            completed.append("true")
    return completed


def _build(kind: type[T], namespace: Any) -> T:
    hints, values = typing.get_type_hints(kind), {}
    for f in fields(cast(Any, kind)):
        value = getattr(namespace, _option_of(f.name), MISSING)
        if value is not MISSING:
            values[f.name] = _build(hints[f.name], value) if is_dataclass(hints[f.name]) else value
    return kind(**values)
