"""Waiting for the device is counted where it happens, and what belongs to the host is not."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from datasets.batch import Batch
from datasets.device import ToDevice
from engine.optim import adamw
from engine.state import TrainingState
from engine.step import TrainStep
from engine.train import train_one_epoch
from models.from_config import build_criterion
from tests.models.helpers import padded_batch, random_objects, small_model
from util import syncs
from util.config import LossConfig
from util.signals import StopRequest
from util.syncs import count_syncs

DEVICE = torch.device("cpu")  # stands for a GPU


def numbers() -> torch.Tensor:
    return torch.tensor([0.0, 1.0, 2.0, 3.0])


WAITS = {
    "item": lambda x: x[1].item(),
    "bool": lambda x: bool(x[1] > 0),
    "if": lambda x: 1 if x.any() else 0,
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x[2]),
    "range": lambda x: range(x[2].long()),
    "format": lambda x: f"{x[1]:.2f}",
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to text": lambda x: x.to("cpu"),
    "to by name": lambda x: x.to(device="cpu", dtype=torch.float64),
    "to like the host's": lambda x: x.to(torch.zeros(1)),
    "numpy": lambda x: x.numpy(),
    "array": lambda x: np.asarray(x),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 1),
    "masked": lambda x: x[x > 1],
    "masked_select": lambda x: x.masked_select(x > 1),
    "put by mask": lambda x: x.index_put((x > 1,), torch.ones(2, device=DEVICE)),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
    "allclose": lambda x: torch.allclose(x, x),
    "repeat": lambda x: x.repeat_interleave(x.long()),
    "copy to the host": lambda x: torch.zeros(4).copy_(x),
    "derived": lambda x: (x * torch.ones(4)).sum().item(),
    "made there": lambda x: torch.zeros(3, device=DEVICE).sum().item(),
    "moved there": lambda x: torch.tensor([1.0, 2.0]).to(DEVICE).sum().item(),
}

GOES_ON = {
    "arithmetic": lambda x: ((x + 1) * 2).softmax(-1).sum(),
    "list to the device": lambda x: torch.tensor([1, 2], device=DEVICE),
    "moved to the device": lambda x: torch.tensor([1, 2]).to(DEVICE, non_blocking=True),
    "shape": lambda x: [len(x), x.shape[0], x.numel(), x.dtype],
    "dtype": lambda x: x.to(torch.float64).to(DEVICE),
    "fill by mask": lambda x: x.clone().masked_fill_(x > 1, 0.0).index_put_((x > 1,), torch.tensor(1.0)),
    "index": lambda x: x[torch.tensor([0, 2]).to(DEVICE)],
    "choose": lambda x: torch.where(x > 1, x, 0.0),
    "repeat, size known": lambda x: x.repeat_interleave(x.long(), output_size=6),
    "host's own": lambda x: torch.arange(3).float().mean().item(),
    "host's random": lambda x: int(torch.randint(3, ())),
    "host's mask": lambda x: (y := torch.ones(3))[y > 0].tolist(),
}


@pytest.mark.parametrize("name", WAITS)
def test_one_wait_is_counted_once_and_placed(name):
    x = numbers()
    with count_syncs() as found:
        WAITS[name](x)
    assert found.total == 1, str(found)
    place = next(iter(found.places))
    line = WAITS[name].__code__.co_firstlineno
    assert place.startswith(f"tests/util/test_syncs.py:{line} (")


@pytest.mark.parametrize("name", GOES_ON)
def test_what_does_not_wait_is_not_counted(name):
    x = numbers()
    with count_syncs() as found:
        GOES_ON[name](x)
    assert found.total == 0, str(found)


def test_what_was_read_back_is_the_hosts_and_the_device_keeps_its_own():
    x = numbers()
    with count_syncs() as found:
        host = x.cpu()
        assert bool(torch.isfinite(host).all()) and host.sum().item() == 6 and host.numpy()[1] == 1
        assert found.total == 1
        x.sum().item()
        assert found.total == 2
    assert sorted(found.places.values()) == [1, 1] and "(cpu)" in str(found)


def test_a_tensor_can_be_named_the_hosts():
    step, x = torch.tensor(3.0), numbers()
    with count_syncs(host=[step]) as found:
        step += 1
        assert step.item() == 4
        assert found.total == 0
        x.sum().item()
    assert found.total == 1


def test_backward_passes_are_looked_into():
    x = numbers().requires_grad_()

    class Peeks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            grad.sum().item()
            return grad * 2

    with count_syncs() as found:
        Peeks.apply(x).sum().backward()
    assert found.total == 1 and torch.equal(x.grad, torch.full((4,), 2.0))


def test_errors_leave_no_mode_behind():
    x = numbers()
    with pytest.raises(ZeroDivisionError), count_syncs() as found:
        raise ZeroDivisionError
    x.sum().item()
    assert found.total == 0


def test_a_product_waits_where_its_derivative_does():
    """Torch reads the number of zeros there, on a GPU at least."""
    sizes = torch.rand(3, 2)
    with count_syncs() as found:
        sizes.prod(-1)
    assert found.total == 0
    sizes.requires_grad_()
    with count_syncs() as found:
        sizes.prod(-1).sum().backward()
    assert found.total == 1 and "prod" in str(found)


def test_cuda_is_asked_and_its_warnings_are_placed(monkeypatch):
    """Against a stand-in for the card: torch's mode is set and set back, its warnings counted, others let through."""
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with pytest.warns(RuntimeWarning, match="another"), count_syncs("cuda:0") as found:
        for _ in range(2):
            warnings.warn(f"{syncs.CUDA_WARNING} (Triggered internally at)", UserWarning, stacklevel=1)
        warnings.warn("another", RuntimeWarning, stacklevel=1)
    assert modes == ["warn", 0] and found.total == 2
    assert list(found.places.values()) == [2] and "test_syncs.py" in next(iter(found.places))


