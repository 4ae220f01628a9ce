"""Rows of class heads follow the names of their classes: into another model, and into another order."""

import argparse
from dataclasses import asdict

import pytest
import torch

from datasets.categories import Category
from datasets.coco_names import COCO_NAMES
from engine.class_rows import changed_order, reorder_classes, start_from
from engine.optim import adamw
from engine.state import TrainingState
from models.from_config import build_mimic, build_model
from models.load import LoadedDetector, load_detector
from tests.models.helpers import padded_batch, scramble, small_config, small_model
from tests.models.test_convert import as_original
from util.config import BackboneConfig, LossConfig
from util.errors import UserError

OWN = ["helmet", "dog", "person", "Traffic_Light", "car"]  # three of COCO's names; one is only spelt alike


def classes(names: list[str]) -> list[Category]:
    return [Category(label, label + 1, name) for label, name in enumerate(names)]


def loaded(model, categories=(), names=None) -> LoadedDetector:
    return LoadedDetector(model, small_config(), [asdict(c) for c in categories], names or {}, {})


def test_a_released_checkpoint_gives_the_rows_of_the_names_that_are_shared(tmp_path):
    backbone = BackboneConfig(name="test_resnet", weights="none")
    config = small_config(backbone=backbone, two_stage=True, refinement=True, num_heads=8)
    source = build_model(config, 91)
    scramble(source)
    arguments = argparse.Namespace(
        backbone="test_resnet", with_box_refine=True, two_stage=True, num_queries=12, nheads=8
    )
    torch.save({"model": as_original(source, "two_stage"), "args": arguments}, tmp_path / "released.pth")
    model = build_model(config, len(OWN))
    scramble(model, seed=1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    lines = start_from(model, load_detector(str(tmp_path / "released.pth")), classes(OWN), "released.pth")

    ids = {name: i for i, name in COCO_NAMES.items()}
    for head, theirs in zip(model.heads, source.heads):
        for name in ("weight", "bias"):
            rows, given = getattr(head.classify, name), getattr(theirs.classify, name)
            for label, of in enumerate(OWN):
                same = [i for i in range(91) if torch.equal(rows[label], given[i])]
                assert same == ([ids[of]] if of in ids else []), (of, same)
    # Channel 0 of the proposals is "an object", whatever the labels are.
    assert torch.equal(model.queries.head.classify.weight, source.queries.head.classify.weight[:5])
    state, others = model.state_dict(), source.state_dict()
    assert all(torch.equal(state[k], others[k]) for k in state if "classify" not in k)
    for i in range(len(model.heads)):
        assert torch.equal(state[f"heads.{i}.classify.weight"][[0, 3]], before[f"heads.{i}.classify.weight"][[0, 3]])
    assert lines[1].endswith("COCO's are assumed: 3 (dog, person, car)")
    assert lines[2].endswith("start anew: 2 (helmet, Traffic_Light (did you mean 'traffic light'?))")
    assert lines[-1] == "not loaded: 0"


def test_coco_with_its_own_ids_keeps_every_row():
    source, model = small_model(91), small_model(91, seed=1)
    scramble(source)
    start_from(model, loaded(source), [Category(i, i, name) for i, name in COCO_NAMES.items()], "x")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values()))


def test_names_of_a_checkpoint_win_over_its_order_and_other_counts_go_by_id():
    source = small_model(2)
    scramble(source)
    weight, given = "heads.0.classify.weight", source.state_dict()["heads.0.classify.weight"]
    ours = [Category(0, 1, "b"), Category(1, 5, "a"), Category(2, 7, "c")]
    for other in (loaded(source, classes(["a", "b"])), loaded(source, names={0: "a", 1: "b"})):
        model = small_model(3, seed=1)
        start_from(model, other, ours, "x")
        assert torch.equal(model.state_dict()[weight][:2], given[[1, 0]])
    model = small_model(3, seed=1)
    lines = start_from(model, loaded(source), ours, "x")
    assert torch.equal(model.state_dict()[weight][0], given[1])
    assert lines[1] == "class rows copied by id, for the file keeps no names: 1 (b)"


