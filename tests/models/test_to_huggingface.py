"""A folder for transformers is the same detector there, and comes back to the bit."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForObjectDetection

from models.backbone import Backbone
from models.convert.huggingface_limits import ONLY, check_backbone, check_sayable
from models.convert.to_huggingface import to_transformers
from models.from_config import build_model
from models.load import load_detector
from tests.models.helpers import padded_batch, scramble
from util.config import BackboneConfig, ModelConfig
from util.errors import UserError

PLAIN = BackboneConfig(name="test_resnet", weights="none")
VARIANTS = {
    "base": {"decoder_points": 3},
    "dilated": {"num_levels": 1, "backbone": BackboneConfig(name="resnet10t", weights="none", output_stride=16)},
    "two_levels": {"num_levels": 2, "encoder_points": [2, 2], "encoder_heads": 2},
    "refinement": {"refinement": True, "look_forward": 2, "query_groups": 2},
    "two_stage": {"refinement": True, "two_stage": True},
    "without_encoder": {"encoder_layers": 0},
}


def model_config(**options) -> ModelConfig:
    small = {"d_model": 32, "num_queries": 9, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 3, "ffn_dim": 48}
    return ModelConfig(**{"backbone": PLAIN, **small, **options})


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_transformers_computes_the_same_and_the_weights_come_back(variant, tmp_path):
    config = model_config(**VARIANTS[variant])
    torch.manual_seed(0)
    ours = build_model(config, 5).eval()
    scramble(ours)
    folder = to_transformers(ours, config, {1: "cat", 4: "dog"}, 480, 640)
    save_file(folder.tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config", folder.config), ("preprocessor_config", folder.preprocessor)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))

    theirs, report = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report  # no key is missing, left over or of another shape
    assert theirs.config.id2label == {0: "N/A", 1: "cat", 2: "N/A", 3: "N/A", 4: "dog"}
    for sizes in ([(97, 131), (128, 90)], [(120, 64)]):
        images, padding_mask = padded_batch(sizes)
        found, expected = theirs(images, (~padding_mask).long()), ours(images, padding_mask)
        torch.testing.assert_close(found.logits, expected.logits[-1], atol=1e-4, rtol=0)
        torch.testing.assert_close(found.pred_boxes, expected.boxes[-1], atol=1e-4, rtol=0)

    back = load_detector(str(tmp_path))
    own, read = ours.state_dict(), back.model.state_dict()
    own, read = ({k: v for k, v in s.items() if not k.endswith("num_batches_tracked")} for s in (own, read))
    left_out = {k for k in own if k.startswith("training_queries.")}
    assert bool(left_out) == (config.query_groups > 1) and own.keys() - left_out == read.keys()
    assert all(torch.equal(own[k], read[k]) for k in read)
    assert (back.names[1], back.names[4], back.data) == ("cat", "dog", {"eval_size": 480, "max_size": 640})


def test_classes_without_names_are_named_by_their_labels():
    config = model_config()
    folder = to_transformers(build_model(config, 2), config, {}, 480, 640)
    assert folder.config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}


OTHERS = {
    "encoder": "hybrid",
    "cross_level": False,
    "norm_groups": 8,
    "ignore_padding": True,
    "query_selection": "mixed",
    "proposal_head": "class",
    "proposal_nms": 0.7,
    "position_temperature": 20.0,
    "position_offset": 0.0,
    "box_epsilon": 1e-3,
    "distribution_boxes": True,
    "memory_fusion": True,
    "relation": True,
    "decoder_query_position": "sine",
    "decoder_norm": True,
    "reference": "box",
}


@pytest.mark.parametrize(
    "options",
    [
        *({option: OTHERS[option]} for option in ONLY),
        {"backbone": BackboneConfig(dcn="v2")},
        {"num_points": [4, 4, 4, 2]},
        {"encoder_points": [1, 2, 3, 4]},
        {"decoder_points": [1, 2, 3, 4]},
        {"self_attention_heads": 4},
        {"two_stage": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_the_architecture_cannot_say_is_refused_by_name(options):
    (option,) = options
    with pytest.raises(
        UserError, match=rf"^model\.{option}\S* .* cannot be exported to transformers: its architecture"
    ):
        check_sayable(ModelConfig(**options))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("test_efficientnet", {}, "drops the activations that its batch norms have inside"),
        ("test_vit", {}, "makes no pyramid"),
        ("test_vit", {"num_features": 1}, "builds it for one image size alone"),
        ("hgnetv2_b0", {"norm": "trainable"}, None),
    ],
)
def test_backbones_that_transformers_runs_otherwise_are_refused(name, options, reason):
    backbone = Backbone(name, pretrained=False, **options)
    if reason is None:
        check_backbone(backbone)
        next(m for m in backbone.modules() if hasattr(m, "running_var")).eps = 1e-3
        reason = "epsilon 1e-05 in the place of 0.001"
    with pytest.raises(
        UserError, match=rf"^model\.backbone\.name {name} cannot be exported to transformers, which .*{reason}"
    ):
        check_backbone(backbone)