TWO_STAGE = {"refinement": True, "two_stage": True}
RECIPE = {"query_selection": "mixed", "proposal_head": "class", "proposal_nms": 0.7}


@pytest.mark.parametrize(
    "options",
    [
        {},
        TWO_STAGE,
        TWO_STAGE | RECIPE,
        TWO_STAGE | {"query_selection": "tokens", "loss": LossConfig(proposal_assignment="atss")},
    ],
)
@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
def test_a_training_step_waits_twice(options, clip_norm):
    """Once for the matching costs, once to learn whether losses are finite; for any number of layers."""
    model = small_model(**options)
    optimizer = adamw(model, 1e-4, 1e-5, 0.1, 1e-4)
    state = TrainingState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), DEVICE, None, 100)
    prepare, criterion = ToDevice(DEVICE, model.backbone.mean, model.backbone.std), build_criterion(LossConfig())
    _, mask = padded_batch([(48, 64), (40, 56), (48, 64)])
    images, objects = torch.randint(256, (3, 3, 48, 64), dtype=torch.uint8), random_objects([3, 0, 2])
    batch = Batch(images, mask, objects, [(48, 64)] * 3)
    step = TrainStep(model, criterion, prepare, state, lambda number: None, clip_norm=clip_norm)
    train_one_epoch(step, [[batch]], StopRequest())  # moments and constants are made
    before = [p.clone() for p in model.parameters()]
    with count_syncs() as found:
        train_one_epoch(step, [[batch]], StopRequest())
    assert state.step == 2 and any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert found.total == 2, str(found)
    files = sorted(place.split(":")[0] for place in found.places)
    assert files == ["engine/step.py", "models/matcher.py"]


def test_modules_are_looked_into():
    class Counts(nn.Module):
        def forward(self, x):
            return x * (1 + int(x.sum() > 0))

    x = numbers()
    with count_syncs() as found:
        nn.Sequential(Counts(), nn.ReLU(), Counts())(x)
    assert found.total == 2 and len(found.places) == 1
