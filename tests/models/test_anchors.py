"""One-stage queries that start from learned boxes."""

import math

import pytest
import torch

from engine.optim import adamw
from models.anchors import AnchorQueries
from models.from_config import build_criterion, build_model
from models.memory import Memory
from tests.models.helpers import padded_batch, random_objects, scramble, small_config, small_model
from util.config import LossConfig
from util.errors import UserError


def memory_of(batch: int, dtype=torch.float32) -> Memory:
    return Memory(torch.zeros(batch, 7, 8, dtype=dtype), torch.zeros(batch, 7, dtype=torch.bool), [(1, 7)], None)


def test_reference_and_position_are_those_of_the_formulas():
    queries = AnchorQueries(3, 8).double()
    scramble(queries)
    found = queries(memory_of(2, torch.float64))
    assert found.reference.shape == (2, 3, 4) and found.position.shape == found.content.shape == (2, 3, 8)
    first, second = queries.position_mlp.layers
    for q in range(3):
        box, waves = [1 / (1 + math.exp(-a)) for a in queries.anchors[q].tolist()], []
        for number in box:  # E/2 = 4 waves each: sine and cosine of two wavelengths
            for k in (0, 1):
                angle = 2 * math.pi * number / 10000 ** (2 * k / 4)
                waves += [math.sin(angle), math.cos(angle)]
        hidden = (first.weight @ torch.tensor(waves, dtype=torch.float64) + first.bias).clamp(min=0)
        expected = second.weight @ hidden + second.bias
        for image in range(2):
            assert found.reference[image, q].tolist() == pytest.approx(box, rel=1e-12)
            torch.testing.assert_close(found.position[image, q], expected, rtol=1e-9, atol=1e-12)
            assert torch.equal(found.content[image, q], queries.content[q])


def test_initial_values():
    torch.manual_seed(0)
    model = small_model(reference="box", refinement=True, num_queries=2000)
    box = model.queries.anchors.detach().sigmoid()
    for axis in (0, 1):  # centres are spread evenly over the image
        counts = torch.histc(box[:, axis], 10, 0, 1)
        assert counts.sum() == 2000 and counts.min() > 150 and counts.max() < 250
    assert torch.allclose(box[:, 2:], torch.tensor(1 / (1 + math.exp(2))))
    assert not any(head.regress.last.bias.any() for head in model.heads)  # a box brings its size
    assert abs(float(model.queries.content.detach().std()) - 1) < 0.05
    for layer in model.queries.position_mlp.layers:
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound


def test_anchors_learn_at_the_full_rate():
    model = small_model(reference="box")
    optimizer = adamw(model, 2e-4, 2e-5, 0.1, 1e-4)
    (group,) = [g["name"] for g in optimizer.param_groups if any(p is model.queries.anchors for p in g["params"])]
    assert group == "rest"


@pytest.mark.parametrize("refinement", [False, True])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_every_parameter_learns(refinement, auxiliary):
    model = small_model(reference="box", refinement=refinement, auxiliary=auxiliary)
    scramble(model)
    images, mask = padded_batch([(64, 64), (48, 64)])
    criterion = build_criterion(LossConfig(auxiliary=auxiliary))
    objects = random_objects([3, 1])
    sum(criterion(model(images, mask, objects), objects).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())] == []
    model.zero_grad()
    nothing = random_objects([0, 0])
    sum(criterion(model(images, mask, nothing), nothing).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.slow
def test_overfits_one_batch():
    model = small_model(num_classes=3, reference="box", refinement=True, num_queries=20).train()
    criterion, targets = build_criterion(LossConfig()), random_objects([3, 2], num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images, mask = padded_batch([(48, 48), (48, 32)])
    before, history = model.queries.anchors.detach().clone(), []
    for _ in range(20):
        loss = sum(criterion(model(images, mask), targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert min(history) < history[0] * 0.8
    assert not torch.equal(before, model.queries.anchors)


def test_proposals_need_no_learned_boxes():
    with pytest.raises(UserError, match=r"model\.reference is about learned queries"):
        build_model(small_config(reference="box", two_stage=True), 5)
