"""Losses against torchvision, and values worked out from the formulas."""

import pytest
import torch
import torchvision
from torchvision.ops import box_convert, sigmoid_focal_loss

from models.from_config import build_criterion
from models.matcher import HungarianMatcher
from models.predictions import Assignment, Predictions
from tests.models.helpers import random_objects
from tests.models.outputs import decoder, predictions, two_stages
from util.config import LossConfig
from util.errors import UserError
from util.objects import Objects

CRITERION = build_criterion(LossConfig())


def test_proposals_are_matched_by_the_shortlist_as_without_it(monkeypatch):
    targets = random_objects([2, 0, 3])
    out = two_stages(targets, 3000)
    short = CRITERION(out, targets)
    monkeypatch.setattr("models.matcher.shortlist", lambda cost, repeats: (cost, None))
    for name, loss in CRITERION(out, targets).items():
        assert torch.equal(short[name], loss), name


@pytest.mark.parametrize("counts", [[0, 0, 0], [9, 0, 7], [12, 12, 12]])
def test_no_objects_and_more_objects_than_queries(counts):
    out, targets = predictions(queries=7), random_objects(counts)
    losses = CRITERION(out, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    (matches,) = HungarianMatcher()(out.groups, [targets])
    assert len(matches.query) == 3 * sum(min(7, n) for n in counts)
    if not any(counts):
        assert all(losses[k] == 0 for k in losses if not k.startswith("class")) and losses["class/decoder.0"] > 0


def test_losses_equal_torchvision_and_the_formulas():
    targets = random_objects([2, 0, 3])
    out = two_stages(targets, 11)
    losses = CRITERION(out, targets)
    agnostic = [Objects(t.boxes, torch.zeros_like(t.labels), t.image_id) for t in targets]
    layers = {f"decoder.{i}": (out.logits[i], out.boxes[i], targets) for i in range(3)}
    layers["proposals"] = (out.groups[1].logits[0], out.groups[1].boxes[0], agnostic)
    assert set(losses) == {f"{name}/{layer}" for name in ("class", "l1", "giou") for layer in layers}
    for layer, (logits, boxes, objects) in layers.items():
        (matches,) = HungarianMatcher()([decoder(logits[None], boxes[None])], [objects])
        one_hot, l1, giou = torch.zeros_like(logits), 0.0, 0.0
        labels = torch.cat([t.labels for t in objects])
        wanted = torch.cat([t.boxes for t in objects]).double()
        for image, query, target in zip(*(v.tolist() for v in (matches.image, matches.query, matches.object))):
            one_hot[image, query, labels[target]] = 1
            l1 += (boxes[image, query] - wanted[target]).abs().sum()
            pair = [box_convert(b[None], "cxcywh", "xyxy") for b in (boxes[image, query], wanted[target])]
            giou += torchvision.ops.generalized_box_iou_loss(*pair).sum()
        focal = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2, reduction="sum")
        for name, expected in (("class", 2 * focal), ("l1", 5 * l1), ("giou", 2 * giou)):
            assert losses[f"{name}/{layer}"].item() == pytest.approx((expected / 5).item(), rel=1e-5)


def test_layers_together_equal_layers_alone():
    out, targets = predictions(), random_objects([2, 0, 3])
    together = CRITERION(out, targets)
    for i in range(3):
        alone = CRITERION(Predictions([decoder(out.logits[i : i + 1], out.boxes[i : i + 1])]), targets)
        for name in ("class", "l1", "giou"):
            torch.testing.assert_close(together[f"{name}/decoder.{i}"], alone[f"{name}/decoder.0"])


def test_batch_equals_its_images_with_the_same_divisor():
    out, targets = predictions(), random_objects([2, 0, 3])
    whole = sum(CRITERION(out, targets).values())
    parts = sum(
        sum(
            CRITERION(
                Predictions([decoder(out.logits[:, i : i + 1], out.boxes[:, i : i + 1])]),
                targets[i : i + 1],
                num_boxes=5,
            ).values()
        )
        for i in range(3)
    )
    torch.testing.assert_close(whole, parts)


def test_without_auxiliary_losses_only_the_last_layer():
    out, targets = predictions(), random_objects([2, 0, 3])
    losses = build_criterion(LossConfig(auxiliary=False))(out, targets)
    assert set(losses) == {"class/decoder.2", "l1/decoder.2", "giou/decoder.2"}


