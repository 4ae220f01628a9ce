"""The implementation of the operator that will run."""

import torch

import ops
from util.errors import UserError


def selected_backend(device: torch.device) -> str:
    """The operator's backend on a device.

    Raises:
        UserError: the one that was asked for is not there.
    """
    try:
        return ops.selected_backend(device.type)
    except RuntimeError as error:
        raise UserError(str(error)) from None
