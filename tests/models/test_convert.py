"""The original repository's layout, all five variants, written by an inverse of our naming and read back."""

import argparse
from dataclasses import asdict

import pytest
import torch

from models.backbone_weights import load_backbone_weights
from models.from_config import build_model
from models.load import load_detector
from tests.models.helpers import padded_batch, scramble, small_config, small_model
from util.checkpoint import read_checkpoint
from util.checkpoint_write import FORMAT
from util.config import BackboneConfig, ModelConfig
from util.errors import UserError

VARIANTS = {
    "single_scale": {"num_levels": 1},
    "dc5": {"num_levels": 1, "backbone": BackboneConfig(name="resnet50", weights="none", output_stride=16)},
    "base": {},
    "refinement": {"refinement": True},
    "two_stage": {"refinement": True, "two_stage": True},
}


def model_of(variant: str):
    torch.manual_seed(0)
    settings = {
        "backbone": BackboneConfig(name="resnet50", weights="none"),
        "d_model": 64,
        "ffn_dim": 48,
        "num_queries": 9,
        "encoder_layers": 2,
        "decoder_layers": 3,
        **VARIANTS[variant],
    }
    model = build_model(ModelConfig(**settings), 91).eval()
    scramble(model)
    return model


def as_original(model, variant: str) -> dict:
    """What the original code would have saved: its names, shared heads repeated, aliases under the decoder."""
    state, saved = model.state_dict(), {}
    refined, two_stage = VARIANTS[variant].get("refinement", False), VARIANTS[variant].get("two_stage", False)
    layers = len(model.transformer.decoder)
    for key, tensor in state.items():
        for ours, theirs in (
            ("backbone.body.", "backbone.0.body."),
            ("neck.levels.", "input_proj."),
            ("position.level_embed", "transformer.level_embed"),
            ("queries.reference_points.", "transformer.reference_points."),
            ("queries.memory_proj.", "transformer.enc_output."),
            ("queries.memory_norm.", "transformer.enc_output_norm."),
            ("queries.query_proj.", "transformer.pos_trans."),
            ("queries.query_norm.", "transformer.pos_trans_norm."),
        ):
            if key.startswith(ours):
                saved[theirs + key.removeprefix(ours)] = tensor
        if key.startswith("transformer."):
            part, rest = key.removeprefix("transformer.").split(".", 1)
            saved[f"transformer.{part}.layers.{rest.replace('ffn.', '')}"] = tensor
        if key.startswith("heads."):
            number, part, rest = key.removeprefix("heads.").split(".", 2)
            copies = [int(number)] if refined else range(layers)
        elif two_stage and key.startswith("queries.head."):
            (part, rest), copies = key.removeprefix("queries.head.").split(".", 1), [layers]
        else:
            continue
        name = {"classify": "class_embed", "regress": "bbox_embed"}[part]
        for i in copies:
            saved[f"{name}.{i}.{rest}"] = tensor
            if (refined and name == "bbox_embed") or two_stage:
                saved[f"transformer.decoder.{name}.{i}.{rest}"] = tensor
    if not two_stage:
        saved["query_embed.weight"] = torch.cat([state["queries.position"], state["queries.content"]], 1)
    return saved


def arguments_of(variant: str) -> argparse.Namespace:
    return argparse.Namespace(
        backbone="resnet50",
        dilation=variant == "dc5",
        with_box_refine="refinement" in VARIANTS[variant],
        two_stage="two_stage" in VARIANTS[variant],
        nheads=8,
        dropout=0.1,
        num_queries=9,
        lr_backbone_names=["backbone.0"],
    )


# The layout of the file is torch's, whatever is in it.
@pytest.mark.parametrize(("variant", "legacy"), [*((name, False) for name in VARIANTS), ("two_stage", True)])
@torch.no_grad()
def test_original_layout_gives_the_same_predictions(variant, legacy, tmp_path):
    model = model_of(variant)
    content = {"model": as_original(model, variant), "args": arguments_of(variant), "epoch": 49}
    content["model"]["transformer.encoder.layers.0.total_params"] = torch.zeros(1)
    content["model"]["backbone.0.body.total_ops"] = torch.zeros(1)
    torch.save(content, tmp_path / "r50.pth", _use_new_zipfile_serialization=not legacy)
    converted = load_detector(str(tmp_path / "r50.pth"))
    assert converted.config.backbone.name == "resnet50.tv_in1k"  # torchvision's, from which the original starts
    loaded = converted.model
    images, mask = padded_batch([(97, 131), (128, 90)])
    expected, found = model(images, mask), loaded(images, mask)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.boxes, expected.boxes)


@pytest.mark.parametrize("variant", ["base", "refinement", "two_stage"])
def test_without_args_the_tensors_tell(variant, tmp_path):
    model = model_of(variant)
    torch.save({"model": as_original(model, variant)}, tmp_path / "bare.pth")
    loaded = load_detector(str(tmp_path / "bare.pth")).model
    assert {k: v.shape for k, v in loaded.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", None])
def test_wrapped_and_bare_state_dicts_are_read(prefix, wrapper, tmp_path):
    saved = {"transformer.level_embed": torch.ones(2), "bbox_embed.0.layers.0.bias": torch.zeros(1)}
    state = {prefix + key: tensor for key, tensor in saved.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "a.pth")
    raw = read_checkpoint(tmp_path / "a.pth")
    found = raw.content["model"]
    assert raw.format == "original" and found.keys() == saved.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in saved.items())


def test_the_keys_of_a_run_and_of_a_backbone_may_have_a_prefix_too(tmp_path):
    model = small_model(2)
    wrapped = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    config = {"model": asdict(small_config()), "data": {}}
    classes = [{"label": i, "id": i, "name": str(i)} for i in range(2)]
    content = {"format": FORMAT, "model": wrapped, "ema": wrapped, "config": config, "categories": classes, "epoch": 1}
    torch.save(content, tmp_path / "run.pth")
    for weights in ("model", "ema"):
        found = load_detector(str(tmp_path / "run.pth"), weights).model.state_dict()
        assert all(torch.equal(tensor, found[key]) for key, tensor in model.state_dict().items())
    body = {f"module.{key}": tensor + 1 for key, tensor in model.backbone.body.state_dict().items()}
    torch.save({"state_dict": body, "arch": "resnet10t"}, tmp_path / "body.pth")
    load_backbone_weights(model.backbone.body, str(tmp_path / "body.pth"))
    assert torch.equal(model.backbone.body.conv1[0].weight, body["module.conv1.0.weight"])


def test_an_unknown_key_is_named(tmp_path):
    saved = as_original(model_of("base"), "base")
    saved["transformer.mystery"] = torch.zeros(1)
    torch.save({"model": saved}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"odd\.pth.*transformer\.mystery"):
        load_detector(str(tmp_path / "odd.pth"))


def test_a_missing_tensor_is_named(tmp_path):
    saved = as_original(model_of("base"), "base")
    del saved["transformer.decoder.layers.1.norm3.weight"]
    torch.save({"model": saved}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"1 missing.*transformer\.decoder\.1\.norm3\.weight"):
        load_detector(str(tmp_path / "odd.pth"))
