"""Every parameter starts as the published detectors' did: which distribution, and what starts alike."""

import math
import re

import pytest
import torch
from torch import Tensor

from models.from_config import build_model
from tests.models.helpers import small_config

# The recipe: parameters, and the bound up to which they are drawn; 0 is all zero, and "normal" has none.
XAVIER, DEFAULT = "xavier", "default"
STARTS = [
    (r"neck\.levels\.\d\.0\.weight", XAVIER),
    (r"neck\.levels\.\d\.0\.bias", 0),
    (r"position\.level_embed", "normal"),
    (r"queries\.(position|content)", "normal"),
    (r"queries\.(reference_points|memory_proj|query_proj)\.weight", XAVIER),
    (r"queries\.reference_points\.bias", 0),
    (r"queries\.(memory_proj|query_proj)\.bias", DEFAULT),
    (r"transformer\..*\.ffn\.linear[12]\.weight", XAVIER),
    (r"transformer\..*\.ffn\.linear[12]\.bias", DEFAULT),
    (r"transformer\..*\.(value_proj|output_proj|out_proj)\.weight", XAVIER),
    (r"transformer\..*\.in_proj_weight", XAVIER),  # of the three projections as one matrix
    (r"transformer\..*\.(value_proj|output_proj|out_proj)\.bias", 0),
    (r"transformer\..*\.in_proj_bias", 0),
    (r"transformer\..*\.attention_weights\.(weight|bias)", 0),
    (r"transformer\..*\.sampling_offsets\.weight", 0),
    (r".*(heads\.\d|head)\.classify\.weight", DEFAULT),
    (r".*(heads\.\d|head)\.regress\.layers\.[01]\.(weight|bias)", DEFAULT),
    (r".*(heads\.\d|head)\.regress\.layers\.2\.weight", 0),
]
# By hand in tests/models/test_from_config.py and tests/ops/test_module.py, or ones and zeros.
ELSEWHERE = r"backbone\.|.*norm|neck\.levels\.\d\.1\.|.*sampling_offsets\.bias|.*classify\.bias|.*layers\.2\.bias"


def bound_of(kind: str | int, name: str, parameters: dict[str, Tensor]) -> float:
    matrix = parameters[re.sub(r"bias$", "weight", name)]
    fan_out, fan_in = len(matrix), matrix[0].numel()
    window = matrix[0, 0].numel()
    if kind == XAVIER:
        return math.sqrt(6 / (fan_in + fan_out * window))
    return 1 / math.sqrt(fan_in) if kind == DEFAULT else 0.0


@pytest.mark.parametrize("two_stage", [False, True])
def test_every_parameter_is_drawn_from_its_distribution(two_stage):
    torch.manual_seed(0)
    model = build_model(small_config(d_model=64, num_levels=4, refinement=True, two_stage=two_stage), 7)
    parameters = {k: v.detach() for k, v in model.named_parameters()}
    for name, values in parameters.items():
        if re.match(ELSEWHERE, name):
            continue
        (kind,) = [kind for pattern, kind in STARTS if re.fullmatch(pattern, name)]
        if kind == "normal":
            assert abs(float(values.std()) - 1) < 0.15 and float(values.abs().max()) > 2, name
            continue
        bound, largest = bound_of(kind, name, parameters), float(values.abs().max())
        assert largest <= bound * (1 + 1e-6), name
        assert largest >= bound * (0.98 if values.numel() > 1000 else 0.6), name


def same(a: torch.nn.Module, b: torch.nn.Module) -> set[str]:
    """The parameters of two modules that have equal values."""
    other = dict(b.named_parameters())
    return {name for name, values in a.named_parameters() if torch.equal(values, other[name])}


def test_heads_start_as_copies_of_one():
    model = build_model(small_config(refinement=True, decoder_layers=3), 7)
    first, *others = model.heads
    assert first.regress.last.bias.tolist() == [0, 0, -2, -2]
    assert len(others) == 2
    for head in others:
        assert same(first, head) == {n for n, _ in first.named_parameters()} - {"regress.layers.2.bias"}
        assert not head.regress.last.bias.any()
    two_stage = build_model(small_config(refinement=True, two_stage=True), 7)
    first = two_stage.heads[0]
    for head in [*two_stage.heads, two_stage.queries.head]:
        assert same(first, head) == {n for n, _ in first.named_parameters()}
        assert not head.regress.last.bias.any()
    heads = [*two_stage.heads, two_stage.queries.head]
    assert len({p.data_ptr() for h in heads for p in h.parameters()}) == len(heads) * len(list(first.parameters()))


def test_layers_start_with_the_same_biases_and_with_matrices_of_their_own():
    transformer = build_model(small_config(encoder_layers=3, decoder_layers=3), 7).transformer
    for layers in (transformer.encoder, transformer.decoder):
        first, *others = layers
        assert first.ffn.linear1.bias.any() and first.ffn.linear2.bias.any()
        for layer in others:
            alike = same(first, layer)
            assert {name for name, _ in first.named_parameters() if name.endswith("bias")} <= alike
            matrices = {n for n, p in first.named_parameters() if p.dim() > 1 and p.any()}
            assert matrices and not matrices & alike
