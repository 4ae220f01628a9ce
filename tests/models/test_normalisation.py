"""What images are normalised by follows the backbone, and a checkpoint keeps it."""

from argparse import Namespace

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms.v2 import functional as TF
from transformers import DeformableDetrImageProcessor

from datasets.batch import Batch
from datasets.device import ToDevice
from models.convert import from_original, from_transformers
from models.from_config import build_backbone, build_model, with_normalisation
from models.limits import check_model
from models.load import load_detector
from tests.models.helpers import small_config
from tests.models.test_convert import as_original, model_of
from tests.models.test_parity import reference_model
from util.checkpoint_write import save_checkpoint
from util.config import BackboneConfig
from util.described import saved_config
from util.errors import UserError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}  # openai/CLIP


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18.tv_in1k", IMAGENET),
        ("tf_efficientnet_lite0.in1k", HALF),
        ("resnet50_clip.openai", CLIP),
        ("test_vit", HALF),
    ],
)
def test_the_numbers_are_those_of_the_backbones_own_weights(name, expected):
    backbone = build_backbone(BackboneConfig(name=name, weights="none"), 1)
    assert {"mean": backbone.mean, "std": backbone.std} == expected


def test_images_are_what_timms_own_pipeline_makes_of_them():
    name = "tf_efficientnet_lite0"
    backbone = build_backbone(BackboneConfig(name=name, weights="none"), 3)
    picture = Image.effect_noise((224, 224), 80).convert("RGB")
    config = resolve_data_config({"crop_pct": 1.0}, model=timm.create_model(name, pretrained=False))
    expected = create_transform(**config)(picture)
    mask = torch.zeros(1, 224, 224, dtype=torch.bool)
    batch = Batch(TF.pil_to_tensor(picture)[None], mask, [], [])
    found = ToDevice(torch.device("cpu"), backbone.mean, backbone.std)(batch).images[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def saved(path, backbone: BackboneConfig, leave_out: tuple[str, ...] = ()) -> str:
    """A checkpoint of ours whose configuration says of its backbone all but `leave_out`."""
    config = small_config(backbone=backbone)
    said = {k: v for k, v in vars(backbone).items() if k not in leave_out}
    content = {
        "model": build_model(config, 1).state_dict(),
        "config": {"model": {**vars(config), "backbone": said}, "data": {}, "train": {}},
        "categories": [{"label": 0, "id": 1, "name": "a"}],
        "epoch": 1,
    }
    save_checkpoint(path, content)
    return str(path)


def test_a_checkpoint_keeps_them(tmp_path):
    section = BackboneConfig(name="test_resnet", weights="none")
    written = with_normalisation(section, build_backbone(section, 3))
    assert {"mean": tuple(written.mean), "std": tuple(written.std)} == HALF
    section = BackboneConfig(name="test_resnet", weights="none", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    backbone = load_detector(saved(tmp_path / "last.pth", section)).model.backbone
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_checkpoint_that_does_not_say_was_normalised_by_imagenets(tmp_path):
    """All were before backbones said it themselves, also those of a network whose own numbers are 0.5."""
    path = saved(tmp_path / "last.pth", BackboneConfig(name="test_resnet", weights="none"), ("mean", "std"))
    backbone = load_detector(path).model.backbone
    assert {"mean": backbone.mean, "std": backbone.std} == IMAGENET
    resumed = saved_config(path)["model"]["backbone"]
    assert {"mean": tuple(resumed["mean"]), "std": tuple(resumed["std"])} == IMAGENET


def test_the_original_repositorys_checkpoints_are_of_imagenet():
    converted = from_original({"model": as_original(model_of("base"), "base"), "args": Namespace()}, "file.pth")
    section = converted.config.backbone
    assert {"mean": tuple(section.mean), "std": tuple(section.std)} == IMAGENET


def test_a_transformers_folder_says_them_and_the_image_size(tmp_path):
    reference_model("base", "small").save_pretrained(tmp_path)
    loaded = load_detector(str(tmp_path))
    assert {"mean": loaded.model.backbone.mean, "std": loaded.model.backbone.std} == IMAGENET and loaded.data == {}
    size = {"shortest_edge": 640, "longest_edge": 900}
    DeformableDetrImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path)
    loaded = load_detector(str(tmp_path))
    assert (loaded.model.backbone.mean, loaded.model.backbone.std) == ((0.5,) * 3, (0.25,) * 3)
    assert loaded.data == saved_config(tmp_path)["data"] == {"eval_size": 640, "max_size": 900}


@pytest.mark.parametrize(
    ("preprocessor", "message"),
    [
        ({"do_rescale": False}, "does not scale pixels by 1/255"),
        ({"rescale_factor": 1 / 127.5}, "does not scale pixels by 1/255"),
        ({"image_std": [0.5, 0.0, 0.5]}, "each must be three numbers, std above 0"),
        ({"image_mean": [0.5]}, "each must be three numbers"),
    ],
)
def test_what_we_do_not_do_to_pixels_is_refused(preprocessor, message):
    with pytest.raises(UserError, match=message):
        from_transformers({}, {"backbone": "resnet18", "use_timm_backbone": True}, preprocessor, "folder")


def test_numbers_must_be_three():
    with pytest.raises(UserError, match=r"model\.backbone\.mean lists 1 numbers; it must be 3"):
        check_model(small_config(backbone=BackboneConfig(mean=[0.5])))
