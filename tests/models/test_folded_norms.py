"""Norms that a convolution applies: the same numbers, the same gradients, the same names."""

import copy

import pytest
import timm
import torch
from PIL import Image
from timm.layers import freeze_batch_norm_2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from engine.predict import make_predictor
from models.folded_norms import CONVOLUTIONS, NORMS, fold_for_inference, fold_norms
from models.from_config import build_model
from tests.models.helpers import scramble, small_config
from util.config import BackboneConfig, EvalDataConfig

TINY = ["test_resnet", "tf_efficientnet_lite0", "mobilenetv3_small_050"]


def network(name: str, frozen: bool) -> nn.Module:
    """A network of timm in float64, whose norms have statistics and weights of their own."""
    torch.manual_seed(0)
    body = timm.create_model(name, features_only=True).double()
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return freeze_batch_norm_2d(body) if frozen else body.eval()


def gradients(body: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of the squares of all maps."""
    body.zero_grad()
    sum(m.square().mean() for m in body(images)).backward()
    return {name: p.grad.clone() for name, p in body.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "evaluated"])
@pytest.mark.parametrize("name", TINY)
def test_maps_and_gradients_are_those_of_separate_norms(name, frozen):
    plain = network(name, frozen)
    folded = copy.deepcopy(plain)
    count = sum(type(m) in NORMS for m in folded.modules())
    assert fold_norms(folded) == count > 10
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    for a, b in zip(plain(images), folded(images)):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
    expected, found = gradients(plain, images), gradients(folded, images)
    assert expected.keys() == found.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-12, msg=key)
    assert list(folded.state_dict()) == list(plain.state_dict())


def test_no_activation_is_multiplied():
    """A frozen norm multiplies an activation and adds to it; folded, only weights are multiplied."""
    body = network("test_resnet", frozen=True)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)

    def activations_multiplied() -> int:
        with torch.profiler.profile(record_shapes=True) as profile:
            body(images)
        made = [e for e in profile.events() if e.name == "aten::mul"]
        return sum(
            len(e.input_shapes[0]) == 4 and e.input_shapes[0][0] == 1 and e.input_shapes[0][-1] > 1 for e in made
        )

    before = activations_multiplied()
    assert before == fold_norms(body) > 0 == activations_multiplied()


def test_norms_in_training_use_the_batch_and_evaluation_follows_them():
    plain = network("test_resnet", frozen=False)
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for body in (plain, folded):
        body.train()
        body(images)
        body.eval()
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), folded.state_dict().values()))
    for a, b in zip(plain(images), folded(images)):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


def test_copies_apply_norms_of_their_own():
    """An average of weights is a deep copy: its convolutions must not look at the norms of the first."""
    body = network("test_resnet", frozen=True)
    fold_norms(body)
    other = copy.deepcopy(body)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    before = [m.clone() for m in other(images)]
    for module in body.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.mul_(3)
    assert all(torch.equal(a, b) for a, b in zip(before, other(images)))
    assert not torch.equal(before[-1], body(images)[-1])


@pytest.mark.parametrize(("name", "frozen"), [("test_resnet", True), ("test_resnet", False), (TINY[1], True)])
def test_folding_once_changes_no_bit(name, frozen):
    body = network(name, frozen)
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        separate = body(images)
        count = fold_norms(body)
        each_time = body(images)
        assert fold_for_inference(body) == count > 10
        once = body(images)
    assert not any(type(m) in CONVOLUTIONS.values() for m in body.modules())  # nothing scales weights any more
    assert all(torch.equal(a, b) for a, b in zip(each_time, once))
    for a, b in zip(separate, once):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
    assert fold_for_inference(body) == 0


def test_predictors_fold_once_and_find_the_same():
    config = small_config(backbone=BackboneConfig(name="test_resnet", weights="none"))
    model = build_model(config, 3).eval()
    scramble(model)
    kept = copy.deepcopy(model)
    predictor = make_predictor(model, [], EvalDataConfig(eval_size=48), "cpu", None)
    assert not any(type(m) in CONVOLUTIONS.values() for m in predictor.model.modules())
    batch = predictor.batch_of([Image.effect_noise((64, 48), 80).convert("RGB")])
    with torch.no_grad():
        found, expected = (m(batch.images, batch.padding_mask) for m in (predictor.model, kept))
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.boxes, expected.boxes)


def test_norms_that_see_their_batch_are_not_folded_once():
    body = network("test_resnet", frozen=False)
    fold_norms(body)
    body.train()
    keys = list(body.state_dict())
    assert fold_for_inference(body) == 0
    assert list(body.state_dict()) == keys


class Shared(nn.Module):
    """A convolution whose output its norm and a shortcut read, one that is handed out, one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.handed_out = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.run_twice, self.alone = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Two maps."""
        x = self.read_twice(images)
        x = torch.cat([x[:, :2], self.norms[0](x)[:, 2:]], 1)
        y = self.handed_out(x)
        z = self.run_twice(self.norms[1](y))
        z = self.norms[2](self.run_twice(z))
        return [y, self.norms[3](self.alone(z)).relu()]


def test_a_norm_that_is_not_alone_in_reading_stays():
    torch.manual_seed(1)
    body = Shared().double().eval()
    for norm in body.norms:
        nn.init.uniform_(norm.running_var, 0.3, 3)
        nn.init.normal_(norm.running_mean)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = body(images)
    assert fold_norms(body) == 1
    for a, b in zip(before, body(images)):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


def test_folding_draws_no_random_numbers_and_keeps_modes():
    body = network("test_resnet", frozen=False)
    body.train()
    state, modes = torch.get_rng_state(), [m.training for m in body.modules()]
    buffers = [b.clone() for b in body.buffers()]
    fold_norms(body)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in body.modules()]
    assert all(torch.equal(a, b) for a, b in zip(buffers, body.buffers()))
