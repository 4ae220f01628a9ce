"""Proposals: their anchors, gradients and objects."""

import pytest
import torch
from torchvision.ops import box_convert, nms

from models import proposals as proposals_module
from models.criterion import total_loss
from models.from_config import build_criterion
from models.limits import check_model
from models.memory import Memory
from models.proposals import class_agnostic, token_anchors
from models.reduce import reduce_model
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import LossConfig, ModelConfig
from util.errors import UserError


def test_proposal_coordinates_are_detached_and_proposals_are_penalised():
    model = small_model(two_stage=True, refinement=True)
    scramble(model)
    images, mask = padded_batch([(96, 96)])
    model(images, mask).boxes[-1].sum().backward()
    assert model.queries.head.regress.layers[0].weight.grad is None
    objects = random_objects([2])
    losses = build_criterion(LossConfig())(model(images, mask, objects), objects)
    (losses["l1/proposals"] + losses["class/proposals"]).backward()
    assert model.queries.head.regress.layers[0].weight.grad.abs().sum() > 0
    assert model.queries.head.classify.weight.grad.abs().sum() > 0


def test_token_anchors():
    mask = torch.tensor([[False, False, True, True, False]])
    ratios = torch.tensor([[[0.5, 1.0], [1.0, 1.0]]])
    anchors, usable = token_anchors(Memory(torch.empty(1, 5, 0), mask, [(1, 4), (1, 1)], ratios))
    assert anchors[0, :2].flatten().tolist() == pytest.approx([0.25, 0.5, 0.05, 0.05, 0.75, 0.5, 0.05, 0.05])
    assert anchors[0, 4].tolist() == pytest.approx([0.5, 0.5, 0.1, 0.1])
    assert usable[0, :, 0].tolist() == [True, True, False, False, True]
    nothing = torch.zeros(1, 200, dtype=torch.bool)
    far, usable = token_anchors(Memory(torch.empty(1, 200, 0), nothing, [(1, 200)], torch.ones(1, 1, 2)))
    assert not usable[0, 0] and usable[0, 2] and far[0, 1, 0] == pytest.approx(1.5 / 200)


def test_proposals_are_a_group_in_training_alone():
    model = small_model(two_stage=True, refinement=True).eval()
    images, mask = padded_batch([(96, 96)])
    objects = random_objects([3])
    with torch.no_grad():
        alone, trained = model(images, mask), model(images, mask, objects)
    assert [g.name for g in alone.groups] == ["decoder"] and not alone.extra_losses
    assert [g.names for g in trained.groups] == [["decoder.0", "decoder.1"], ["proposals"]]
    assert torch.equal(alone.boxes, trained.boxes)
    assert not trained.groups[1].objects[0].labels.any() and objects[0].labels.any()
    assert torch.equal(trained.groups[1].objects[0].boxes, objects[0].boxes)
    assert class_agnostic(objects)[0].image_id == objects[0].image_id


ATSS = LossConfig(proposal_assignment="atss")
# Each option in turn, and all that go together.
RECIPES = {
    "mixed": {"query_selection": "mixed"},
    "tokens": {"query_selection": "tokens"},
    "class": {"proposal_head": "class"},
    "nms": {"proposal_nms": 0.7},
    "atss": {"loss": ATSS},
    "mixed class nms": {"query_selection": "mixed", "proposal_head": "class", "proposal_nms": 0.7},
    "tokens class nms atss": {
        "query_selection": "tokens",
        "proposal_head": "class",
        "proposal_nms": 0.3,
        "loss": ATSS,
    },
}


def recipe(name: str, **options) -> torch.nn.Module:
    model = small_model(two_stage=True, refinement=True, **{**RECIPES[name], **options})
    scramble(model)
    return model


def memory_for(model, images, mask) -> Memory:
    """What the model's query source is given."""
    seen = []
    hook = model.queries.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(images, mask)
    hook.remove()
    return seen[0]


@torch.no_grad()
def test_content_is_learned_or_the_tokens_and_the_position_is_the_boxes():
    images, mask = padded_batch([(96, 96), (64, 80)])
    for name in ("mixed", "tokens"):
        model = recipe(name).eval()
        memory = memory_for(model, images, mask)
        queries, proposals = model.queries(memory), model.queries.propose(memory)
        best = proposals.logits[..., 0].topk(12).indices
        for image in (0, 1):
            tokens = proposals.tokens[image, best[image]]
            assert torch.equal(queries.content[image], model.queries.content if name == "mixed" else tokens)
        assert queries.position.shape == (2, 12, 32)
        assert torch.equal(queries.position, model.queries.encode(queries.reference, torch.float32)[0])
        learned = model.queries.content[4:9] if name == "mixed" else None
        moved = model.queries.pick(proposals, 4, 5, learned)
        assert torch.equal(moved.content, queries.content[:, 4:9])
        torch.testing.assert_close(moved.reference, queries.reference[:, 4:9])  # sigmoids of other shapes round apart


def test_tokens_get_no_gradient_from_the_decoder():
    model = recipe("tokens")
    model(*padded_batch([(96, 96)])).logits.sum().backward()
    assert model.queries.memory_proj.weight.grad is None and model.queries.query_proj.weight.grad.any()


