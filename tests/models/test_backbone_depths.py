"""Depths of a backbone's parameters, counted by hand and beside timm's own groups."""

import pytest
import timm
from timm.optim import param_groups_layer_decay

from models.backbone import Backbone
from models.backbone_depths import parameter_depths
from models.from_config import build_backbone
from util.config import BackboneConfig
from util.errors import UserError


def test_a_vision_transformer_is_tokens_and_twelve_blocks():
    backbone = Backbone("vit_tiny_patch16_224", 3, False, frozen_stages=0)
    depths = parameter_depths(backbone)
    assert depths.keys() == {name for name, _ in backbone.body.named_parameters()}
    for name, depth in depths.items():
        words = name.split(".")[1:]  # without `model`
        assert depth == (11 - int(words[1]) if words[0] == "blocks" else 12), name
    scale_of = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(backbone.body.model, layer_decay=0.8)
        for p in group["params"]
    }
    for name, parameter in backbone.body.named_parameters():
        assert scale_of[id(parameter)] == pytest.approx(0.8 ** depths[name])


def test_a_resnet_is_its_stem_and_blocks():
    backbone = Backbone("resnet10t", 3, False, frozen_stages=0)  # one block in each stage
    for name, depth in parameter_depths(backbone).items():
        assert depth == (4 - int(name[5]) if name.startswith("layer") else 4), name


def test_offsets_of_a_deformable_convolution_are_where_it_is():
    backbone = build_backbone(BackboneConfig("resnet10t", "none", dcn="v2"), 3)
    depths = parameter_depths(backbone)
    assert {depths[n] for n in depths if "layer3" in n} == {1}
    assert any("layer3" in n and "sampling_offsets" in n for n in depths)


@pytest.mark.parametrize("name", ["convnext_atto", "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224"])
def test_names_that_feature_extractors_flatten_are_found(name):
    backbone = Backbone(name, 3, False, frozen_stages=0)
    depths = parameter_depths(backbone)
    assert depths.keys() == {n for n, _ in backbone.body.named_parameters()}
    assert min(depths.values()) == 0 and max(depths.values()) > 5


def test_a_network_without_groups_is_refused(monkeypatch):
    backbone = Backbone("resnet10t", 3, False)
    monkeypatch.delattr(timm.models.resnet.ResNet, "group_matcher")
    with pytest.raises(UserError, match="layer_decay: timm does not group the layers of 'resnet10t'; leave it"):
        parameter_depths(backbone)
