"""What every option of the modern recipe must keep, each alone and all together, in one stage and in two.

A further option is a line of `OPTIONS`.
"""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch

from models.criterion import total_loss
from models.from_config import build_criterion
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import BackboneConfig, LossConfig

SIZES = [(48, 48), (32, 48), (48, 40)]
BACKBONE = BackboneConfig(name="test_resnet", weights="none", frozen_stages=0)


@dataclass(frozen=True)
class Option:
    """An option of the recipe.

    Attributes:
        model: options of the model that inference needs, too.
        training: options of the model for training alone.
        loss: options of the losses.
        stages: detectors that it is for.
        every_layer: whether it needs `loss.auxiliary`.
    """

    model: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    loss: dict = field(default_factory=dict)
    stages: tuple[str, ...] = ("one", "two")
    every_layer: bool = False


OPTIONS = {
    "hybrid": Option(training={"hybrid_queries": 7}, loss={"hybrid_repeats": 3, "hybrid_weight": 0.5}),
    "groups": Option(training={"query_groups": 3}),
    "look_forward": Option(training={"look_forward": 2}, every_layer=True),
    # Among all, in place of looking forward twice, which it is refused with.
    "distribution": Option(model={"distribution_boxes": True}, training={"look_forward": 1}),
    "distillation": Option(model={"distribution_boxes": True}, loss={"distillation_weight": 1.5}, every_layer=True),
    "box": Option(model={"reference": "box"}, stages=("one",)),
    "denoising": Option(model={"reference": "box"}, training={"denoising_queries": 6}, stages=("one",)),
    "denoising_proposals": Option(training={"denoising_queries": 6}, stages=("two",)),
    "tokens": Option(model={"query_selection": "tokens"}, stages=("two",)),
    "mixed_wide": Option(model={"query_selection": "mixed_wide"}, stages=("two",)),
    "mixed": Option(model={"query_selection": "mixed"}, stages=("two",)),
    "class_head": Option(model={"proposal_head": "class"}, stages=("two",)),
    "nms": Option(model={"proposal_nms": 0.7}, stages=("two",)),
    "atss": Option(loss={"proposal_assignment": "atss"}, stages=("two",)),
    "hybrid_encoder": Option(model={"encoder": "hybrid"}),
    "memory_fusion": Option(model={"memory_fusion": True}),
    "fusion_layers": Option(model={"memory_fusion": True, "fusion_layers": 2}),
    "relation": Option(model={"relation": True}),
    "sine": Option(model={"decoder_query_position": "sine"}),
    "query_scale": Option(model={"decoder_query_position": "sine", "query_scale": True}),
    "encoding": Option(model={"position_temperature": 20.0, "position_offset": 0.0, "box_epsilon": 1e-3}),
    "decoder_norm": Option(model={"decoder_norm": True}),
    "federated": Option(model={"proposal_head": "class"}, loss={"federated": True}, stages=("two",)),
    **{name: Option(loss={"classification": name}) for name in ("varifocal", "ia_bce", "mal", "position")},
}
CASES = [(stage, name) for stage in ("one", "two") for name in (*OPTIONS, "all")]
CASES = [(stage, name) for stage, name in CASES if name == "all" or stage in OPTIONS[name].stages]
every_case = pytest.mark.parametrize(("stage", "name"), CASES, ids=[f"{stage}-{name}" for stage, name in CASES])


def option_of(stage: str, name: str, auxiliary: bool = True) -> Option:
    """An option; `all` puts those together that can be."""
    if name != "all":
        return OPTIONS[name]
    parts = [o for o in OPTIONS.values() if stage in o.stages and (auxiliary or not o.every_layer)]
    together = {key: {k: v for o in parts for k, v in getattr(o, key).items()} for key in ("model", "training", "loss")}
    return Option(**together)


@cache
def detector(stage: str, name: str, auxiliary: bool = True, training: bool = True) -> torch.nn.Module:
    """A detector with an option, in float64; not the part for training, if so asked. Tests leave it as it was."""
    option = option_of(stage, name, auxiliary)
    options = option.model | (option.training if training else {})
    loss = LossConfig(**(option.loss if training else {}), auxiliary=auxiliary)
    options |= {"backbone": BACKBONE, "num_queries": 6, "decoder_layers": 3, "refinement": True}
    model = small_model(loss=loss, two_stage=stage == "two", **options)
    scramble(model)
    return model.double().eval()


def batch(counts=(3, 0, 2)):
    images, mask = padded_batch(SIZES)
    objects = [replace(o, boxes=o.boxes.double(), seed=i) for i, o in enumerate(random_objects([*counts]))]
    # Of five classes: all, of which no one is without an object; those of the objects but for one; and two others.
    known = torch.arange(5), torch.tensor([], dtype=torch.long), torch.cat([objects[2].labels[1:], torch.tensor([4])])
    objects = [replace(o, exhaustive=k.unique()) for o, k in zip(objects, known)]
    return images.double(), mask, objects


