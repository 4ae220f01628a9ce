"""Format `onnx`: model.onnx."""

from pathlib import Path

from engine.export.source import Source
from util.config import ExportConfig


def export_onnx(source: Source, options: ExportConfig, output: Path) -> str:
    """Write model.onnx into the folder."""
    raise NotImplementedError
