"""The parser of a configuration's options: help pages from its dataclasses, and errors of one sentence."""

import difflib
import functools
import operator
import re
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union

import docstring_parser
import jsonargparse

from util.errors import UserError
from util.options import field_types, option_of


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
            raise UserError(f"unknown option '--{name}'{nearest(name, self.options)}")
        expected = re.search(r"argument (\S+): expected one argument", message)
        if expected:
            raise UserError(f"option {expected.group(1).split('/')[0]} needs a value")
        raise UserError(" ".join(message.split()))


def make_parser(kind: type, prog: str, epilog: str) -> _Parser:
    """The parser of a configuration; `epilog` stands below the help of the program `prog`."""
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
            f"--{prefix}{option_of(f.name)}", type=_written_out(hints[f.name]), default=default, help=help_of[f.name]
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


def nearest(name: str, options: dict[str, Any]) -> str:
    """The end of a sentence on an unknown option: which one may have been meant."""
    leaf = name.rsplit(".", 1)[-1]
    near = [o for o in options if o.rsplit(".", 1)[-1] == leaf][:1]  # the right name under the wrong section
    near = near or difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if not near:
        leaves = difflib.get_close_matches(leaf, [o.rsplit(".", 1)[-1] for o in options], n=1, cutoff=0.6)
        near = [o for o in options if leaves and o.rsplit(".", 1)[-1] == leaves[0]][:1]
    return f"; did you mean '{near[0]}'?" if near else "; see --help for all"
