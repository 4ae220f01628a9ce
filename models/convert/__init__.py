"""Weights of other projects' detectors, renamed to ours. Each family of names is a file, with a table of them."""

from models.convert.common import Converted
from models.convert.huggingface import from_transformers
from models.convert.original import from_original

__all__ = ["Converted", "from_original", "from_transformers"]
