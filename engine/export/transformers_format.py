"""Format `transformers`: a folder that `AutoModelForObjectDetection` and `pipeline("object-detection")` load."""

import json
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from engine.export.source import Source
from models.convert.to_huggingface import Folder, to_transformers
from models.load import load_detector
from util.command_config import ExportConfig
from util.errors import UserError


def export_transformers(source: Source, options: ExportConfig, output: Path) -> str:
    """Write config.json, model.safetensors and preprocessor_config.json into the folder, and compare them first.

    Raises:
        UserError: names what transformers' architecture cannot say, or an option that such a folder does not keep; or
            the files, read again, are another detector, and are not kept.
    """
    for option in ("fixed", "operator", "top_k", "threshold"):
        if getattr(options, option) != getattr(ExportConfig(), option):
            raise UserError(
                f"--{option} is not kept in a transformers folder; its image processor is told when it is called: "
                "leave it out"
            )
    names = {c.label: c.name for c in source.categories if c.name}
    folder = to_transformers(source.model, source.config, names, source.data.eval_size, source.data.max_size)
    with TemporaryDirectory(prefix="unchecked_", dir=output) as place:
        unchecked = Path(place)
        size = write_folder(folder, unchecked)
        _check_weights(source, unchecked)
        difference = _beside(source, options, unchecked)
        for file in unchecked.iterdir():
            file.replace(output / file.name)
    return "\n".join(
        [
            f"config.json, preprocessor_config.json and model.safetensors ({len(folder.tensors)} tensors, "
            f"{size / 1e6:.1f} MB) are in {output}",
            "read again by this project: every weight is the same to the bit",
            difference,
            f'pipeline("object-detection", "{output}") and AutoModelForObjectDetection.from_pretrained("{output}") '
            "load it",
        ]
    )


def write_folder(folder: Folder, output: Path) -> int:
    """Write the three files; returns the size of the weights in bytes."""
    weights = output / "model.safetensors"
    save_file(folder.tensors, weights, metadata={"format": "pt"})
    for name, content in (("config", folder.config), ("preprocessor_config", folder.preprocessor)):
        (output / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    return weights.stat().st_size


def _check_weights(source: Source, folder: Path) -> None:
    """Read the files as any other checkpoint, and compare every weight that inference needs."""
    read = load_detector(str(folder)).model.state_dict()
    own = {k: v for k, v in source.model.state_dict().items() if not k.startswith("training_queries.")}
    for key in (own.keys() | read.keys()) - {k for k in own.keys() | read.keys() if k.endswith("num_batches_tracked")}:
        if key not in own or key not in read or not torch.equal(own[key], read[key]):
            raise UserError(f"what was written is not kept: '{key}' is not the same when it is read again")


def _beside(source: Source, options: ExportConfig, folder: Path) -> str:
    """What transformers makes of the files, beside the detector."""
    if find_spec("transformers") is None:
        return (
            "not compared with transformers, which is not installed: pip install transformers, and export again to "
            "see the differences"
        )
    from engine.export.beside_transformers import compare  # the package takes seconds, and help needs none of it

    return compare(source, options, folder)
