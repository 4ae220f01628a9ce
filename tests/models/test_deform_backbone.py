"""Deformable convolutions in backbones: which layers, the same weights, what is refused."""

import pytest
import timm
import torch
from torch import nn

from engine.optim import adamw
from models.backbone import Backbone
from models.backbone_weights import load_backbone_weights
from models.from_config import build_backbone
from models.limits import check_model
from ops import DeformConv2d, ModulatedDeformConv2d
from tests.models.helpers import small_config, small_model
from util.config import BackboneConfig, ModelConfig
from util.counting import count_flops
from util.errors import UserError


def backbone(name="resnet26", seed=0, **options) -> Backbone:
    torch.manual_seed(seed)
    config = BackboneConfig(name, **{"weights": "none", "frozen_stages": 0, "norm": "trainable", **options})
    model = build_backbone(config, 3).eval()
    for key, value in model.state_dict().items():
        if ".bn" in key and key.endswith("weight"):
            value.fill_(1.0)  # timm starts the last norm of a block at zero, which would hide what is before it
    return model


def deformed(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, DeformConv2d)]


@pytest.mark.parametrize(
    ("stages", "layers"),
    [([3, 4, 5], ["layer2", "layer3", "layer4"]), ([5], ["layer4"]), ([2, 4], ["layer1", "layer3"])],
)
def test_every_3x3_of_the_stages_and_no_other(stages, layers):
    model = backbone(dcn="v1", dcn_stages=stages)
    assert deformed(model) == [f"body.{layer}.{block}.conv2" for layer in layers for block in (0, 1)]
    basic = deformed(backbone("resnet10t", dcn="v2", dcn_stages=[5]))
    assert basic == ["body.layer4.0.conv1", "body.layer4.0.conv2"]


@pytest.mark.parametrize("options", [{}, {"output_stride": 16}, {"name": "seresnext26d_32x4d"}])
def test_v1_begins_as_the_backbone_it_was_made_of(options):
    plain, v1 = backbone(**options), backbone(**options, dcn="v1")
    state = plain.state_dict()
    v1.load_state_dict(state, strict=False)
    assert set(v1.state_dict()) - set(state) == {
        f"{name}.sampling_offsets.{part}" for name in deformed(v1) for part in ("weight", "bias")
    }
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        pairs = zip(v1(images), plain(images), strict=True)
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max().item())


def test_pretrained_weights_are_kept(monkeypatch):
    """Whatever timm creates, the layers made of it have its very weights, groups included."""
    made = {}
    create = timm.create_model

    def remember(*args, **options):
        made["model"] = create(*args, **{**options, "pretrained": False})
        made["state"] = {k: v.clone() for k, v in made["model"].state_dict().items()}
        return made["model"]

    monkeypatch.setattr(timm, "create_model", remember)
    model = build_backbone(BackboneConfig("resnext50_32x4d", dcn="v2"), 3)
    found = model.body.state_dict()
    layer = model.body.layer4[0].conv2
    assert isinstance(layer, ModulatedDeformConv2d) and layer.groups == 32 and layer.stride == (2, 2)
    for key, value in made["state"].items():
        if "num_batches" not in key:
            assert torch.equal(found[key], value), key


def test_initial_modulation_decides_how_much_changes():
    plain = backbone()
    images, difference = torch.randn(1, 3, 64, 64), []
    for initial in (0.5, 0.99):
        v2 = backbone(dcn="v2", dcn_initial_modulation=initial)
        v2.load_state_dict(plain.state_dict(), strict=False)
        difference.append(float((v2(images)[-1] - plain(images)[-1]).abs().mean()))
    assert difference[1] < 0.1 * difference[0]


def test_local_weights_need_no_offsets_and_may_have_them(tmp_path):
    plain, v2 = backbone(seed=1), backbone(dcn="v2", seed=2)
    torch.save(plain.body.state_dict(), tmp_path / "plain.pth")
    load_backbone_weights(v2.body, str(tmp_path / "plain.pth"))
    assert torch.equal(v2.body.layer3[0].conv2.weight, plain.body.layer3[0].conv2.weight)
    nn.init.ones_(v2.body.layer3[0].conv2.sampling_offsets.weight)
    torch.save(v2.body.state_dict(), tmp_path / "v2.pth")
    again = backbone(dcn="v2", seed=3)
    load_backbone_weights(again.body, str(tmp_path / "v2.pth"))
    assert all(torch.equal(a, b) for a, b in zip(v2.body.state_dict().values(), again.body.state_dict().values()))


def test_learning_rates_of_the_backbones_offsets():
    config = small_config()
    config.backbone.dcn = "v2"
    model = small_model(backbone=config.backbone)
    groups = {g["name"]: g for g in adamw(model, 1e-3, 1e-4, 0.1, 0.0).param_groups}
    names = {id(p): n for n, p in model.named_parameters()}
    in_backbone = [names[id(p)] for p in groups["backbone_offsets"]["params"]]
    assert len(in_backbone) == 2 * 6 and all("backbone" in n and "sampling_offsets" in n for n in in_backbone)
    assert groups["backbone_offsets"]["lr"] == pytest.approx(1e-5) and groups["offsets"]["lr"] == pytest.approx(1e-4)
    assert not any("sampling_offsets" in names[id(p)] for p in groups["backbone"]["params"])
    assert sum(len(g["params"]) for g in groups.values()) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("backend", ["sampling", "torchvision"])
def test_operations_are_counted_whatever_runs(backend):
    """By hand: 4 corners of 9 samples of each channel, and the products."""
    torch.manual_seed(0)
    layer, x = DeformConv2d(8, 16, 3, padding=1, bias=False), torch.randn(2, 8, 7, 9)
    layer.backend = backend
    offsets = 2 * 7 * 9 * 2 * 18 * 8 * 9
    assert sum(count_flops(layer, lambda: layer(x)).values()) == offsets + 2 * 7 * 9 * (8 * 8 * 9 + 2 * 16 * 8 * 9)


def test_offsets_learn_and_frozen_stages_stay():
    model = backbone(dcn="v2", frozen_stages=3, dcn_stages=[4, 5], norm="frozen").train()
    sum(m.square().mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert all(grads[f"{name}.sampling_offsets.weight"].any() for name in deformed(model))
    assert all(g is None for n, g in grads.items() if "layer2" in n)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dcn_stages": [6]}, r"dcn_stages is \[6\]; it must list some of \[2, 3, 4, 5\]"),
        ({"dcn_stages": []}, r"dcn_stages is \[\]; it must list some of"),
        ({"name": "convnext_atto"}, "of a ResNet or ResNeXt"),
        ({"name": "hrnet_w18_small"}, "of a ResNet or ResNeXt"),
        ({"dcn_offset_groups": 7}, "offset_groups 7 does not divide"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(UserError, match=says):
        backbone(**{"dcn": "v2", **options})


def test_frozen_stages_cannot_be_deformed():
    with pytest.raises(UserError, match=r"dcn_stages has \[2\], but the first 2 are frozen"):
        check_model(ModelConfig(BackboneConfig(dcn="v2", dcn_stages=[2, 3], frozen_stages=2)))
