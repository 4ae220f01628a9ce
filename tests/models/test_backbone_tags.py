import pytest
import timm
import torch
import torchvision

from models.backbone_tags import architecture, known_name, name_weights
from models.from_config import build_backbone
from tests.models.test_from_config import CONFIGS
from util import cli
from util.config import BackboneConfig, Config
from util.errors import UserError


def file_of(url: str) -> str:
    return url.rpartition("/")[2]


@pytest.mark.parametrize(
    ("preset", "weights"),
    [
        ("single_scale", torchvision.models.ResNet50_Weights.IMAGENET1K_V1),
        ("single_scale_dc5", torchvision.models.ResNet50_Weights.IMAGENET1K_V1),
        ("base", torchvision.models.ResNet50_Weights.IMAGENET1K_V1),
        ("refinement", torchvision.models.ResNet50_Weights.IMAGENET1K_V1),
        ("two_stage", torchvision.models.ResNet50_Weights.IMAGENET1K_V1),
        ("two_stage_r101", torchvision.models.ResNet101_Weights.IMAGENET1K_V1),
    ],
)
def test_the_papers_presets_start_from_torchvisions_first_weights(preset, weights):
    """The hash in the file's name says which weights they are."""
    name = cli.parse(Config, ["--config", str(CONFIGS / f"{preset}.yaml")], "test").model.backbone.name
    assert file_of(timm.get_pretrained_cfg(name).url) == file_of(weights.url)
    assert weights is not type(weights).DEFAULT


@pytest.mark.parametrize("preset", ["two_stage_x101", "two_stage_x101_dcn"])
def test_weights_of_the_largest_presets_are_older_than_the_paper(preset):
    name = cli.parse(Config, ["--config", str(CONFIGS / f"{preset}.yaml")], "test").model.backbone.name
    file = file_of(timm.get_pretrained_cfg(name).url)
    newer = torchvision.models.ResNeXt101_64X4D_Weights.IMAGENET1K_V1  # of 2022
    assert file == "gluon_resnext101_64x4d-f9a8e184.pth" and file != file_of(newer.url)


@pytest.mark.parametrize(
    ("name", "weights", "brought", "expected"),
    [
        ("resnet50", "timm", None, "resnet50.a1_in1k"),
        ("resnet50.tv_in1k", "timm", None, "resnet50.tv_in1k"),
        ("resnet50", "none", None, "resnet50"),
        ("resnet50", "folder.x/file.pth", None, "resnet50"),
        # A checkpoint that brings the backbone brings its name, whatever the tags; another architecture does not.
        ("resnet50.tv_in1k", "timm", "resnet50", "resnet50"),
        ("resnet50", "timm", "resnet50.tv_in1k", "resnet50.tv_in1k"),
        ("resnet50", "none", "resnet50.tv_in1k", "resnet50.tv_in1k"),
        ("resnet50.tv_in1k", "timm", "resnet101.tv_in1k", "resnet50.tv_in1k"),
        ("resnet101", "timm", "resnet50.tv_in1k", "resnet101.a1h_in1k"),
        ("nothing_like_it", "timm", None, "nothing_like_it"),
    ],
)
def test_the_name_tells_the_weights(name, weights, brought, expected):
    config = BackboneConfig(name, weights)
    name_weights(config, brought)
    assert config.name == expected
    assert architecture(config.name) == architecture(name)


def test_unknown_tags_are_named_only_where_their_weights_are_wanted():
    with pytest.raises(UserError, match=r"'resnet50\.tv_in2k'; of resnet50 it has .*tv_in1k"):
        known_name("resnet50.tv_in2k", pretrained=True)
    # A checkpoint of a newer timm brings its weights itself.
    assert known_name("resnet50.tv_in2k", pretrained=False) == "resnet50"
    assert known_name("resnet50.tv_in1k", pretrained=False) == "resnet50.tv_in1k"
    body = build_backbone(BackboneConfig("resnet10t.of_tomorrow", "none"), 2).body
    assert body.feature_info.channels() == [64, 64, 128, 256, 512]


def test_tags_change_nothing_but_the_weights():
    torch.manual_seed(0)
    plain = build_backbone(BackboneConfig("resnet10t", "none"), 2).state_dict()
    torch.manual_seed(0)
    tagged = build_backbone(BackboneConfig("resnet10t.c3_in1k", "none", dcn="none"), 2).state_dict()
    assert all(torch.equal(values, tagged[key]) for key, values in plain.items()) and len(plain) == len(tagged)
    deformed = build_backbone(BackboneConfig("resnet26.bt_in1k", "none", dcn="v2"), 2)
    assert any("sampling_offsets" in key for key in deformed.state_dict())
