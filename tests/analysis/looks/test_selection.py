"""Queries, layers and tokens: the defaults, and a sentence for what is not there."""

import pytest
import torch

from analysis.looks.selection import choose_layers, choose_pixel, choose_queries, layer_scores, tokens_at
from models.predictions import PredictionGroup, Predictions
from util.errors import UserError

SCORES = torch.tensor([[[0.1, 0.2], [0.9, 0.8], [0.3, 0.7], [0.6, 0.1]]])  # [B, Q, C]


@pytest.fixture
def predictions() -> Predictions:
    logits = torch.stack([torch.zeros(1, 4, 2), SCORES.logit()])
    return Predictions([PredictionGroup("decoder", logits, torch.rand(2, 1, 4, 4))])


def test_the_best_queries_each_once_with_its_best_class(predictions):
    """Query 1 is best in both classes, and is drawn once."""
    chosen = choose_queries(predictions, 0.5, 3)
    assert [(q.query, q.label) for q in chosen] == [(1, 0), (2, 1), (3, 0)]
    assert [q.score for q in chosen] == pytest.approx([0.9, 0.7, 0.6])
    assert len(choose_queries(predictions, 0.65, 3)) == 2 and len(choose_queries(predictions, 0.5, 1)) == 1
    assert layer_scores(predictions, chosen[1]) == pytest.approx([0.5, 0.7])


def test_below_the_threshold_the_best_are_taken_all_the_same(predictions):
    assert [q.query for q in choose_queries(predictions, 0.95, 2)] == [1, 2]


def test_queries_asked_for_come_in_their_order(predictions):
    assert [q.query for q in choose_queries(predictions, 0.5, 1, [3, 0, 3])] == [3, 0]
    with pytest.raises(UserError, match="no query 4; this picture has queries 0 to 3"):
        choose_queries(predictions, 0.5, 1, [0, 4])
    with pytest.raises(UserError, match="no query -1"):
        choose_queries(predictions, 0.5, 1, [-1])


def test_layers():
    assert choose_layers(3, None) == [0, 1, 2] and choose_layers(3, [2, 0]) == [0, 2]
    with pytest.raises(UserError, match="no decoder layer 3; this model has layers 0 to 2"):
        choose_layers(3, [3])


def test_pixel():
    box = torch.tensor([0.25, 1.2, 0.1, 0.1])
    assert choose_pixel(None, box, (100, 50)) == (0.25, 1.0)
    assert choose_pixel([9, 49], box, (100, 50)) == (0.095, 0.99)
    for pixel, message in (([100, 0], "100 wide and 50 high"), ([0, -1], "outside"), ([1], "two numbers")):
        with pytest.raises(UserError, match=message):
            choose_pixel(pixel, box, (100, 50))


def test_tokens_hold_the_point_also_beside_padding():
    """Half of the width is padding: of 4 x 8 tokens, 4 columns are the image."""
    shapes, ratios = [(4, 8), (2, 4)], torch.tensor([(0.5, 1.0), (0.5, 1.0)])
    assert tokens_at((0.0, 0.0), shapes, ratios) == [0, 32]
    assert tokens_at((0.99, 0.3), shapes, ratios) == [8 + 3, 32 + 1]
    assert tokens_at((1.0, 1.0), shapes, ratios) == [24 + 3, 32 + 4 + 1]
