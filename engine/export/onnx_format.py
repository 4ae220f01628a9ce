"""Format `onnx`: one file that ONNX Runtime and others run, the sampling operator as `GridSample` and weighted sums."""

from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from engine.export.graph import ImagesToDetections, quiet, smallest_side, trace
from engine.export.program_file import Size, checked, sizes_text, write_files
from engine.export.refuse import check_onnx_can_say, exporter_errors
from engine.export.source import Source
from engine.exported import onnx_runner
from util.command_config import ExportConfig
from util.errors import UserError
from util.exported import INSTALL

OPSET = 18
OUTPUTS = ["boxes", "scores", "labels"]


def export_onnx(source: Source, options: ExportConfig, output: Path) -> str:
    """Write model.onnx, or, for fixed sizes, model_HEIGHTxWIDTH.onnx each, and compare each with the detector.

    Raises:
        UserError: the detector has a part that ONNX cannot say, or a file differs from it, and is not kept.
    """
    need_onnx()
    check_onnx_can_say(source.model)

    def write_one(detector: ImagesToDetections, path: Path, size: Size, batches: list[Tensor]) -> str:
        with exporter_errors("ONNX"), quiet("onnxscript", "onnx_ir", "torch.onnx"):
            program = trace(detector, size, reference=True)
            least = 1 if size else smallest_side(program)
            written = _translate(program)
        said = source.describe(options, least, size)

        def save(to: str) -> None:
            written.model.metadata_props.update(said.to_strings())
            written.save(to)

        difference = checked(path, save, onnx_runner, detector, batches, said)
        megabytes = path.stat().st_size / 1e6
        return f"{path}: {megabytes:.1f} MB, opset {OPSET}, {sizes_text(said)}\n{difference}"

    return write_files(source, options, output, ".onnx", write_one)


def need_onnx() -> None:
    """Refuse where a package is not installed.

    Raises:
        UserError: names the packages.
    """
    try:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            import_module(package)
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}, which is not installed: {INSTALL}") from None


def _translate(program: torch.export.ExportedProgram) -> torch.onnx.ONNXProgram:
    """ONNX of a graph, simplified unless that leaves a node without its input.

    The simplification (of onnxscript 0.7.2) makes one Clip of a Max and a Min, and names its limits after the value
    that is clipped. Where a value is clipped twice, as a reference that two layers share without refinement, the limits
    of one take the place of the other's: ONNX Runtime refuses such a file. Not simplified, the same graph is whole.
    """
    for simplified in (True, False):
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=OUTPUTS,
            external_data=False,
            verbose=False,
            optimize=simplified,
        )
        assert written is not None  # it is written to memory
        if is_whole(written.model.graph):
            break
    return cast("torch.onnx.ONNXProgram", written)


def is_whole(graph: Any) -> bool:
    """Whether every input of every node of an `onnx_ir.Graph` is made by a node, given, or a constant."""
    inputs = [value for node in graph for value in node.inputs if value is not None]
    return all(v.producer() is not None or v.is_graph_input() or v.is_initializer() for v in inputs)
