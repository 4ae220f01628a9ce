"""Format `torch`: model.pt2."""

from pathlib import Path

from engine.export.source import Source
from util.config import ExportConfig


def export_torch(source: Source, options: ExportConfig, output: Path) -> str:
    """Write model.pt2 into the folder."""
    raise NotImplementedError
