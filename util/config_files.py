"""YAML files of options: read, and written so that they can be read again."""

import difflib
from pathlib import Path
from typing import Any

import yaml

from util.errors import UserError
from util.files import at_home
from util.options import values_of


def read_yaml(file: str) -> dict:
    """The sections of a file; none if it is empty.

    Raises:
        UserError: no such file (names the nearest preset), or none that holds sections.
    """
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


def flatten(values: dict, options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of sections by dotted name, those of unknown options among them.

    Args:
        values: nested dictionary.
        options: all that there are, by dotted name: they say what is a section.
        prefix: of the names.

    Raises:
        UserError: something else where a section should be.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        is_section = any(option.startswith(f"{name}.") for option in options)
        if is_section and isinstance(value, dict):
            flat |= flatten(value, options, f"{name}.")
        elif is_section and value is None:
            continue
        elif is_section:
            raise UserError(f"'{name}' is a section that holds options; it cannot be {value!r}")
        else:
            flat[name] = value
    return flat


def to_yaml(config: Any) -> str:
    """The whole configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(values_of(config), sort_keys=False, default_flow_style=None, width=100)
