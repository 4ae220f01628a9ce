"""The same weights give the same logits and boxes in transformers' implementation, through our importer."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

from models.load import load_detector
from tests.models.helpers import padded_batch, scramble
from util.objects import Objects

VARIANTS = {
    "single_scale": {"num_feature_levels": 1},
    "base": {},
    "refinement": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 40},
}
WIDTHS = {
    "r50": {"backbone": "resnet50"},
    "small": {
        "backbone": "resnet18",
        "d_model": 64,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_n_points": 2,
        "decoder_n_points": 3,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "num_labels": 7,
    },
}


def reference_model(variant: str, width: str) -> DeformableDetrForObjectDetection:
    settings = {
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "num_queries": 40,
        "num_labels": 91,
        **VARIANTS[variant],
        **WIDTHS[width],
    }
    torch.manual_seed(0)
    model = DeformableDetrForObjectDetection(DeformableDetrConfig(**settings)).eval()
    scramble(model)
    return model


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_same_logits_and_boxes(variant, width, tmp_path):
    theirs = reference_model(variant, width)
    theirs.save_pretrained(tmp_path)
    ours = load_detector(str(tmp_path)).model
    for sizes in ([(97, 131), (128, 90), (60, 70)], [(64, 64)]):
        images, padding_mask = padded_batch(sizes)
        expected = theirs(pixel_values=images, pixel_mask=(~padding_mask).long())
        nothing = [Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), i) for i in range(len(images))]
        found = ours(images, padding_mask, nothing)  # which asks for the groups of training, too
        torch.testing.assert_close(found.logits[-1], expected.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, atol=1e-4, rtol=0)
        if variant == "two_stage":
            proposals = found.groups[1]
            torch.testing.assert_close(proposals.logits[0], expected.enc_outputs_class, atol=1e-4, rtol=0)
            boxes = expected.enc_outputs_coord_logits.sigmoid()
            torch.testing.assert_close(proposals.boxes[0], boxes, atol=1e-4, rtol=0)


def test_keys_of_version_5_in_memory(tmp_path):
    """Version 5 renames keys in memory and back on saving: a file with its new names must load too."""
    theirs = reference_model("refinement", "small")
    theirs.config.save_pretrained(tmp_path)
    new = {k: v.clone() for k, v in theirs.state_dict().items()}
    assert any(".mlp.fc1." in k for k in new) and any(".o_proj." in k for k in new)
    save_file(new, tmp_path / "model.safetensors")
    images, padding_mask = padded_batch([(70, 64)])
    with torch.no_grad():
        expected = theirs(pixel_values=images, pixel_mask=(~padding_mask).long())
        found = load_detector(str(tmp_path)).model(images, padding_mask)
    torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, atol=1e-4, rtol=0)


def test_pytorch_model_bin(tmp_path):
    theirs = reference_model("base", "small")
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    images, padding_mask = padded_batch([(70, 64)])
    with torch.no_grad():
        expected = theirs(pixel_values=images, pixel_mask=(~padding_mask).long())
        found = load_detector(str(tmp_path)).model(images, padding_mask)
    torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, atol=1e-4, rtol=0)
