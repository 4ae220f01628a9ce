"""What formats cannot say, each in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from models.detector import DeformableDETR
from models.relation import BoxRelation
from ops import DeformConv2d
from util.errors import UserError

ONNX_BYTES = 2_000_000_000  # of a file of protocol buffers


def check_onnx_can_say(model: DeformableDETR) -> None:
    """Refuse detectors with parts that ONNX, as torch's exporter writes it, has no form for.

    Raises:
        UserError: names the part.
    """
    if any(isinstance(module, DeformConv2d) for module in model.modules()):
        raise UserError(
            "model.backbone.dcn cannot be exported to ONNX: torch's exporter has no form of its deformable convolutions"
        )
    if any(isinstance(module, BoxRelation) for module in model.modules()):
        raise UserError(
            "model.relation cannot be exported to ONNX: torch's exporter has no way to write attention with a bias for "
            "any number of images; give --format torch"
        )
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    if needed >= ONNX_BYTES:
        raise UserError(f"the weights take {needed / 1e9:.1f} GB; an ONNX file holds less than 2")


@contextmanager
def exporter_errors(form: str) -> Iterator[None]:
    """What torch's exporters cannot do, as a sentence.

    Raises:
        UserError: in place of their errors.
    """
    try:
        yield
    except (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException) as error:
        cause: BaseException = error
        while cause.__cause__:  # the first one names the operator
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError(
            f"the exporter of torch {torch.__version__} cannot write this detector as {form}: {reason}"
        ) from None
