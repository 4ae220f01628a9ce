"""Memory fusion (arXiv 2304.04742) against a loop over tokens."""

import math

import pytest
import torch

from models.limits import check_model
from models.memory_fusion import MemoryFusion
from tests.models.decoding import decode, decoding_model
from tests.models.helpers import small_model
from util.config import ModelConfig
from util.errors import UserError


@torch.no_grad()
def test_the_memory_is_made_of_the_input_and_of_every_layer():
    model, stages = decoding_model(memory_fusion=True, encoder_layers=3), []
    encoder = model.transformer.encoder
    encoder[0].register_forward_pre_hook(lambda _, args: stages.append(args[0]))
    for layer in encoder:
        layer.register_forward_hook(lambda _, __, out: stages.append(out))
    memory = decode(model).memory.tokens
    assert len(stages) == 4
    fusion = model.transformer.memory_fusion
    assert fusion.linear.weight.shape == (32, 4 * 32)
    for image in range(2):
        for token in (0, 7, memory.shape[1] - 1):
            mixed = fusion.linear.bias.clone()
            for i, stage in enumerate(stages):
                mixed += fusion.linear.weight[:, 32 * i : 32 * (i + 1)] @ stage[image, token]
            centred = mixed - mixed.sum() / 32
            normed = centred / math.sqrt(float(centred.square().sum()) / 32 + 1e-5)
            expected = normed * fusion.norm.weight + fusion.norm.bias
            torch.testing.assert_close(memory[image, token], expected, rtol=1e-10, atol=1e-12)


def test_initial_values():
    torch.manual_seed(0)
    fusion = MemoryFusion(64, 6)
    bound = math.sqrt(6 / (7 * 64 + 64))
    assert 0.98 * bound < float(fusion.linear.weight.detach().abs().max()) <= bound
    assert not fusion.linear.bias.any()


def test_it_is_part_of_the_encoder():
    model = small_model(memory_fusion=True)
    assert {n for n in model.state_dict() if "fusion" in n} == {
        f"transformer.memory_fusion.{n}" for n in ("linear.weight", "linear.bias", "norm.weight", "norm.bias")
    }
    model.freeze(["encoder"])
    assert not any(p.requires_grad for p in model.transformer.memory_fusion.parameters())


def test_without_layers_it_is_refused():
    with pytest.raises(UserError, match=r"model\.memory_fusion needs encoder layers .* take 1 or more"):
        check_model(ModelConfig(memory_fusion=True, encoder_layers=0))
