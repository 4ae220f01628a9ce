"""Whether what Python finds under the names of this project's packages is this project's.

`datasets`, `models` and `util` are names that other projects have too, and Hugging Face's `datasets`. The packages call
this before their own imports, which would fail with the name of a module that nobody misses.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def check_own(*names: str) -> None:
    """Refuse to go on with somebody else's packages.

    Args:
        names: packages of this project that are about to be imported.

    Raises:
        ImportError: one sentence with the file that was found instead, and how to mend it; or the process has this
            project as `deformable_detr` already, and would get every class and operator twice.
    """
    twin = sys.modules.get("deformable_detr.util")
    if twin is not None and twin.__name__ != "util":
        raise ImportError(
            "this project is imported as deformable_detr already; go on with that name, such as "
            f"deformable_detr.{names[0]} for {names[0]}, or use the two in processes of their own"
        )
    for name in names:
        loaded = name in sys.modules
        found = _places_of_loaded(name) if loaded else _places_on_path(name)
        if not found or any(Path(place).resolve().is_relative_to(ROOT / name) for place in found):
            continue
        if loaded:
            reason = "which was imported before"
            mend = "import this project first, or use the two in processes of their own"
        else:
            reason = "which comes first in sys.path"
            mend = f"run from {ROOT}, or put it first: sys.path.insert(0, {str(ROOT)!r})"
        raise ImportError(f"this project's package '{name}' is hidden by {found[0]}, {reason}; {mend}")


def _places_of_loaded(name: str) -> list[str]:
    module = sys.modules[name]
    file = getattr(module, "__file__", None)
    return [file] if file else list(getattr(module, "__path__", ()))


def _places_on_path(name: str) -> list[str]:
    spec = importlib.util.find_spec(name)
    if spec is None:
        return []
    return [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