def test_one_transfer_to_the_host_for_all_layers_and_proposals(monkeypatch):
    transfers = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: transfers.append(self.shape) or original(self))
    for name in ("item", "tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, _refuse_device(name, getattr(torch.Tensor, name)))
    targets = random_objects([2, 0, 3])
    out = two_stages(targets, 11)
    CRITERION(out, targets)
    assert len(transfers) == 1


def _refuse_device(name, original):
    def call(self, *args):
        assert name == "numpy" or self.numel() == 0, f"Tensor.{name}() would wait for the device"
        return original(self, *args)

    return call


def test_costs_and_losses_in_fp32_under_autocast():
    out, targets = predictions(dtype=torch.float32), random_objects([2, 0, 3])
    plain = CRITERION(out, targets)
    half = Predictions([decoder(out.logits.bfloat16(), out.boxes)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert HungarianMatcher().cost(half.groups[0], targets).dtype == torch.float32
        mixed = CRITERION(half, targets)
    for name, loss in mixed.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(plain[name].item(), rel=0.02)


@pytest.mark.parametrize("tensor", ["logits", "boxes"])
@pytest.mark.parametrize("layer", ["decoder.1", "proposals"])
def test_a_non_finite_cost_names_image_layer_and_tensor(tensor, layer):
    targets = random_objects([2, 0, 3])
    out = two_stages(targets, 11)
    of = getattr(out.groups[1], tensor)[0, 2] if layer == "proposals" else getattr(out, tensor)[1, 2]
    of[3] = float("nan")
    with pytest.raises(UserError, match=rf"image 102 .*{tensor} of layer {layer} "):
        CRITERION(out, targets)


def test_gradient_is_that_of_the_formulas():
    out, targets = predictions(layers=1, batch=1, queries=3), random_objects([2])
    logits, boxes = out.logits.requires_grad_(), out.boxes.requires_grad_()

    def total(logits, boxes):
        return sum(CRITERION(Predictions([decoder(logits, boxes)]), targets).values())

    assert torch.autograd.gradcheck(total, (logits, boxes))


def test_a_group_with_an_assignment_is_not_matched():
    """As for denoising: the pairs are given, the same in every layer, and counted among the group's own objects."""
    out, targets = predictions(queries=4), random_objects([2, 0, 3])
    given = Assignment(torch.tensor([0, 0, 2]), torch.tensor([3, 1, 0]), torch.tensor([1, 0, 4]))
    group = decoder(out.logits, out.boxes, assignment=given)
    group.name = "denoising"
    losses = CRITERION(Predictions([*out.groups, group]), targets)
    alone = CRITERION(out, targets)
    assert {name: losses[name] for name in alone} == alone
    boxes, labels = torch.cat([t.boxes for t in targets]).double(), torch.cat([t.labels for t in targets])
    for layer in range(3):
        one_hot, l1 = torch.zeros_like(out.logits[layer]), 0.0
        for image, query, target in ((0, 3, 1), (0, 1, 0), (2, 0, 4)):
            one_hot[image, query, labels[target]] = 1
            l1 += (out.boxes[layer, image, query] - boxes[target]).abs().sum()
        focal = sigmoid_focal_loss(out.logits[layer], one_hot, alpha=0.25, gamma=2, reduction="sum")
        assert losses[f"class/denoising.{layer}"].item() == pytest.approx(2 * focal.item() / 5, rel=1e-6)
        assert losses[f"l1/denoising.{layer}"].item() == pytest.approx(5 * l1.item() / 5, rel=1e-6)


def test_losses_of_the_model_itself_are_divided_by_the_objects():
    out, targets = predictions(), random_objects([2, 0, 3])
    out.extra_losses["own"] = torch.tensor(7.0)
    assert CRITERION(out, targets, num_boxes=14)["own"] == 0.5


def test_a_loss_is_one_more_entry():
    """The criterion knows none by name."""
    out, targets = predictions(), random_objects([2, 0, 3])
    criterion = build_criterion(LossConfig())
    criterion.losses["width"] = (3.0, lambda group: group.per_layer((group.predicted - group.wanted)[:, 2].abs()))
    losses = criterion(out, targets)
    assert {name for name in losses if name.startswith("width")} == {f"width/decoder.{i}" for i in range(3)}
    assert all(0 < losses[f"width/decoder.{i}"] < 3 / 5 * losses[f"l1/decoder.{i}"] for i in range(3))
