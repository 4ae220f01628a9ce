"""Files of other projects: read by us and computed from their own names, they must detect the same."""

import sys
import types
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.categories import foreign_categories
from models.convert import from_foreign
from models.from_config import build_model
from models.limits import check_model
from models.load import load_detector
from tests.models.helpers import padded_batch
from tests.models.published import KINDS, TINY, Reference, Size, file_of, written
from util import cli
from util.checkpoint import read_checkpoint
from util.config import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig, Config, ModelConfig
from util.errors import UserError

FAMILIES = list(KINDS)
CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = [(96, 128), (128, 90)]
# What the tensors of a tiny file cannot tell, but those of a published one can.
ARGS = {
    "hdetr": {"num_queries_one2one": 9, "num_queries_one2many": 4, "mixed_selection": True, "look_forward_twice": True},
    "hdetr_one_stage": {"num_queries_one2one": 9, "num_queries_one2many": 4, "with_box_refine": True},
}


def saved(family: str, size: Size = TINY) -> dict:
    content = {"model": written(family, size)}
    if family in ARGS:
        content["args"] = Namespace(**ARGS[family])
    if family.startswith("mmdet"):
        content = {
            "state_dict": content["model"],
            "meta": {"CLASSES": tuple(f"class {i}" for i in range(size.classes))},
        }
    return content


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_file_detects_as_its_own_names_compute(family, tmp_path, monkeypatch):
    if family == "detrex_hdetr":
        monkeypatch.setattr("models.convert.hdetr.ONE_TO_MANY", TINY.further)
    torch.save(saved(family), tmp_path / "file.pth")
    model = load_detector(str(tmp_path / "file.pth")).model.double()
    model.queries.num_queries = TINY.queries  # no tensor tells them where proposals make all of the queries
    images, mask = padded_batch(SIZES)
    images = images.double()
    found = model(images, mask)
    layers = list(Reference(written(family, TINY), KINDS[family], TINY)(images, mask))
    assert len(layers) == len(found.groups[0].logits) == TINY.layers
    for layer, (logits, boxes) in enumerate(layers):
        torch.testing.assert_close(found.groups[0].logits[layer], logits, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.groups[0].boxes[layer], boxes, rtol=0, atol=1e-9)


PUBLISHED = {  # family: sizes that differ from `Size`, and the options of the model that come out
    "hdetr": (
        {"queries": 300, "classes": 91},
        {
            "query_selection": "mixed_wide",
            "look_forward": 2,
            "hybrid_queries": 1500,
            "refinement": True,
            "two_stage": True,
        },
    ),
    "dino": (
        {"classes": 91},
        {
            "query_selection": "mixed",
            "proposal_head": "class",
            "look_forward": 2,
            "decoder_query_position": "sine",
            "decoder_norm": True,
            "denoising_queries": 100,
            "position_temperature": 20.0,
            "position_offset": 0.0,
            "box_epsilon": 1e-3,
            "refinement": True,
            "two_stage": True,
        },
    ),
    "relation": (
        {"classes": 91},
        {
            "query_selection": "mixed",
            "proposal_head": "class",
            "look_forward": 2,
            "decoder_query_position": "sine",
            "decoder_norm": True,
            "denoising_queries": 100,
            "hybrid_queries": 1500,
            "relation": True,
            "memory_fusion": True,
            "fusion_layers": 2,
            "query_scale": True,
            "box_epsilon": 1e-3,
            "refinement": True,
            "two_stage": True,
        },
    ),
    "detrex": ({"queries": 300}, {"box_epsilon": 1e-3}),
    "detrex_two_stage": ({"queries": 300}, {"box_epsilon": 1e-3, "refinement": True, "two_stage": True}),
    "detrex_hdetr": (
        {"queries": 300},
        {
            "query_selection": "mixed_wide",
            "look_forward": 2,
            "hybrid_queries": 1500,
            "box_epsilon": 1e-3,
            "refinement": True,
            "two_stage": True,
        },
    ),
    "detrex_dino": (
        {},
        {
            "query_selection": "mixed",
            "proposal_head": "class",
            "look_forward": 2,
            "decoder_query_position": "sine",
            "decoder_norm": True,
            "denoising_queries": 100,
            "box_epsilon": 1e-3,
            "refinement": True,
            "two_stage": True,
        },
    ),
    "mmdet2": ({"queries": 300, "ffn": 1024}, {}),
    "mmdet2_two_stage": ({"queries": 300, "ffn": 1024}, {"refinement": True, "two_stage": True}),
    "mmdet3": ({"queries": 300, "ffn": 1024}, {}),
    "mmdet3_refinement": ({"queries": 300, "ffn": 1024}, {"refinement": True}),
    "mmdet3_two_stage": ({"queries": 300, "ffn": 1024}, {"refinement": True, "two_stage": True}),
    "mmdet_dino": (
        {},
        {
            "query_selection": "mixed",
            "proposal_head": "class",
            "look_forward": 2,
            "decoder_query_position": "sine",
            "decoder_norm": True,
            "denoising_queries": 100,
            "position_temperature": 20.0,
            "position_offset": 0.0,
            "box_epsilon": 1e-3,
            "refinement": True,
            "two_stage": True,
        },
    ),
}


