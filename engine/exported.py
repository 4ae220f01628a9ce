"""Files that `export` wrote, in the place of a model: `eval` and `predict` with model.onnx or model.pt2."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

import ops  # noqa: F401  # registers the compiled operator, which a program may call
from datasets.categories import Category
from datasets.transforms import eval_transform
from models.postprocess import Detections
from util.config import TTAConfig
from util.environment import variable
from util.errors import UserError
from util.exported import INSTALL, Exported, read_exported
from util.remarks import say_once

Run = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # images [B, 3, H, W] in uint8 to boxes, scores, labels

# torch.export.load may unpickle what a file asks for; by this switch of torch it reads tensors alone.
DATA_ALONE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@dataclass
class PixelDetections:
    """What a file gives for a batch.

    Attributes:
        boxes: `[B, N, 4]`, xyxy in pixels of the images that went in.
        scores: `[B, N]`, the best first.
        labels: `[B, N]`.
        size: (H, W) of those images.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    size: tuple[int, int]


class ExportedDetector(nn.Module):
    """An exported file as a model: batches of bytes to predictions.

    Args:
        path: the file.
        said: what it says of itself.
        run: runs it.
    """

    def __init__(self, path: str, said: Exported, run: Run):
        super().__init__()
        self.path, self.said, self.run = path, said, run
        self.categories = [Category(**c) for c in said.categories]

    def forward(self, images: Tensor, padding_mask: Tensor) -> PixelDetections:
        """Detect.

        Args:
            images: `[B, 3, H, W]` in uint8, without padding.
            padding_mask: `[B, H, W]`, False everywhere.

        Raises:
            UserError: they are smaller than the file takes them.
        """
        height, width = images.shape[-2:]
        least = self.said.smallest_side
        if min(height, width) < least:
            raise UserError(
                f"an image is {width} x {height} pixels once it is resized; '{self.path}' takes sides from {least} on"
            )
        return PixelDetections(*self.run(images), (height, width))

    def resize(self, size: tuple[int, int]) -> v2.Transform:
        """What brings an image to the (shorter side, bound of the longer one) of `size`, or to the file's own size."""
        return v2.Resize(list(self.said.fixed), antialias=True) if self.said.fixed else eval_transform(*size)

    def postprocess(
        self, found: PixelDetections, sizes: Sequence[tuple[int, int]], top_k: int = 100
    ) -> list[Detections]:
        """The `top_k` best of each image, in pixels of the originals, whose (height, width) are `sizes`."""
        if top_k > self.said.top_k:
            say_once(
                f"'{self.path}' gives {self.said.top_k} detections of an image; for more, export with --top_k {top_k}"
            )
        height, width = found.size
        scale = torch.tensor([(w / width, h / height) * 2 for h, w in sizes], dtype=found.boxes.dtype)
        boxes = found.boxes * scale[:, None]
        return [
            Detections(b[:top_k], s[:top_k], n[:top_k].long()) for b, s, n in zip(boxes, found.scores, found.labels)
        ]


def load_exported(path: str, device: str | torch.device, weights: str, tta: TTAConfig) -> ExportedDetector:
    """Open a file for the CPU.

    Raises:
        UserError: none that `export` wrote, options that it has no answer to, or a runtime that is not installed.
    """
    said = read_exported(path)
    if str(device) not in ("auto", "cpu"):
        raise UserError(f"'{path}' runs on the CPU here; leave --device out, or give the checkpoint of it")
    if weights != "auto":
        raise UserError(f"'{path}' holds one set of weights; leave --weights out")
    if tta != TTAConfig():
        raise UserError(f"'{path}' looks at an image once; --tta needs the checkpoint that it was made of")
    if said.fixed:
        say_once(f"'{path}' takes images of {said.fixed[0]}x{said.fixed[1]} alone: others are stretched to that")
    return ExportedDetector(path, said, onnx_runner(path) if path.endswith(".onnx") else torch_runner(path))


def onnx_runner(path: str | Path) -> Run:
    """A file in ONNX Runtime, on as many threads as torch has.

    Raises:
        UserError: it is not installed, or does not take the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"'{path}' is run by ONNX Runtime, which is not installed: {INSTALL}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # no warnings of its own optimisations; what goes wrong is raised as well
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # types of its own for each kind of refusal
        raise UserError(f"ONNX Runtime {onnxruntime.__version__} refuses '{path}': {_first_line(error)}") from None

    def run(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        try:
            boxes, scores, labels = session.run(["boxes", "scores", "labels"], {"images": images.cpu().numpy()})
        except Exception as error:
            size = "x".join(map(str, images.shape))
            raise UserError(f"ONNX Runtime cannot run '{path}' on images {size}: {_first_line(error)}") from None
        return torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels)

    return run


def torch_runner(path: str | Path) -> Run:
    """A program of torch.export.

    Raises:
        UserError: it cannot be loaded, or not be run on images of some size.
    """
    try:
        with variable(DATA_ALONE, "1"):
            program = torch.export.load(str(path)).module()
    except Exception as error:  # of many types; every one means that the file is unusable
        raise UserError(f"'{path}' is no program that torch {torch.__version__} loads: {_first_line(error)}") from None

    def run(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        try:
            return program(images.contiguous())
        except (RuntimeError, AssertionError) as error:  # a guard of the program
            size = "x".join(map(str, images.shape))
            raise UserError(f"'{path}' cannot run on images {size}: {_first_line(error)}") from None

    return run


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
