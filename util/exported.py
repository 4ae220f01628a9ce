"""Files that `export` writes for other runtimes, and what they say of themselves: classes, image sizes, limits."""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from util.errors import UserError

SUFFIXES = (".onnx", ".pt2")
INSTALL = "pip install onnx onnxruntime onnxscript"
FORMAT = "deformable-detr/export/1"
USE = {
    "input": "images: uint8 [batch, 3, height, width], RGB; all of a batch have one size; nothing is to be normalised",
    "resizing": "not in the file: before, bring the shorter side to `size`, the longer one to `max_size` at most "
    "(bilinear, antialiased); `height` and `width`, if they are there, are the only ones that the file takes",
    "output": "boxes [batch, N, 4] xyxy in pixels of the input, scores [batch, N] the best first, labels [batch, N]",
}


@dataclass
class Exported:
    """What a file says.

    Attributes:
        categories: `{"label", "id", "name"}` of each class.
        size: shorter side in pixels that images are brought to.
        max_size: bound of the longer one.
        top_k: most detections of an image.
        threshold: smallest score to draw.
        smallest_side: smallest height and width that the file is right for.
        fixed: (H, W) of the only images that it takes; None for any.
        operator: name of the sampling operator inside, `reference` for PyTorch's or ONNX's own.
    """

    categories: list[dict[str, Any]]
    size: int
    max_size: int
    top_k: int
    threshold: float
    smallest_side: int = 1
    fixed: tuple[int, int] | None = None
    operator: str = "reference"

    def to_strings(self) -> dict[str, str]:
        """Keys and values as both kinds of files keep them; `names` are the classes by label, in JSON."""
        names = {str(c["label"]): c["name"] or str(c["id"]) for c in self.categories}
        values = {key: json.dumps(value) for key, value in asdict(self).items() if key not in ("fixed", "operator")}
        values |= {"format": FORMAT, "operator": self.operator, "names": json.dumps(names), **USE}
        if self.fixed:
            values |= {"height": str(self.fixed[0]), "width": str(self.fixed[1])}
        return values

    def to_json(self) -> str:
        """`to_strings` as one text."""
        return json.dumps(self.to_strings(), indent=1)

    @classmethod
    def from_strings(cls, values: dict[str, str]) -> "Exported":
        """The reverse of `to_strings`.

        Raises:
            KeyError, ValueError, TypeError: the strings are others.
        """
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r}")
        numbers = {key: int(values[key]) for key in ("size", "max_size", "top_k", "smallest_side")}
        fixed = (int(values["height"]), int(values["width"])) if "height" in values else None
        categories = [{key: c[key] for key in ("label", "id", "name")} for c in json.loads(values["categories"])]
        threshold = float(values["threshold"])
        return cls(categories=categories, threshold=threshold, fixed=fixed, operator=values["operator"], **numbers)


def is_exported(path: str | Path) -> bool:
    """Whether a path names a file for another runtime, by its suffix."""
    return Path(path).suffix in SUFFIXES


def check_no_export(path: str | Path) -> None:
    """Refuse a file for another runtime, whose model cannot be looked into.

    Raises:
        UserError: it is one.
    """
    if is_exported(path):
        raise UserError(f"'{path}' is an exported detector, for eval and predict alone; give the checkpoint of it")


def read_exported(path: str | Path) -> Exported:
    """What a file says of itself.

    Raises:
        UserError: no such file, none that `export` wrote, or the package that reads it is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint '{path}'")
    try:
        return Exported.from_strings(_of_onnx(path) if path.suffix == ".onnx" else _of_torch(path))
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"'{path}' is no file that `main.py export` wrote, or not a whole one ({type(error).__name__}: {error}); "
            "export the checkpoint again"
        ) from None


def _of_onnx(path: Path) -> dict[str, str]:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise UserError(f"'{path}' is read by the package onnx, which is not installed: {INSTALL}") from None
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(error) from None
    return {entry.key: entry.value for entry in model.metadata_props}


def _of_torch(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("/extra/metadata.json")]
        return json.loads(archive.read(name))
