"""`export`: which format is written by which function."""

from collections.abc import Callable
from pathlib import Path

from engine.export.onnx_format import export_onnx
from engine.export.source import Source, read_source
from engine.export.torch_format import export_torch
from engine.export.transformers_format import export_transformers
from util.command import required
from util.command_config import ExportConfig
from util.files import make_folder

# Each writes into the folder, compares what it has written with the detector, and returns what there is to say.
FORMATS: dict[str, Callable[[Source, ExportConfig, Path], str]] = {
    "onnx": export_onnx,
    "torch": export_torch,
    "transformers": export_transformers,
}


def export(options: ExportConfig) -> str:
    """Write a checkpoint's detector into the output folder in one of the formats; returns the report to print.

    Raises:
        UserError: no such checkpoint, a detector that the format cannot say, or one that differs once it is written.
    """
    source = read_source(required(options.checkpoint, "checkpoint"), options)
    return FORMATS[options.format](source, options, make_folder(options.output, "output"))