def blank(family: str, size: Size) -> dict:
    """A file of the published size without its numbers, but heads of layers differ where they are not shared."""
    kind, tensors = KINDS[family], {}
    for name, shape in file_of(family, size).items():
        tensors[name] = torch.zeros(()).expand(shape)
        if not kind.shared and name == f"{kind.regress.format(1)}.{kind.numbers[0]}.weight":
            tensors[name] = torch.ones(()).expand(shape)
    return {"model": tensors}


@pytest.mark.parametrize("family", list(PUBLISHED))
def test_a_published_file_fills_the_whole_model(family):
    """ResNet-50, six layers of each kind, without arguments: options and every tensor's shape."""
    sizes, options = PUBLISHED[family]
    size = Size(**sizes)
    converted = from_foreign(blank(family, size), "file")
    dropout = {"mmdet2": 0.1, "mmdet3": 0.1, "hdetr": 0.1}.get(
        family.removesuffix("_two_stage").removesuffix("_refinement"), 0.0
    )
    backbone = BackboneConfig("resnet50.tv_in1k", "none", mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))
    expected = {"num_queries": size.queries, "ffn_dim": size.ffn, "dropout": dropout, **options}
    if family == "mmdet_dino":
        expected["dropout"] = 0.0
    assert converted.config == ModelConfig(backbone=backbone, **expected)
    assert converted.num_classes == size.classes
    assert converted.contiguous == (size.classes == 80)
    model = build_model(converted.config, converted.num_classes)
    shapes = {k: v.shape for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert {k: v.shape for k, v in converted.state.items()} == shapes


@pytest.mark.parametrize(("family", "preset"), [("hdetr", "hybrid"), ("dino", "denoising"), ("relation", "relation")])
def test_a_published_file_is_of_its_preset(family, preset):
    sizes, _ = PUBLISHED[family]
    converted = from_foreign(blank(family, Size(**sizes)), "file").config
    config = cli.parse(Config, ["--config", str(CONFIGS / f"{preset}.yaml")], "test").model
    assert replace(converted, backbone=config.backbone, dropout=0.0) == config  # H-DETR's args tell the dropout


@pytest.mark.parametrize(
    ("family", "theirs", "ours", "rows"),
    [
        ("hdetr", "query_embed.weight", "training_queries.hybrid.content", slice(9, 13)),
        ("relation", "transformer.hybrid_tgt_embed.weight", "training_queries.hybrid.content", slice(None)),
        (
            "relation",
            "denoising_generator.label_encoder.weight",
            "training_queries.denoising.label_embed.weight",
            slice(None),
        ),
        ("dino", "label_enc.weight", "training_queries.denoising.label_embed.weight", slice(0, 11)),
        ("detrex_dino", "label_enc.weight", "training_queries.denoising.label_embed.weight", slice(None)),
    ],
)
def test_what_only_training_needs_is_kept(family, theirs, ours, rows):
    content = saved(family)
    assert torch.equal(from_foreign(content, "file").state[ours], content["model"][theirs][rows])


def test_hybrid_queries_of_one_stage_are_split():
    content = saved("hdetr_one_stage")
    state, rows = from_foreign(content, "file").state, content["model"]["query_embed.weight"]
    assert torch.equal(state["training_queries.hybrid.source.position"], rows[9:, :32])
    assert torch.equal(state["training_queries.hybrid.source.content"], rows[9:, 32:])
    points = content["model"]["transformer.reference_points.weight"]
    assert torch.equal(state["training_queries.hybrid.source.reference_points.weight"], points)


def changed(family: str, add: dict | None = None, **more) -> dict:
    content = saved(family)
    content = {"model": content.pop("state_dict", content.get("model")), **content, **more}
    content["model"] |= {key: torch.zeros(1) for key in add or {}}
    return content


def deeper() -> dict:
    """A DINO of five levels, of which four are the backbone's."""
    content = changed("dino")
    content["model"]["input_proj.3.0.weight"] = torch.zeros(32, 512, 1, 1)
    return content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda: changed("dino", {"transformer.two_stage_wh_embedding.weight"}), "two_stage_learn_wh"),
        (lambda: changed("dino", {"transformer.refpoint_embed.weight"}), "only two-stage DINO"),
        (lambda: changed("dino", {"transformer.pat_embed_for_2stage"}), "patterns of queries"),
        (lambda: changed("dino", args=Namespace(decoder_sa_type="ca_label")), "decoder_sa_type 'ca_label'; only 'sa'"),
        (lambda: changed("dino", args={"pe_temperatureH": 20, "pe_temperatureW": 10}), "pe_temperatureW 10; only 20"),
        (lambda: changed("dino", {"backbone.0.patch_embed.proj.weight"}), "no plain ResNet .'patch_embed"),
        (
            lambda: changed("detrex_dino", {"backbone.layers.0.blocks.0.attn.qkv.weight"}),
            "no plain ResNet .'layers.0.b",
        ),
        (
            lambda: changed("mmdet3", {"backbone.layer2.0.conv2.conv_offset.weight"}),
            "no plain ResNet .'layer2.0.conv2.c",
        ),
        (deeper, "reads 4 maps of the backbone for 4 levels"),
        (lambda: changed("relation", {"transformer.mystery"}), "no Relation-DETR that is known: .*transformer.mystery"),
        (lambda: changed("mmdet3", {"rpn_head.conv.weight"}), "DINO of mmdetection that is known: .*rpn_head"),
        (lambda: changed("mmdet3", meta={"cfg": "backbone=dict(style='caffe')"}), "Caffe's style"),
        (lambda: changed("mmdet3", meta={"config": "mean=[103.530, 116.280, 123.675]"}), "normalises pixels by mean"),
        (
            lambda: {"model": {"bbox_head.retina_cls.weight": torch.zeros(1)}},
            "no Deformable DETR or DINO: it has no decod",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(content, says):
    with pytest.raises(UserError, match=says):
        from_foreign(content(), "file")


def test_what_is_left_out_is_said(capsys):
    from_foreign(saved("relation"), "some.pth")
    said = capsys.readouterr().err
    assert "'some.pth': left out what the model has no place for: transformer.hybrid_class_head" in said
    assert "transformer.hybrid_bbox_head" in said


def test_a_moving_average_is_taken_if_there_is_one(tmp_path):
    content = saved("dino")
    content["ema_model"] = {f"module.{key}": tensor + 1 for key, tensor in content["model"].items()}
    torch.save(content, tmp_path / "file.pth")
    key = "queries.content"
    first = content["model"]["transformer.tgt_embed.weight"]
    for weights, expected in {"model": first, "ema": first + 1, "auto": first + 1}.items():
        assert torch.equal(load_detector(str(tmp_path / "file.pth"), weights).model.state_dict()[key], expected)


def test_names_of_classes_come_from_the_file():
    tensors = written("mmdet3", TINY)
    for meta in (
        {"CLASSES": ["a", "b"]},
        {"dataset_meta": {"classes": ("a", "b")}},
        {"dataset_meta": {"CLASSES": ["a", "b"]}},
    ):
        assert from_foreign({"model": tensors, "meta": meta}, "file").names == {0: "a", 1: "b"}
    assert from_foreign({"model": tensors}, "file").names == {}
    spelt = torch.tensor([code for name in ("none", "ox", "none", "c") for code in (*map(ord, name), -1)])
    content = {"model": {**written("relation", TINY), "_classes_": spelt}}
    assert from_foreign(content, "file").names == {1: "ox", 3: "c"}


def test_80_classes_that_are_counted_are_those_of_coco():
    categories = foreign_categories(80, {}, contiguous=True)
    assert [(c.label, c.id, c.name) for c in categories[10:13]] == [
        (10, 11, "fire hydrant"),
        (11, 13, "stop sign"),
        (12, 14, "parking meter"),
    ]
    assert foreign_categories(80, {0: "x"}, contiguous=True)[1].name == ""
    assert not foreign_categories(80, {})[1].name


def test_what_mmengine_keeps_of_a_training_is_passed_over(tmp_path, monkeypatch):
    """Its buffers hold NumPy's arrays, and methods by name; nothing of that is made."""

    class HistoryBuffer:
        made = 0

        def __init__(self):
            self.log, self.last, self.methods = np.arange(3.0), np.float64(2), {"min": self.smallest}

        def smallest(self):
            return 0

        def __setstate__(self, state):
            HistoryBuffer.made += 1

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    for name in ("mmengine", "mmengine.logging", HistoryBuffer.__module__):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[HistoryBuffer.__module__].HistoryBuffer = HistoryBuffer
    content = saved("mmdet3") | {"message_hub": {"log_scalars": {"loss": HistoryBuffer()}}}
    torch.save(content, tmp_path / "epoch_12.pth")
    raw = read_checkpoint(tmp_path / "epoch_12.pth")
    assert HistoryBuffer.made == 0 and raw.content["model"].keys() == content["state_dict"].keys()
    assert from_foreign(raw.content, "file").num_classes == TINY.classes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fusion_layers": 2}, "add --model.memory_fusion true"),
        ({"query_scale": True}, "add --model.decoder_query_position sine"),
        (
            {"two_stage": True, "query_selection": "mixed_wide", "decoder_query_position": "sine"},
            "mixed_wide is about a projection",
        ),
    ],
)
def test_options_of_published_detectors_are_refused_where_they_do_nothing(options, says):
    with pytest.raises(UserError, match=says):
        check_model(ModelConfig(**options))