def test_as_many_queries_are_taken_as_there_are_and_other_widths_start_anew():
    source, model = small_model(2, num_queries=20), small_model(2, seed=1)
    lines = start_from(model, loaded(source, classes(["a", "b"])), classes(["a", "b"]), "x")
    assert torch.equal(model.queries.content, source.queries.content[:12])
    assert "queries.position: the first 12 of 20 rows in the file and 12 here" in lines
    source, model = small_model(2, d_model=64), small_model(2, seed=1)
    lines = start_from(model, loaded(source, classes(["a", "b"])), classes(["a", "b"]), "x")
    assert "heads.0.classify.weight: [2, 64] in the file, [2, 32] here; starts anew" in lines


def test_rows_are_brought_into_another_order_with_averages_and_moments():
    """What the reordered model says of a class is, to the bit, what the model said of it before."""
    v2 = BackboneConfig(name="resnet10t", weights="none", norm="frozen", frozen_stages=0, dcn="v2")
    model, average = small_model(3, two_stage=True, refinement=True), small_model(3, two_stage=True, refinement=True)
    branch = build_mimic(LossConfig(mimic_weight=0.1), small_config(backbone=v2), model)
    for part in (model, average, branch):
        scramble(part)
    optimizer = adamw(model, 1e-3, 1e-3, 1.0, 0.0, branch)
    for parameter in (*model.parameters(), *branch.parameters()):
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = TrainingState(
        model, optimizer, None, torch.device("cpu"), argparse.Namespace(module=average), 1, branch=branch
    )
    images, mask = padded_batch([(64, 64)])
    saved = [asdict(c) for c in classes(["a", "b", "c"])]
    order = changed_order(saved, classes(["c", "a", "b"]), "x.pth")
    assert order == [2, 0, 1]
    before = [m.eval()(images, mask) for m in (model, average)]
    weights = [branch.classify_crop.weight, model.heads[1].classify.weight]
    moments = [optimizer.state[w]["exp_avg"].clone() for w in weights]
    crops = branch.classify_crop.weight.detach().clone()
    reorder_classes(state, order)
    for m, was in zip((model, average), before):
        found = m(images, mask)
        assert torch.equal(found.logits, was.logits[..., order]) and torch.equal(found.boxes, was.boxes)
    assert torch.equal(branch.classify_crop.weight, crops[order])
    for weight, was in zip(weights, moments):
        assert torch.equal(optimizer.state[weight]["exp_avg"], was[order])


def with_denoising(classes: int, seed: int = 0, queries: int = 12):
    return small_model(classes, seed=seed, reference="box", denoising_queries=4, num_queries=queries)


def test_embedded_labels_go_with_their_names_and_learned_boxes_keep_their_places():
    source, model = with_denoising(3, queries=20), with_denoising(3, seed=1)
    before = model.training_queries["denoising"].label_embed.weight.detach().clone()
    lines = start_from(model, loaded(source, classes(["a", "b", "c"])), classes(["c", "x", "a"]), "x")
    given, found = (m.training_queries["denoising"].label_embed.weight for m in (source, model))
    assert torch.equal(found[[0, 2]], given[[2, 0]]) and torch.equal(found[1], before[1])
    assert torch.equal(model.queries.anchors, source.queries.anchors[:12])
    assert "queries.anchors: the first 12 of 20 rows in the file and 12 here" in lines