def losses_of(model, stage: str, name: str, images, mask, objects, num_boxes=None, auxiliary=True):
    """Losses by name, and gradients by parameter."""
    criterion = build_criterion(LossConfig(**option_of(stage, name, auxiliary).loss, auxiliary=auxiliary))
    losses = criterion(model(images, mask, objects), objects, num_boxes)
    model.zero_grad(set_to_none=True)  # what was handed out stays as it is
    total_loss(losses).backward()
    return (
        {key: loss.detach() for key, loss in losses.items()},
        {key: p.grad for key, p in model.named_parameters() if p.requires_grad},
    )


@cache
def outcome(stage: str, name: str, counts=(3, 0, 2), auxiliary=True):
    """The losses and gradients of a detector on the batch."""
    return losses_of(detector(stage, name, auxiliary), stage, name, *batch(counts), auxiliary=auxiliary)


def assert_same(found: dict, wanted: dict) -> None:
    """Equal to 1e-12 of the largest number of each tensor."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        largest = float(value.abs().max())
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-12 * max(1, largest), msg=lambda m, k=key: k + m)


@every_case
@torch.no_grad()
def test_inference_is_that_of_a_detector_without_what_is_for_training(stage, name):
    model, plain = detector(stage, name), detector(stage, name, training=False)
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing and all(key.startswith("training_queries.") for key in unexpected)
    images, mask, objects = batch()
    found, wanted, trained = model(images, mask), plain(images, mask), model(images, mask, objects)
    assert len(found.groups) == 1
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.boxes, wanted.boxes)
    torch.testing.assert_close(trained.logits, found.logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(trained.boxes, found.boxes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("stage", "name", "auxiliary"),
    [(s, n, a) for s, n in CASES for a in (True, False) if a or n == "all" or not OPTIONS[n].every_layer],
)
@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0, 0)], ids=["objects", "empty"])
def test_every_parameter_gets_a_gradient(stage, name, auxiliary, counts):
    losses, gradients = outcome(stage, name, counts, auxiliary)
    assert all(loss.isfinite() for loss in losses.values())
    without = [key for key, gradient in gradients.items() if gradient is None]
    assert not without
    if any(counts):
        assert not [key for key, gradient in gradients.items() if not gradient.any()]


@every_case
@torch.no_grad()
def test_no_group_sees_another(stage, name):
    """Other contents of the last group of each kind change nothing anywhere else, to the bit."""
    model, inputs = detector(stage, name), batch()
    wanted = model(*inputs).groups
    for more in model.training_queries.values():
        changed = []

        def disturb(module, args, queries, changed=changed):
            changed.append(queries.groups[-1].name)
            noise = torch.randn_like(queries.content)
            noise[:, : -queries.lengths[-1]] = 0
            return replace(queries, content=queries.content + noise)

        handle = more.register_forward_hook(disturb)
        found = model(*inputs).groups
        handle.remove()
        assert [g.name for g in found] == [g.name for g in wanted]
        for group, as_it_was in zip(found, wanted):
            for key in ("logits", "boxes"):
                same = torch.equal(getattr(group, key), getattr(as_it_was, key))
                assert same == (group.name.partition(".")[0] not in changed), (group.name, key)


@every_case
def test_a_batch_is_the_sum_of_its_images(stage, name):
    model, (images, mask, objects) = detector(stage, name), batch()
    together, gradients = outcome(stage, name)
    parts = [losses_of(model, stage, name, images[i : i + 1], mask[i : i + 1], objects[i : i + 1], 5) for i in range(3)]
    assert_same({key: sum(losses[key] for losses, _ in parts) for key in together}, together)
    assert_same({key: sum(of_image[key] for _, of_image in parts) for key in gradients}, gradients)


@every_case
def test_half_precision_runs(stage, name):
    model = deepcopy(detector(stage, name)).float()
    images, mask, objects = batch()
    objects = [replace(o, boxes=o.boxes.float()) for o in objects]
    with torch.autocast("cpu", torch.bfloat16):
        losses, gradients = losses_of(model, stage, name, images.float(), mask, objects)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@every_case
def test_checkpointing_changes_nothing(stage, name):
    model, plain = deepcopy(detector(stage, name)).train(), outcome(stage, name)
    model.transformer.checkpointing = True
    checkpointed = losses_of(model, stage, name, *batch())
    assert_same(checkpointed[0], plain[0])
    assert_same(checkpointed[1], plain[1])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["one", "two"])
def test_compiled_parts_change_nothing(stage):
    """Layers are compiled with fullgraph, which makes a break an error."""
    model, plain = deepcopy(detector(stage, "all")), outcome(stage, "all")
    for layer in (*model.transformer.part("encoder"), *model.transformer.part("decoder"), *model.heads):
        layer.compile(fullgraph=True, dynamic=True, backend="eager")
    compiled = losses_of(model, stage, "all", *batch())
    assert_same(compiled[0], plain[0])
