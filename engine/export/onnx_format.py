"""Format `onnx`: one file that ONNX Runtime and others run, the sampling operator as `GridSample` and weighted sums."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from engine.export.compare import compare, sample_batches
from engine.export.graph import ImagesToDetections, quiet, smallest_side, trace
from engine.export.refuse import check_onnx_can_say, exporter_errors
from engine.export.source import Source
from engine.exported import onnx_runner
from util.config import ExportConfig
from util.errors import UserError
from util.exported import INSTALL, Exported
from util.profiling import image_size

OPSET = 18
OUTPUTS = ["boxes", "scores", "labels"]


def export_onnx(source: Source, options: ExportConfig, output: Path) -> str:
    """Write model.onnx, or, for fixed sizes, model_HEIGHTxWIDTH.onnx each, and compare each with the detector.

    Raises:
        UserError: the detector has a part that ONNX cannot say, or a file differs from it, and is not kept.
    """
    need_onnx()
    check_onnx_can_say(source.model)
    sizes: list[tuple[int, int] | None] = [image_size(text) for text in options.fixed]
    detector = ImagesToDetections(source.model, options.top_k).eval()
    return "\n".join(_write_one(detector, source, options, output, size) for size in sizes or [None])


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


def _write_one(
    detector: ImagesToDetections,
    source: Source,
    options: ExportConfig,
    output: Path,
    size: tuple[int, int] | None,
) -> str:
    path = output / (f"model_{size[0]}x{size[1]}.onnx" if size else "model.onnx")
    batches = sample_batches(options.images, source.data, size)  # first, for a mistake to be told at once
    print(f"writing {path}; a large detector takes minutes", flush=True)
    with exporter_errors("ONNX"), quiet("onnxscript", "onnx_ir", "torch.onnx"):
        program = trace(detector, size, reference=True)
        least = 1 if size else smallest_side(program)
        written = _translate(program)
    said = source.describe(options, least, size)
    written.model.metadata_props.update(said.to_strings())
    difference = checked(path, written.save, onnx_runner, detector, batches)
    megabytes = path.stat().st_size / 1e6
    return f"{path}: {megabytes:.1f} MB, opset {OPSET}, {sizes_text(said)}\n{difference}"


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


def sizes_text(said: Exported) -> str:
    """Which images a file takes, to print."""
    if said.fixed:
        return f"any number of images of {said.fixed[0]}x{said.fixed[1]} pixels"
    return f"any number of images of any size from {said.smallest_side} pixels on"


def checked(path: Path, save: Callable, open_it: Callable, detector: ImagesToDetections, batches: list) -> str:
    """Write a file under another name, compare it with the detector, and give it its name if it is right.

    Args:
        path: the file; one that is there stays until the new one is right.
        save: writes to a path.
        open_it: from a path to what runs the file.
        detector: what the file was made of.
        batches: images to compare on.

    Returns:
        The difference, to print.

    Raises:
        UserError: it differs, or cannot be run.
    """
    unchecked = path.with_name(f"unchecked_{path.name}")
    try:
        save(str(unchecked))
        difference = compare(detector, open_it(unchecked), batches)
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)
    return difference.text()
