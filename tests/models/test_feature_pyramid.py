"""The pyramid on a plain vision transformer beside its formula; strides, sizes, frozen stages, what trains."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.backbone import Backbone
from models.criterion import total_loss
from models.feature_pyramid import SimpleFeaturePyramid, plain_stride
from models.from_config import build_backbone, build_criterion
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import BackboneConfig, LossConfig

VIT = BackboneConfig(name="test_vit", weights="none", frozen_stages=0)  # 6 blocks 64 wide, patches of 16


def by_hand(x: Tensor, w: dict, steps: list) -> Tensor:
    """The steps of section 3 one after the other, numbered as the layers are."""
    for i, step in enumerate(steps):
        weight, bias = w.get(f"{i}.weight"), w.get(f"{i}.bias")
        if step == "up":  # each pixel becomes four that do not overlap
            x = torch.einsum("bchw,coij->bohiwj", x, weight).flatten(4).flatten(2, 3) + bias[:, None, None]
        elif step == "down":
            height, width = x.shape[-2:]
            padded = F.pad(x, (0, width % 2, 0, height % 2), value=-torch.inf)
            x = padded.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
        elif step == "norm":
            centred = x - x.mean(1, keepdim=True)
            x = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
            x = x * weight[:, None, None] + bias[:, None, None]
        elif step == "gelu":
            x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    return x


@pytest.mark.parametrize(
    ("stride", "num_maps", "strides", "steps"),
    [
        (16, 3, [8, 16, 32], [["up"], [], ["down"]]),
        (16, 4, [4, 8, 16, 32], [["up", "norm", "gelu", "up"], ["up"], [], ["down"]]),
        (16, 2, [16, 32], [[], ["down"]]),
        (14, 3, [7, 14, 28], [["up"], [], ["down"]]),
        (8, 3, [8, 16, 32], [[], ["down"], ["down", "down"]]),
        (32, 3, [8, 16, 32], [["up", "norm", "gelu", "up"], ["up"], []]),
    ],
)
@torch.no_grad()
def test_the_maps_are_those_of_the_formula(stride, num_maps, strides, steps):
    pyramid = SimpleFeaturePyramid(24, stride, num_maps)
    scramble(pyramid)
    pyramid = pyramid.double()
    x = torch.randn(2, 24, 5, 7).double()
    found = pyramid(x)
    assert pyramid.strides == strides and pyramid.channels == [24] * num_maps
    for of_map, made, before in zip(found, pyramid.maps, steps, strict=True):
        wanted = by_hand(x, made.state_dict(), [*before, "conv", "norm", "conv", "norm"])
        torch.testing.assert_close(of_map, wanted, rtol=0, atol=1e-11)


def test_maps_are_at_most_256_wide():
    assert SimpleFeaturePyramid(384, 14).channels == [256] * 3


def test_only_maps_of_one_stride_are_plain():
    assert plain_stride([16, 16, 16]) == 16
    assert plain_stride([8, 16, 32]) is None and plain_stride([8, 16, 16]) is None and plain_stride([16]) is None


@pytest.mark.parametrize(
    ("num_features", "pyramid", "strides", "channels"),
    [
        (3, "auto", [8, 16, 32], [64] * 3),
        (2, "auto", [16, 32], [64] * 2),
        (1, "auto", [16], [64]),
        (3, "none", [16] * 3, [64] * 3),
    ],
)
def test_a_plain_transformer_gets_a_pyramid(num_features, pyramid, strides, channels):
    backbone = Backbone("test_vit", num_features, False, frozen_stages=0, pyramid=pyramid)
    assert backbone.strides == strides and backbone.channels == channels and backbone.size_multiple == 16
    maps = backbone(torch.randn(1, 3, 80, 112))
    assert [m.shape[1:] for m in maps] == [(c, -(-80 // s), -(-112 // s)) for c, s in zip(channels, strides)]
    keys = [key for key in backbone.state_dict() if not key.startswith("body.")]
    assert all(key.startswith("pyramid.maps.") for key in keys)
    assert bool(keys) == (pyramid == "auto" and num_features > 1)


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_other_networks_have_none(name):
    assert build_backbone(BackboneConfig(name=name, weights="none"), 3).pyramid is None


@pytest.mark.parametrize("encoder", ["deformable", "hybrid"])
@pytest.mark.parametrize(("sizes", "num_levels"), [([(61, 90), (75, 33)], 4), ([(48, 40)], 3), ([(100, 17)], 2)])
def test_a_detector_on_it_trains_in_any_size(sizes, num_levels, encoder):
    model = small_model(backbone=VIT, num_levels=num_levels, encoder=encoder).train()
    objects = random_objects([2, 1][: len(sizes)])
    losses = build_criterion(LossConfig())(model(*padded_batch(sizes), objects), objects)
    total_loss(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad.any() for p in model.backbone.pyramid.parameters())


def test_half_precision():
    model, objects = small_model(backbone=VIT).train(), random_objects([2])
    with torch.autocast("cpu", torch.bfloat16):
        losses = build_criterion(LossConfig())(model(*padded_batch([(64, 80)]), objects), objects)
    total_loss(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_padding_is_zero_for_its_convolutions_if_padding_is_ignored():
    model = small_model(backbone=VIT, ignore_padding=True)
    assert model.size_multiple == 32
    read = []
    for module in model.backbone.pyramid.modules():
        if getattr(module, "kernel_size", None) == (3, 3):
            module.register_forward_hook(lambda _, inputs, out: read.append(inputs[0]))
    images, mask = model.fit(*padded_batch([(64, 64), (32, 64)]))
    model(images, mask)
    assert len(read) == 3
    for x in read:
        assert not x[1, :, x.shape[2] // 2 :].any() and x[0, :, x.shape[2] // 2 :].any()


@pytest.mark.parametrize(
    ("count", "trained"),
    [(0, None), (1, "blocks.0"), (2, "blocks.1"), (6, "blocks.5"), (7, ""), (99, "")],
)
def test_frozen_stages_are_what_makes_the_tokens_and_then_blocks(count, trained):
    backbone = Backbone("test_vit", 3, False, frozen_stages=count).train()
    frozen = [n.removeprefix("model.") for n, p in backbone.body.named_parameters() if not p.requires_grad]
    names = [n.removeprefix("model.") for n, _ in backbone.body.named_parameters()]
    before = ["cls_token", "pos_embed", *(n for n in names if n.startswith("patch_embed"))]
    blocks = [n for n in names if n.startswith("blocks") and int(n.split(".")[1]) < count - 1]
    assert sorted(frozen) == sorted([*before, *blocks] if count else [])
    if trained:
        assert all(p.requires_grad for n, p in backbone.body.named_parameters() if trained in n)
    elif trained == "":
        assert len(frozen) == len(names)
    assert all(p.requires_grad for p in backbone.pyramid.parameters())
    training = {n.removeprefix("model.") for n, m in backbone.body.named_modules() if m.training and n}
    assert all(n.startswith("blocks.") and int(n.split(".")[1]) >= count - 1 for n in training if count)
