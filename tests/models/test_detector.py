"""Gradients, batches, references: what the whole detector must keep."""

import pytest
import torch

from models.from_config import build_criterion, build_model
from models.limits import PARTS, check_freeze
from models.transformer import encoder_reference_points
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from tests.models.test_from_config import TRAINABLE, preset
from util.config import BackboneConfig, LossConfig
from util.errors import UserError


def gradients(model, auxiliary: bool) -> dict[str, torch.Tensor | None]:
    images, mask = padded_batch([(96, 128), (128, 80)])
    criterion, objects = build_criterion(LossConfig(auxiliary=auxiliary)), random_objects([3, 2], num_classes=3)
    sum(criterion(model(images, mask, objects), objects).values()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("auxiliary", [True, False], ids=["auxiliary", "last_only"])
@pytest.mark.parametrize("name", TRAINABLE)
def test_every_trainable_parameter_of_every_preset_learns(name, auxiliary):
    torch.manual_seed(0)
    config = preset(name)
    config.d_model, config.ffn_dim, config.encoder_layers, config.decoder_layers = 64, 64, 2, 3
    model = build_model(config, 3, LossConfig(auxiliary=auxiliary)).train()
    scramble(model)  # past the layers that start at zero
    for parameter, gradient in gradients(model, auxiliary).items():
        assert gradient is not None, f"{parameter} is not used"
        assert gradient.abs().max() > 0, f"{parameter} has no gradient"


def test_refinement_detaches_references_between_layers():
    model = small_model(refinement=True)
    scramble(model)
    images, mask = padded_batch([(96, 96)])
    model(images, mask).boxes[1].sum().backward()
    assert not model.heads[0].regress.layers[0].weight.grad.any()
    assert model.heads[1].regress.layers[0].weight.grad.abs().sum() > 0


def test_without_refinement_every_layer_starts_from_the_same_reference():
    """A decoder whose states do not change must predict the same box at every layer."""
    model = small_model(two_stage=True).eval()
    out = model(*padded_batch([(96, 96)]))
    torch.testing.assert_close(out.boxes[0], out.boxes[1])  # box heads start at zero: each is its own proposal


def test_overfits_one_batch():
    backbone = BackboneConfig("test_resnet", "none", norm="trainable", frozen_stages=0)
    model = small_model(num_classes=3, refinement=True, num_queries=20, backbone=backbone).train()
    criterion, targets = build_criterion(LossConfig()), random_objects([3, 2], num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images, mask = padded_batch([(64, 64), (64, 48)])
    history = []
    while len(history) < 160 and (not history or history[-1] >= history[0] / 10):
        loss = sum(criterion(model(images, mask), targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert min(history) < history[0] / 10


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"two_stage": True}], ids=["one_stage", "two_stage"])
def test_the_transformer_does_not_see_padding(options):
    """Features of an image alone, and the same ones with garbage padded on, give the same answer."""
    model = small_model(refinement=True, num_levels=2, **options).double().eval()
    scramble(model)
    features = [torch.randn(1, c, s, s).double() for c, s in zip(model.backbone.channels, (8, 4))]
    padded = [torch.randn(1, f.shape[1], 2 * f.shape[2], 2 * f.shape[3]).double() for f in features]
    for whole, part in zip(padded, features):
        whole[:, :, : part.shape[2], : part.shape[3]] = part
    model.neck.levels = torch.nn.ModuleList(level[0] for level in model.neck.levels)  # GroupNorm looks at all pixels
    mask = torch.ones(1, 256, 256, dtype=torch.bool)
    mask[:, :128, :128] = False
    answers = []
    for maps, of in ((features, mask[:, :128, :128]), (padded, mask), (padded, torch.zeros_like(mask))):
        model.backbone.forward = lambda images, mask, maps=maps: maps
        answers.append(model(torch.zeros(1, 3, *of.shape[1:]).double(), of).boxes[-1])
    alone, masked, unmasked = answers
    torch.testing.assert_close(masked, alone, atol=1e-6, rtol=0)
    assert (unmasked - alone).abs().max() > 1e-3  # without the mask it would


@torch.no_grad()
def test_batch_of_equal_sizes_equals_single_images():
    model = small_model(refinement=True, two_stage=True).double().eval()
    scramble(model)
    images, mask = padded_batch([(64, 96)] * 3)
    together = model(images.double(), mask)
    for i in range(3):
        alone = model(images[i : i + 1].double(), mask[i : i + 1])
        torch.testing.assert_close(together.boxes[:, i], alone.boxes[:, 0], atol=1e-9, rtol=0)


def test_encoder_references_are_pixel_centres_of_the_unpadded_part():
    ratios = torch.tensor([[[0.5, 1.0], [1.0, 1.0]]])  # level 1 has half its width padded
    points = encoder_reference_points([(1, 4), (1, 2)], ratios)
    assert points[0, :4, 0, 0].tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875])  # on its own padded level
    assert points[0, :2, 1, 0].tolist() == pytest.approx([0.25, 0.75])  # as a share of the other, unpadded one
    assert points[0, 4:, 0, 0].tolist() == pytest.approx([0.125, 0.375])


@pytest.mark.parametrize("part", PARTS)
def test_a_frozen_part_has_no_gradient_and_is_evaluated_in_training(part):
    model = small_model(dropout=0.5)
    model.freeze([part])
    model.train()
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    prefix = f"transformer.{part}." if part in ("encoder", "decoder") else f"{part}."
    assert names == {name for name, _ in model.named_parameters() if name.startswith(prefix)}
    asleep = {name for name, module in model.named_modules() if not module.training}
    assert asleep == {name for name, _ in model.named_modules() if f"{name}.".startswith(prefix)}


def test_a_detector_with_nothing_to_train_is_refused():
    with pytest.raises(UserError, match="leaves nothing to train"):
        small_model(encoder_layers=0).freeze([part for part in PARTS if part not in ("encoder", "position")])


@pytest.mark.parametrize(
    ("parts", "weight", "said"),
    [
        (["backbon"], 0, "did you mean 'backbone'"),
        (list(PARTS), 0, "nothing to train"),
        (["backbone"], 0.1, "mimic_weight teaches the backbone"),
    ],
)
def test_parts_that_cannot_be_frozen_are_refused(parts, weight, said):
    with pytest.raises(UserError, match=said):
        check_freeze(parts, weight)
