"""Attention traced to the maps: by hand, and against the operator itself applied to one map for each token."""

import pytest
import torch

from analysis.looks.effective import density, deposit, trace
from analysis.looks.sampling import Recording, Sampling, record_sampling
from models.predictions import Predictions
from ops.reference import ms_deform_attn
from tests.analysis.looks.tiny import VARIANTS, tiny, two_images


def layer(locations, weights, queries) -> Sampling:
    """One head on one level: `locations` and `weights` by query, not padded."""
    locations, weights = torch.tensor(locations)[None, :, None], torch.tensor(weights)[None, :, None]
    levels = torch.zeros(weights.shape[-1], dtype=torch.long)
    return Sampling(locations, weights, levels, torch.tensor(queries)[None], torch.ones(1, len(levels), 2))


def by_hand(encoder) -> Recording:
    """A map of 1 x 2 tokens; the query reads 3/4 in the middle of token 1 and 1/4 halfway over the right edge."""
    decoder = layer([[(0.75, 0.5), (1.0, 0.5)]], [[0.75, 0.25]], [(0.5, 0.5)])
    padding_mask = torch.zeros(1, 2, dtype=torch.bool)
    return Recording(encoder, [decoder], [(1, 2)], torch.ones(1, 1, 2), padding_mask, Predictions([]))


def test_by_hand_without_encoder():
    found = trace(by_hand([]), 0)
    assert found.token_mass.tolist() == [0.0, 0.875] and found.kept == 0.875  # half of the second point is lost
    assert found.mass.tolist() == [0.75, 0.25]
    assert torch.allclose(found.points, torch.tensor([[0.75, 0.5], [1.0, 0.5]], dtype=torch.float64))


@pytest.mark.parametrize(("residual", "expected"), [(0.0, [0.4375, 0.4375]), (0.5, [0.21875, 0.65625])])
def test_by_hand_with_one_encoder_layer(residual, expected):
    """Token 1, which has 0.875, reads the boundary of both tokens: half of each."""
    encoder = [layer([[(0.25, 0.5)], [(0.5, 0.5)]], [[1.0], [1.0]], [(0.25, 0.5), (0.75, 0.5)])]
    found = trace(by_hand(encoder), 0, residual=residual)
    assert torch.allclose(found.token_mass, torch.tensor(expected, dtype=torch.float64))
    assert float(found.mass.sum()) == pytest.approx(0.875)
    where = {tuple(p): m for p, m in zip(found.points.tolist(), found.mass.tolist())}
    assert where == ({(0.5, 0.5): 0.875} if residual == 0 else {(0.5, 0.5): 0.4375, (0.75, 0.5): 0.4375})


def matrix(sampling: Sampling, record: Recording, image: int) -> torch.Tensor:
    """`[Q, S]`, what a query takes of each token, read off the operator: token s holds the s-th unit vector."""
    tokens, heads = record.padding_mask.shape[1], sampling.weights.shape[2]
    value = torch.eye(tokens, dtype=torch.float64)[None, :, None].expand(-1, -1, heads, -1).clone()
    value[0, record.padding_mask[image]] = 0
    counts = torch.bincount(sampling.levels, minlength=len(record.spatial_shapes)).tolist()
    arguments = (sampling.on_maps[image, None].double(), sampling.weights[image, None].double())
    out = ms_deform_attn(value, record.spatial_shapes, *arguments, counts)
    return out[0].unflatten(-1, (heads, tokens)).mean(1)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_mass_is_the_product_of_the_layers_attention(options):
    record = record_sampling(tiny(**options), *two_images())
    for image, query, residual in ((0, 0, 0.5), (1, 4, 0.0), (1, 2, 0.3)):
        expected = matrix(record.decoder[-1], record, image)[query]
        for sampling in reversed(record.encoder):
            expected = residual * expected + (1 - residual) * expected @ matrix(sampling, record, image)
        found = trace(record, query, image, residual=residual, strongest=10**6)
        assert torch.allclose(found.token_mass, expected, atol=1e-7)
        assert found.kept == pytest.approx(float(expected.sum()))
        assert not found.token_mass[record.padding_mask[image]].any()
        # The final points, laid on the maps, are the same mass again.
        on_maps = found.points * record.valid_ratios[image].double()[found.levels]
        laid = deposit(on_maps, found.levels, found.mass, record.spatial_shapes)
        assert torch.allclose(laid.masked_fill(record.padding_mask[image], 0), expected, atol=1e-6)


def test_nothing_is_lost_within_the_maps():
    shapes = [(5, 7), (3, 4)]
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(0, 2, (200,), generator=generator)
    mass = torch.rand(200, generator=generator, dtype=torch.float64)
    inside = 0.2 + 0.6 * torch.rand(200, 2, generator=generator, dtype=torch.float64)
    assert float(deposit(inside, levels, mass, shapes).sum()) == pytest.approx(float(mass.sum()), abs=1e-12)
    outside = torch.full((200, 2), 1.4, dtype=torch.float64)
    assert float(deposit(outside, levels, mass, shapes).sum()) == 0


def test_density_keeps_the_mass_and_its_place():
    shapes, size = [(4, 4), (2, 2)], (40, 60)
    for token, row, column in ((2, 5, 37.5), (16 + 2, 30, 15)):  # fine: top, right of the middle; coarse: lower left
        mass = torch.zeros(4 * 4 + 2 * 2, dtype=torch.float64)
        mass[token] = 0.25
        found = density(mass, shapes, torch.ones(2, 2), size)
        assert float(found.sum()) == pytest.approx(0.25)
        y, x = (found > 0.9 * found.max()).nonzero().double().mean(0) + 0.5
        assert abs(y - row) < 5 and abs(x - column) < 7.5
    # Half of the map is padding: its columns stand for nothing of the picture.
    ratios = torch.tensor([(0.5, 1.0), (0.5, 1.0)])
    mass = torch.zeros(20, dtype=torch.float64)
    mass[1] = 1.0
    assert density(mass, shapes, ratios, size)[:, 30:].sum() > 0.7
