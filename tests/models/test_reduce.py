"""Less at inference, and attention within levels."""

import pytest
import torch

from models.layers import EncoderLayer
from models.reduce import reduce_model
from models.transformer import encoder_reference_points
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.errors import UserError

INPUT = padded_batch([(70, 90), (64, 80)])


@pytest.mark.parametrize("refinement", [False, True])
def test_fewer_decoder_layers_answer_what_that_layer_answered(refinement):
    model = small_model(decoder_layers=3, refinement=refinement).eval()
    scramble(model)
    with torch.no_grad():
        whole = model(*INPUT)
        for layers in (1, 2, 3):
            less = reduce_model(model, decoder_layers=layers)(*INPUT)
            assert len(less.logits) == layers
            assert torch.equal(less.logits[-1], whole.logits[layers - 1])
            assert torch.equal(less.boxes[-1], whole.boxes[layers - 1])
        assert torch.equal(model(*INPUT).logits, whole.logits)  # which stays as it is


def test_fewer_points_in_one_of_the_two_or_in_both():
    model = small_model(num_points=[4, 2, 1]).eval()
    scramble(model)

    def kept(part):
        return [m.kept_points for m in part.modules() if hasattr(m, "kept_points")]

    less = reduce_model(model, num_points=2)
    assert kept(less.transformer.encoder) == [[2, 2, 1]] and kept(less.transformer.decoder) == [[2, 2, 1]] * 2
    less = reduce_model(model, encoder_points=[3, 0, 1], decoder_points=1)
    assert kept(less.transformer.encoder) == [[3, 0, 1]] and kept(less.transformer.decoder) == [[1, 1, 1]] * 2
    less = reduce_model(model, encoder_points=3, num_points=4)
    assert kept(less.transformer.encoder) == [[3, 2, 1]] and kept(less.transformer.decoder) == [[4, 2, 1]] * 2
    with torch.no_grad():
        same, fewer = (reduce_model(model, num_points=k)(*INPUT).logits for k in (4, 1))
        whole = model(*INPUT).logits
    assert torch.allclose(same, whole, atol=1e-5) and not torch.allclose(fewer, whole, atol=1e-3)


def test_fewer_proposals_are_the_best_of_them():
    model = small_model(two_stage=True, refinement=True).eval()
    scramble(model)
    with torch.no_grad():
        objects = random_objects([1, 0])
        whole, less = model(*INPUT, objects), reduce_model(model, num_queries=5)(*INPUT, objects)
    assert less.logits.shape[2] == 5 and whole.logits.shape[2] == 12
    assert torch.equal(less.groups[1].logits, whole.groups[1].logits)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"num_points": 5}, "model.num_points is 5; the checkpoint was trained with 4"),
        ({"num_points": 0}, "trained"),
        ({"decoder_points": [1, 1]}, r"model.decoder_points is \[1, 1\]"),
        ({"encoder_points": [5, 1, 1]}, r"model.encoder_points is \[5, 1, 1\]"),
        ({"decoder_layers": 3}, "the checkpoint has 2"),
        ({"num_queries": 3}, "learned queries"),
    ],
)
def test_what_cannot_be(options, said):
    with pytest.raises(UserError, match=said):
        reduce_model(small_model(num_points=4), **options)


def test_within_levels_each_level_is_as_if_it_were_alone():
    """The paper's ablation without multi-scale attention: two levels at once, and each by itself."""
    torch.manual_seed(0)
    layer = EncoderLayer(16, 2, 4, 3, 32, 0.0, cross_level=False).eval()
    torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.3)
    torch.nn.init.normal_(layer.self_attn.attention_weights.weight)
    shapes = [(5, 6), (3, 2)]
    ratios = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.8, 0.6], [0.7, 0.5]]])
    tokens, position = torch.randn(2, 36, 16), torch.randn(2, 36, 16)
    mask = torch.rand(2, 36) < 0.2
    reference = encoder_reference_points(shapes, ratios)
    together = layer(tokens, position, reference, shapes, mask)
    alone = EncoderLayer(16, 1, 4, 3, 32, 0.0).eval()
    alone.load_state_dict(layer.state_dict())
    for i, part in enumerate((slice(0, 30), slice(30, 36))):
        points = encoder_reference_points([shapes[i]], ratios[:, i : i + 1])
        expected = alone(tokens[:, part], position[:, part], points, [shapes[i]], mask[:, part])
        assert torch.allclose(together[:, part], expected, atol=1e-6)


def test_a_detector_without_cross_level_attention_is_smaller_and_trains():
    model, whole = small_model(cross_level=False), small_model()
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())
    out = model(*INPUT)
    (out.logits.sum() + out.boxes.sum()).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad and "regress" not in n)
    with pytest.raises(UserError, match=r"K must be one number, not \[1, 2, 3\]; give model.encoder_points"):
        small_model(cross_level=False, num_points=[1, 2, 3])
    small_model(cross_level=False, num_points=[1, 2, 3], encoder_points=2)
