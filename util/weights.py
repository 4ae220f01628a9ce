"""A state dict into a model: the whole of it, or what fits."""

from pathlib import Path

import torch

from util.errors import UserError


def load_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Fill the whole model.

    Raises:
        UserError: keys or shapes differ; names the first.
    """
    missing, misfit, surplus = _compare(model, state)
    if missing or misfit or surplus:
        first = (missing + misfit + surplus)[0]
        raise UserError(
            f"the weights in '{path}' do not fit the model: {len(missing)} missing, {len(misfit)} of another shape, "
            f"{len(surplus)} unexpected (the first: {first})"
        )
    model.load_state_dict(state, strict=False)  # checked above; only batch counters may be absent


def load_matching_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> list[str]:
    """Fill what fits, for fine-tuning; the rest keeps its initial values.

    Returns:
        One line for each tensor of the model or the file that was not loaded, with the reason.

    Raises:
        UserError: nothing fits.
    """
    missing, misfit, surplus = _compare(model, state)
    fitting = {k: v for k, v in state.items() if k not in misfit and k not in surplus}
    if not fitting:
        raise UserError(f"nothing in '{path}' fits the model")
    own = model.state_dict()
    model.load_state_dict(fitting, strict=False)
    return (
        [f"{k}: {list(state[k].shape)} in the file, {list(own[k].shape)} here; starts anew" for k in misfit]
        + [f"{k}: not in the file; starts anew" for k in missing]
        + [f"{k}: only in the file; left out" for k in surplus]
    )


def _compare(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> tuple[list[str], list[str], list[str]]:
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    misfit = [k for k in own if k in state and state[k].shape != own[k].shape]
    surplus = [k for k in state if k not in own]
    return missing, misfit, surplus
