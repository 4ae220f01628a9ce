"""Deformable DETR for other programs: `from deformable_detr import load_predictor`.

Every module of this project is here under a name of its own, such as `deformable_detr.models.detector`, beside other
people's `datasets`, `models` or `util`. See `deformable_detr.imports` for how, and docs/library.md for examples.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deformable_detr.imports import serve

if TYPE_CHECKING:
    from engine.predict import load_predictor
    from engine.predictor import Predictor
    from engine.results import NamedDetections
    from util.config import TTAConfig
    from util.errors import UserError

__version__ = "0.1.0"
__all__ = ["NamedDetections", "Predictor", "TTAConfig", "UserError", "load_predictor"]
_MODULES = {
    "NamedDetections": "engine.results",
    "Predictor": "engine.predictor",
    "TTAConfig": "util.config",
    "UserError": "util.errors",
    "load_predictor": "engine.predict",
}

serve()


def __getattr__(name: str) -> Any:
    """What is in `__all__`, imported when it is asked for: torch takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