def test_embedded_labels_are_brought_into_another_order_with_their_moments():
    model = with_denoising(3)
    weight, optimizer = model.training_queries["denoising"].label_embed.weight, adamw(model, 1e-3, 1e-3, 1.0, 0.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    rows, moments = weight.detach().clone(), optimizer.state[weight]["exp_avg"].clone()
    reorder_classes(TrainingState(model, optimizer, None, torch.device("cpu"), None, 1), [2, 0, 1])
    assert torch.equal(weight, rows[[2, 0, 1]])
    assert torch.equal(optimizer.state[weight]["exp_avg"], moments[[2, 0, 1]])


def test_a_proposal_head_of_classes_has_class_rows():
    options = {"two_stage": True, "refinement": True}
    source = small_model(2, proposal_head="class", **options)
    scramble(source)
    weight, given = "queries.head.classify.weight", source.state_dict()["queries.head.classify.weight"].clone()
    model = small_model(3, seed=1, proposal_head="class", **options)
    start_from(model, loaded(source, classes(["a", "b"])), classes(["b", "c", "a"]), "x")
    assert torch.equal(model.state_dict()[weight][[0, 2]], given[[1, 0]])
    assert not any(torch.equal(model.state_dict()[weight][1], row) for row in given)
    for own, said in (("objectness", "scores classes in the file, objects here"), ("class", "objects in the file")):
        other = small_model(2, proposal_head="objectness" if own == "class" else "class", **options)
        scramble(other)
        model = small_model(2, seed=1, proposal_head=own, **options)
        before = model.state_dict()[weight].clone()
        lines = start_from(model, loaded(other, classes(["a", "b"])), classes(["b", "a"]), "x")
        assert torch.equal(model.state_dict()[weight], before) and any(
            weight in line and said in line for line in lines
        )
    optimizer = adamw(source, 1e-3, 1e-3, 1.0, 0.0)
    reorder_classes(TrainingState(source, optimizer, None, torch.device("cpu"), None, 1), [1, 0])
    assert torch.equal(source.state_dict()[weight], given[[1, 0]])


def test_ids_may_change_and_gaps_have_rows_too():
    saved = [asdict(Category(1, 1, "a")), asdict(Category(3, 3, "b"))]
    assert changed_order(saved, [Category(1, 7, "a"), Category(3, 9, "b")], "x") is None
    assert changed_order(saved, [Category(0, 0, "b"), Category(3, 3, "a")], "x") == [3, 0, 2, 1]


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (["a", "B", "c"], r"only the checkpoint has b; only the data have B \(did you mean 'b'\?\); resume"),
        (["a", "b"], "only the checkpoint has c; resume"),
        (["a", "b", "c", "d"], "only the data have d; resume"),
    ],
)
def test_other_classes_are_refused(now, said):
    with pytest.raises(UserError, match=f"classes of the training images are not those of 'x.pth': {said}"):
        changed_order([asdict(c) for c in classes(["a", "b", "c"])], classes(now), "x.pth")


def test_classes_that_cannot_be_told_apart_are_refused():
    saved = [asdict(c) for c in classes(["a", "a", "b"])]
    with pytest.raises(UserError, match="several have one name"):
        changed_order(saved, classes(["b", "a", "a"]), "x.pth")
    moved = [Category(1, 1, "a"), Category(5, 5, "b"), Category(6, 6, "c")]
    with pytest.raises(UserError, match="labels reach to 2 in the checkpoint, to 6 in the data"):
        changed_order([asdict(c) for c in classes(["a", "b", "c"])], moved, "x.pth")


HEADS = ("queries.head.classify.weight", "training_queries.groups.sources.0.head.classify.weight")


def with_groups(classes: int, proposal_head: str, seed: int = 0):
    model = small_model(
        classes, seed=seed, two_stage=True, refinement=True, query_groups=2, proposal_head=proposal_head
    )
    scramble(model, seed)
    return model


def test_the_proposals_of_every_group_go_by_name_where_they_are_scored_by_class():
    source, names = with_groups(3, "class"), (["a", "b", "c"], ["c", "x", "a"])
    model = with_groups(3, "class", seed=1)
    before = {key: model.state_dict()[key].clone() for key in HEADS}
    start_from(model, loaded(source, classes(names[0])), classes(names[1]), "x")
    for key in HEADS:
        given, found = source.state_dict()[key], model.state_dict()[key]
        assert torch.equal(found[[0, 2]], given[[2, 0]]) and torch.equal(found[1], before[key][1]), key
    assert not torch.equal(*(model.state_dict()[key] for key in HEADS))  # each group has a head of its own
    source, model = with_groups(3, "objectness"), with_groups(3, "objectness", seed=1)
    start_from(model, loaded(source, classes(names[0])), classes(names[1]), "x")
    assert all(torch.equal(model.state_dict()[key], source.state_dict()[key]) for key in HEADS)


@pytest.mark.parametrize(("proposal_head", "order"), [("class", [2, 0, 1]), ("objectness", [0, 1, 2])])
def test_the_proposals_of_every_group_are_reordered_where_they_are_scored_by_class(proposal_head, order):
    model = with_groups(3, proposal_head)
    before = {key: model.state_dict()[key].clone() for key in HEADS}
    state = TrainingState(model, adamw(model, 1e-3, 1e-3, 1.0, 0.0), None, torch.device("cpu"), None, 1)
    reorder_classes(state, [2, 0, 1])
    assert all(torch.equal(model.state_dict()[key], before[key][order]) for key in HEADS)
