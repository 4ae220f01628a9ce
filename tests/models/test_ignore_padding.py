"""With `ignore_padding`, what is found in an image does not depend on its padding, to rounding in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F

from models.criterion import total_loss
from models.from_config import build_criterion
from models.ignore_padding import MaskedGroupNorm
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import BackboneConfig, LossConfig


def test_the_norm_of_a_padded_map_is_torchs_norm_of_the_map_alone():
    norm = MaskedGroupNorm(4, 16).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    alone = torch.randn(1, 16, 5, 7).double()
    expected = F.group_norm(alone, 4, norm.weight, norm.bias, norm.eps)
    padded, mask = torch.randn(1, 16, 9, 8).double(), torch.ones(1, 9, 8, dtype=torch.bool)
    padded[..., :5, :7], mask[:, :5, :7] = alone, False
    found = norm(padded, mask)
    torch.testing.assert_close(found[..., :5, :7], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(norm(alone), expected, atol=1e-12, rtol=0)
    assert (found[mask[:, None].expand_as(found)] == 0).all()


def test_the_norm_of_nothing_but_padding_is_zero_and_has_a_gradient():
    x = torch.randn(1, 8, 2, 2, requires_grad=True)
    found = MaskedGroupNorm(4, 8)(x, torch.ones(1, 2, 2, dtype=torch.bool))
    found.sum().backward()
    assert (found == 0).all() and torch.isfinite(x.grad).all()


def detector(name: str, ignore_padding: bool, **backbone):
    section = BackboneConfig(name=name, weights="none", **backbone)
    model = small_model(backbone=section, ignore_padding=ignore_padding, num_levels=4, refinement=True, two_stage=True)
    scramble(model)
    return model.double()


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("resnet18", {}), ("resnet10t", {"dcn": "v2", "frozen_stages": 1}), ("tf_efficientnet_lite0", {})],
)
@torch.no_grad()
def test_an_image_gives_the_same_however_far_it_is_padded(name, backbone):
    images, mask = (t.double() if t.is_floating_point() else t for t in padded_batch([(53, 90)]))
    for ignore_padding in (True, False):
        model = detector(name, ignore_padding, **backbone).eval()
        alone = model(images, mask)
        apart = []
        for right, below in ((37, 59), (0, 75), (130, 12)):
            padded = model(F.pad(images, (0, right, 0, below)), F.pad(mask, (0, right, 0, below), value=True))
            apart.append((padded.logits - alone.logits).abs().max().item())
        assert max(apart) < 1e-9 if ignore_padding else min(apart) > 1e-4, apart


def test_losses_and_gradients_of_a_batch_do_not_depend_on_its_padding():
    """A batch of three, as one and as three that are padded as their own sizes need."""
    model = detector("resnet10t", True, norm="frozen", frozen_stages=0).train()
    criterion, sizes = build_criterion(LossConfig()), [(40, 70), (64, 33), (20, 20)]
    images, mask = padded_batch(sizes)
    images, objects = images.double(), random_objects([2, 1, 3])
    for o in objects:
        o.boxes = o.boxes.double()
    gradients = []
    for parts in ([slice(0, 3)], [slice(i, i + 1) for i in range(3)]):
        model.zero_grad()
        for part in parts:
            height, width = (max(s[d] for s in sizes[part]) for d in (0, 1))
            cut, of = images[part, :, :height, :width], mask[part, :height, :width]
            total_loss(criterion(model(cut, of, objects[part]), objects[part], 6)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-9, rtol=1e-7)


def test_a_copy_as_the_moving_average_is_has_its_own_mask():
    model = detector("resnet10t", True).eval()
    twin = copy.deepcopy(model)
    assert twin.backbone.zero_padding is not model.backbone.zero_padding
    images, mask = padded_batch([(40, 70), (64, 33)])
    with torch.no_grad():
        assert torch.equal(twin(images.double(), mask).logits, model(images.double(), mask).logits)
    hooks = [h for m in twin.backbone.body.modules() for h in m._forward_pre_hooks.values()]
    assert hooks and all(hook is twin.backbone.zero_padding for hook in hooks)
