"""Ranges of numeric options, written beside their types: `epochs: Annotated[int, Range(1)] = 50`."""

import math
import typing
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

from util.errors import UserError


@dataclass(frozen=True)
class Range:
    """The numbers that an option takes, both ends included; of a list, each of its numbers."""

    smallest: float
    largest: float = math.inf

    def __str__(self) -> str:
        if self.largest == math.inf:
            return f"at least {self.smallest}"
        return f"between {self.smallest} and {self.largest}"


def check_ranges(config: Any) -> None:
    """Refuse numbers that lie outside of the range of their option; null and words pass.

    Args:
        config: dataclass of options and of sections.

    Raises:
        UserError: names the option and its range.
    """
    for option, allowed in ranges_of(type(config)).items():
        value = config
        for name in option.split("."):
            value = getattr(value, name)
        numbers = value if isinstance(value, list) else [value] if isinstance(value, (int, float)) else []
        if not all(allowed.smallest <= number <= allowed.largest for number in numbers):  # NaN is in no range
            raise UserError(f"{option} is {value}; it must be {allowed}")


def ranges_of(kind: type, prefix: str = "") -> dict[str, Range]:
    """The ranges of a dataclass of options and of its sections, by dotted option name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found: dict[str, Range] = {}
    for field in fields(kind):
        hint = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            found |= ranges_of(hint, f"{prefix}{field.name}.")
        elif (allowed := _range_in(hint)) is not None:
            found[prefix + field.name] = allowed
    return found


def _range_in(hint: Any) -> Range | None:
    """The range of a type, or of a type that it is made of, as in `list[Annotated[int, Range(1)]] | None`."""
    if typing.get_origin(hint) is Annotated:
        return next((part for part in hint.__metadata__ if isinstance(part, Range)), None)
    return next((found for part in typing.get_args(hint) if (found := _range_in(part)) is not None), None)
