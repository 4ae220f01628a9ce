"""Format `torch`: a program of torch.export, which loads without this code's model classes."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

import ops
from engine.export.graph import ImagesToDetections, smallest_side, trace
from engine.export.program_file import Size, checked, sizes_text, write_files
from engine.export.refuse import exporter_errors
from engine.export.source import Source
from engine.exported import torch_runner
from util.command_config import ExportConfig


def export_torch(source: Source, options: ExportConfig, output: Path) -> str:
    """Write model.pt2, or, for fixed sizes, model_HEIGHTxWIDTH.pt2 each, and compare each with the detector.

    Raises:
        UserError: the exporter cannot write it, or a file differs from the detector, and is not kept.
    """
    reference = options.operator == "reference" or ops.selected_backend("cpu") == "reference"

    def write_one(detector: ImagesToDetections, path: Path, size: Size, batches: list[Tensor]) -> str:
        with exporter_errors("a program"):
            program = trace(detector, size, reference)
        said = source.describe(options, 1 if size else smallest_side(program), size)
        said.operator = "reference" if reference else "deformable_detr::ms_deform_attn"

        def save(to: str) -> None:
            with warnings.catch_warnings():  # of tensors that are parts of others; whether they come back is compared
                warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
                torch.export.save(program, to, extra_files={"metadata.json": said.to_json()})

        difference = checked(path, save, torch_runner, detector, batches, said)
        megabytes = path.stat().st_size / 1e6
        return f"{path}: {megabytes:.1f} MB, operator {said.operator}, {sizes_text(said)}\n{difference}"

    return write_files(source, options, output, ".pt2", write_one)
