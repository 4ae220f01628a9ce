"""Format `torch`: a program of torch.export, which loads without this code's model classes."""

import warnings
from pathlib import Path

import torch

import ops
from engine.export.compare import sample_batches
from engine.export.graph import ImagesToDetections, smallest_side, trace
from engine.export.onnx_format import checked, sizes_text
from engine.export.refuse import exporter_errors
from engine.export.source import Source
from engine.exported import torch_runner
from util.config import ExportConfig
from util.profiling import image_size


def export_torch(source: Source, options: ExportConfig, output: Path) -> str:
    """Write model.pt2, or, for fixed sizes, model_HEIGHTxWIDTH.pt2 each, and compare each with the detector.

    Raises:
        UserError: the exporter cannot write it, or a file differs from the detector, and is not kept.
    """
    sizes: list[tuple[int, int] | None] = [image_size(text) for text in options.fixed]
    detector = ImagesToDetections(source.model, options.top_k).eval()
    return "\n".join(_write_one(detector, source, options, output, size) for size in sizes or [None])


def _write_one(
    detector: ImagesToDetections,
    source: Source,
    options: ExportConfig,
    output: Path,
    size: tuple[int, int] | None,
) -> str:
    path = output / (f"model_{size[0]}x{size[1]}.pt2" if size else "model.pt2")
    batches = sample_batches(options.images, source.data, size)  # first, for a mistake to be told at once
    print(f"writing {path}; a large detector takes minutes", flush=True)
    reference = options.operator == "reference" or ops.selected_backend("cpu") == "reference"
    with exporter_errors("a program"):
        program = trace(detector, size, reference)
    said = source.describe(options, 1 if size else smallest_side(program), size)
    said.operator = "reference" if reference else "deformable_detr::ms_deform_attn"
    extra = {"metadata.json": said.to_json()}

    def save(to: str) -> None:
        with warnings.catch_warnings():  # of tensors that are parts of others; whether they come back is compared
            warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
            torch.export.save(program, to, extra_files=extra)

    difference = checked(path, save, torch_runner, detector, batches)
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB, operator {said.operator}, {sizes_text(said)}\n{difference}"