@torch.no_grad()
def test_a_head_of_classes_ranks_by_the_best_and_only_the_selected_are_matched_by_class():
    model, (images, mask), objects = recipe("class").eval(), padded_batch([(96, 96), (64, 80)]), random_objects([3, 1])
    memory = memory_for(model, images, mask)
    proposals, queries = model.queries.propose(memory), model.queries(memory, objects)
    group = queries.predictions[0]
    assert group.logits.shape == (1, 2, 12, 5) and group.objects is None and group.assignment is None
    for image in (0, 1):
        order = sorted(range(proposals.logits.shape[1]), key=lambda t: -proposals.logits[image, t].max().item())[:12]
        assert torch.equal(group.logits[0, image], proposals.logits[image, order])
        assert torch.equal(group.boxes[0, image], queries.reference[image])


@torch.no_grad()
def test_distinct_proposals_come_first():
    model, (images, mask) = recipe("nms", proposal_nms=0.3).eval(), padded_batch([(96, 96)])
    model.queries.head.regress.last.bias[2:] += 2  # boxes large enough to overlap
    memory = memory_for(model, images, mask)
    proposals = model.queries.propose(memory)
    scores, order = proposals.logits[0, :, 0].sort(descending=True)
    boxes = proposals.unactivated[0, order[:48]].sigmoid()  # four times 12
    kept = nms(box_convert(boxes, "cxcywh", "xyxy"), scores[:48], 0.3).tolist()
    ranks = kept + [i for i in range(48) if i not in kept] + list(range(48, 60))
    assert ranks[:12] != list(range(12))
    assert model.queries.rank(proposals, 60)[0].tolist() == order[ranks].tolist()
    whole, less = model(images, mask), reduce_model(model, num_queries=5)(images, mask)
    assert less.logits.shape[2] == 5 and torch.equal(model.queries.rank(proposals, 5)[0], order[ranks[:5]])
    assert whole.logits.shape[2] == 12


@torch.no_grad()
def test_fewer_queries_keep_the_content_of_their_ranks():
    model, (images, mask) = recipe("mixed class nms").eval(), padded_batch([(96, 96)])
    memory = memory_for(model, images, mask)
    whole, less = model.queries(memory), reduce_model(model, num_queries=5).queries(memory)
    for name in ("content", "position", "reference"):
        torch.testing.assert_close(getattr(less, name), getattr(whole, name)[:, :5])
    with pytest.raises(UserError, match=r"model\.num_queries is 13; the checkpoint has learned content of 12"):
        reduce_model(model, num_queries=13)


@pytest.mark.parametrize("name", ["tokens", "mixed class nms", "tokens class nms atss"])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_every_parameter_has_a_gradient_also_without_objects(name, auxiliary):
    loss = RECIPES[name].get("loss", LossConfig())
    loss = LossConfig(auxiliary=auxiliary, proposal_assignment=loss.proposal_assignment)
    model, (images, mask), objects = recipe(name, loss=loss), padded_batch([(32, 32), (24, 32)]), random_objects([0, 0])
    with torch.autocast("cpu", torch.bfloat16):
        total_loss(build_criterion(loss)(model(images, mask, objects), objects)).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["atss", "mixed class nms", "tokens class nms atss"])
def test_training_changes_no_prediction_and_losses_add_up_over_micro_batches(name):
    model = recipe(name).double().eval()  # batch norms count the batch in training
    images, mask = padded_batch([(48, 48), (48, 32), (40, 48)])
    images, objects = images.double(), random_objects([3, 0, 5])
    for o in objects:
        o.boxes = o.boxes.double()
    criterion = build_criterion(LossConfig())
    assert torch.equal(model(images, mask).boxes, model(images, mask, objects).boxes)
    found = []
    for parts in ([slice(0, 3)], [slice(i, i + 1) for i in range(3)]):
        model.zero_grad()
        for part in parts:
            losses = criterion(model(images[part], mask[part], objects[part]), objects[part], 8)
            total_loss(losses).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"proposal_nms": 1.0}, "model.proposal_nms is 1.0; it must be at least 0 and below 1"),
        ({"proposal_nms": 0.7, "two_stage": False}, "model.proposal_nms is about proposals; it needs"),
        ({"query_selection": "mixed", "two_stage": False}, "model.query_selection is about proposals"),
        ({"proposal_head": "class", "two_stage": False}, "model.proposal_head is about proposals"),
    ],
)
def test_what_would_do_nothing_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        check_model(ModelConfig(**{"two_stage": True, **options}))


def test_suppression_and_anchors_are_computed_once_for_all_groups(monkeypatch):
    calls = []
    for name in ("distinct_first", "token_anchors"):
        original = getattr(proposals_module, name)
        monkeypatch.setattr(proposals_module, name, lambda *given, f=original, n=name: calls.append(n) or f(*given))
    loss = LossConfig(proposal_assignment="atss")
    model = small_model(two_stage=True, refinement=True, proposal_nms=0.7, hybrid_queries=5, loss=loss)
    groups = model(*padded_batch([(96, 96), (64, 80)]), random_objects([2, 1])).groups
    assert {"decoder", "hybrid", "proposals"} == {group.name for group in groups}
    assert sorted(calls) == ["distinct_first", "token_anchors"]
