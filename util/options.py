"""The options of a configuration: its fields, those of its sections by dotted name."""

import typing
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, TypeVar, cast

T = TypeVar("T")


def field_types(kind: type, prefix: str = "") -> dict[str, Any]:
    """Types of all options by dotted name."""
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for f in fields(kind):
        if is_dataclass(hints[f.name]):
            found |= field_types(hints[f.name], f"{prefix}{f.name}.")
        else:
            found[prefix + option_of(f.name)] = hints[f.name]
    return found


def values_of(config: Any) -> dict[str, Any]:
    """All values of a configuration, nested, by the names of their options."""
    copied = asdict(config)
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return {option_of(n): values_of(v) if is_dataclass(v) else copied[n] for n, v in values.items()}


def build(kind: type[T], namespace: Any) -> T:
    """A configuration from what was parsed; what is not there takes its default."""
    hints, values = typing.get_type_hints(kind), {}
    for f in fields(cast(Any, kind)):
        value = getattr(namespace, option_of(f.name), MISSING)
        if value is not MISSING:
            values[f.name] = build(hints[f.name], value) if is_dataclass(hints[f.name]) else value
    return kind(**values)


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass from nested dictionaries; unknown keys are left out, missing ones take their defaults."""
    hints = typing.get_type_hints(kind)
    known = {f.name: values[f.name] for f in fields(cast(Any, kind)) if f.name in values}
    return kind(**{k: from_dict(hints[k], v) if is_dataclass(hints[k]) else v for k, v in known.items()})


def option_of(field: str) -> str:
    """The option of a field: `from_` is `from`, which Python keeps for itself."""
    return field.removesuffix("_")
