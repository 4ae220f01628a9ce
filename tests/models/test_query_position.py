"""Positions of queries that each layer encodes anew (arXiv 2201.12329, 2203.03605), in loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.query_position import QueryPosition
from tests.models.decoding import decode, decoding_model
from tests.models.helpers import padded_batch, scramble, small_model

KINDS = {
    "points": {"refinement": False},
    "refined points": {},
    "boxes": {"reference": "box"},
    "kept boxes": {"reference": "box", "refinement": False},
    "proposals": {"two_stage": True},
    "mixed": {"two_stage": True, "query_selection": "mixed", "denoising_queries": 5, "hybrid_queries": 4},
    "tokens": {"two_stage": True, "query_selection": "tokens", "query_groups": 2},
}


def waves_of(numbers: list[float], width: int) -> Tensor:
    """`width` waves for each number: sine and cosine of width / 2 wavelengths."""
    waves = []
    for number in numbers:
        for k in range(width // 2):
            angle = 2 * math.pi * number / 10000 ** (2 * k / width)
            waves += [math.sin(angle), math.cos(angle)]
    return torch.tensor(waves, dtype=torch.float64)


def perceptron(mlp, waves: Tensor) -> Tensor:
    first, second = mlp.layers
    hidden = (first.weight[:, : len(waves)] @ waves + first.bias).clamp(min=0)
    return second.weight @ hidden + second.bias


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ignore_padding", [False, True])
@torch.no_grad()
def test_each_layer_encodes_its_own_reference(kind, ignore_padding):
    """In the padded map of the first level, 6 by 6, of which the second image covers 6 by 4; or in the image itself."""
    options = KINDS[kind] | {"ignore_padding": ignore_padding}
    model = decoding_model(decoder_query_position="sine", **options)
    done, mlp = decode(model), model.transformer.query_position.mlp
    assert done.queries.position is None
    assert ignore_padding or done.memory.valid_ratios[1, 0].tolist() == pytest.approx([4 / 6, 1])
    refined = options.get("refinement", True)
    references = [done.queries.reference, *(done.boxes[:-1] if refined else [done.queries.reference] * 3)]
    for reference, layer in zip(references, done.layers):
        position = layer[1]
        assert position.shape == done.queries.content.shape
        for image, share in ((0, 1.0), (1, 1.0 if ignore_padding else 4 / 6)):
            for q in range(0, reference.shape[1], 3):
                numbers = reference[image, q].tolist()
                numbers[0::2] = [share * number for number in numbers[0::2]]
                expected = perceptron(mlp, waves_of(numbers, 16))
                torch.testing.assert_close(position[image, q], expected, rtol=1e-8, atol=1e-10)
    if refined:
        assert not torch.allclose(done.layers[0][1], done.layers[1][1], rtol=1e-3)


def test_weights_of_dino_fit_with_two_blocks_swapped():
    """Its encoding goes by y, x, w, h."""
    ours, width = QueryPosition(32).double(), 16
    scramble(ours)
    box, ratios = torch.tensor([0.3, 0.6, 0.2, 0.1]).double(), torch.tensor([0.8, 0.5]).double()
    x, y, w, h = (box * torch.cat([ratios, ratios])).tolist()
    theirs = ours.mlp.layers[0].weight.detach().clone()
    theirs[:, :width], theirs[:, width : 2 * width] = theirs[:, width : 2 * width].clone(), theirs[:, :width].clone()
    hidden = F.relu(theirs @ waves_of([y, x, w, h], width) + ours.mlp.layers[0].bias)
    expected = ours.mlp.layers[1](hidden)
    found = ours(box[None, None], torch.cat([ratios, ratios])[None])
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-9, atol=1e-11)


def test_initial_values():
    torch.manual_seed(0)
    for layer in QueryPosition(64).mlp.layers:
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_built_that_would_not_be_used(kind):
    models = (decoding_model(decoder_query_position=p, **KINDS[kind]) for p in ("learned", "sine"))
    learned, sine = (set(model.state_dict()) for model in models)
    own = {f"transformer.query_position.mlp.layers.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")}
    gone = {
        "boxes": {f"queries.position_mlp.layers.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")},
        "mixed": {f"queries.query_{m}.{n}" for m in ("proj", "norm") for n in ("weight", "bias")},
    }
    gone["kept boxes"] = gone["boxes"]
    gone["tokens"] = gone["mixed"] | {f"training_queries.groups.sources.0.{n[8:]}" for n in gone["mixed"]}
    assert sine - learned == own and learned - sine == gone.get(kind, set())


def test_proposals_make_their_content_alone():
    model = small_model(decoder_query_position="sine", two_stage=True)
    assert model.queries.query_proj.weight.shape == (32, 64) and model.queries.query_norm.weight.shape == (32,)
    position, content = model.queries.encode(torch.rand(2, 5, 4), torch.float32)
    assert position is None and content.shape == (2, 5, 32)


@torch.no_grad()
def test_padding_that_is_ignored_leaves_no_trace():
    model = decoding_model(decoder_query_position="sine", ignore_padding=True, two_stage=True, query_selection="mixed")
    images, mask = padded_batch([(64, 64)])
    wide, wide_mask = padded_batch([(64, 64), (128, 96)])
    wide[0, :, :64, :64] = images[0]
    alone, beside = model(images.double(), mask), model(wide.double(), wide_mask)
    torch.testing.assert_close(beside.boxes[:, :1], alone.boxes, rtol=1e-9, atol=1e-11)


def test_it_is_part_of_the_decoder():
    model = small_model(decoder_query_position="sine")
    model.freeze(["decoder"])
    assert not any(p.requires_grad for p in model.transformer.query_position.parameters())
