"""Sizes of the published variants, and every shape a researcher may ask for."""

from pathlib import Path

import pytest
import torch
from torch import nn

from models.from_config import build_model
from models.heads import inverse_sigmoid
from tests.models.helpers import padded_batch, random_objects, scramble, small_config, small_model
from util import cli
from util.config import BackboneConfig, Config, ModelConfig
from util.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TRAINABLE = {
    "single_scale": 33_844_193,
    "single_scale_dc5": 33_844_193,
    "base": 39_847_265,
    "refinement": 40_627_260,
    "two_stage": 40_959_129,
}


def preset(name: str) -> ModelConfig:
    argv = ["--config", str(CONFIGS / f"{name}.yaml"), "--model.backbone.weights", "none"]
    return cli.parse(Config, argv, "test").model


@pytest.mark.parametrize("name", TRAINABLE)
def test_trainable_parameters_at_91_classes(name):
    model = build_model(preset(name), 91)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == TRAINABLE[name]
    assert len({id(p) for p in model.parameters()}) == len(
        [k for k, _ in model.named_parameters(remove_duplicate=False)]
    )


def test_dc5_has_stride_16():
    model = build_model(preset("single_scale_dc5"), 2)
    assert model.backbone.strides == [16]
    assert model.backbone(torch.zeros(1, 3, 64, 96))[0].shape == (1, 2048, 4, 6)


def test_initial_values():
    model = build_model(preset("base"), 91)
    head = model.heads[0]
    assert torch.allclose(head.classify.bias.sigmoid(), torch.tensor(0.01), atol=1e-6)
    assert head.regress.layers[-1].bias.tolist() == [0, 0, -2, -2] and not head.regress.layers[-1].weight.any()
    refined = build_model(preset("refinement"), 91).heads
    assert [h.regress.layers[-1].bias[2].item() for h in refined] == [-2, 0, 0, 0, 0, 0]
    two_stage = build_model(preset("two_stage"), 91)
    assert all(not h.regress.layers[-1].bias.any() for h in [*two_stage.heads, two_stage.queries.head])


def test_stem_and_layer1_are_frozen_and_norms_have_no_parameters():
    backbone = build_model(preset("base"), 91).backbone
    frozen = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    trained = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert frozen == {"conv1", "layer1"} and trained == {"layer2", "layer3", "layer4"}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())


@pytest.mark.parametrize(
    "options",
    [
        {"num_levels": 1},
        {"num_levels": 2},
        {"num_levels": 5},
        {"num_points": [3, 1, 2]},
        {"encoder_points": 1, "decoder_points": [0, 2, 0]},
        {"encoder_heads": 2, "decoder_heads": 8, "self_attention_heads": 1},
        {"d_model": 60, "num_heads": 5, "norm_groups": 6},
        {"encoder_layers": 0},
        {"decoder_layers": 1, "refinement": True},
        {"refinement": True},
        {"two_stage": True},
        {"two_stage": True, "refinement": True, "num_queries": 500},
    ],
    ids=str,
)
def test_any_shape_predicts_and_learns(options):
    model = small_model(**options).train()
    scramble(model)
    images, mask = padded_batch([(70, 90), (64, 40)])
    out = model(images, mask, random_objects([1, 2]))
    layers, queries = model.transformer.decoder.__len__(), out.logits.shape[2]
    assert out.logits.shape == (layers, 2, queries, 5) and out.boxes.shape == (layers, 2, queries, 4)
    if options.get("num_queries") == 500:  # fewer tokens than queries: as many proposals as there are tokens
        assert queries == out.groups[1].logits.shape[2] < 500
    else:
        assert queries == 12
    assert (out.boxes > 0).all() and (out.boxes < 1).all()
    (out.logits.sum() + out.boxes.sum()).backward()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (33, 32), (64, 64)])
def test_any_image_size(size):
    model = small_model(num_levels=5, two_stage=True).eval()
    out = model(*padded_batch([size]))
    assert torch.isfinite(out.logits).all() and torch.isfinite(out.boxes).all()


@pytest.mark.parametrize(
    "name",
    ["resnet18", "convnext_atto", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"],
)
def test_any_timm_backbone(name):
    model = small_model(backbone=BackboneConfig(name=name, weights="none", frozen_stages=1)).eval()
    out = model(*padded_batch([(90, 130), (64, 64)]))
    assert torch.isfinite(out.boxes).all()
    assert any(not p.requires_grad for p in model.backbone.parameters())
    assert any(p.requires_grad for p in model.backbone.parameters())


def test_local_backbone_weights(tmp_path):
    import timm

    torch.manual_seed(3)
    whole = timm.create_model("resnet10t")
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    path = str(tmp_path / "weights.pth")
    backbone = BackboneConfig(name="resnet10t", weights=path, norm="trainable", frozen_stages=0)
    model = small_model(backbone=backbone)
    assert torch.equal(model.backbone.body.state_dict()["layer3.0.conv1.weight"], whole.layer3[0].conv1.weight)
    with pytest.raises(UserError, match="not of this backbone"):
        small_model(backbone=BackboneConfig(name="resnet18", weights=path))


@pytest.mark.parametrize(
    "options, named",
    [
        ({"num_heads": 5}, "model.num_heads"),
        ({"norm_groups": 7}, "model.norm_groups"),
        ({"self_attention_heads": 3}, "model.self_attention_heads"),
        ({"num_points": [1, 2]}, "model.num_points"),
        ({"decoder_points": 0}, "model.decoder_points"),
        ({"num_levels": 0}, "model.num_levels"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"d_model": 30, "num_heads": 5, "norm_groups": 5}, "model.d_model"),
    ],
)
def test_impossible_numbers_are_named(options, named):
    with pytest.raises(UserError, match=named):
        build_model(small_config(**options), 5)


def test_inverse_sigmoid_clamps_at_1e_5():
    x = torch.tensor([0.0, 0.5, 1.0, 0.25], dtype=torch.float64)
    expected = [torch.log(torch.tensor(1e-5)).item(), 0.0, -torch.log(torch.tensor(1e-5)).item(), -1.0986122886681098]
    assert inverse_sigmoid(x).tolist() == pytest.approx(expected, rel=1e-6)
