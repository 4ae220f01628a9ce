"""Predictions to detections in pixels."""

import pytest
import torch

from models.postprocess import postprocess
from models.predictions import PredictionGroup, Predictions


def test_postprocess_by_hand():
    logits = torch.full((2, 1, 3, 2), -10.0)
    logits[-1, 0, 2, 1], logits[-1, 0, 0, 0], logits[-1, 0, 0, 1] = 2.0, 1.0, 0.0
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.1, 0.1, 0.1, 0.1], [0.25, 0.5, 0.5, 0.2]]).expand(2, 1, 3, 4)
    predictions = Predictions([PredictionGroup("decoder", logits, boxes)])
    (found,) = postprocess(predictions, [(100, 200)], top_k=3)
    assert found.labels.tolist() == [1, 0, 1]
    assert found.scores.tolist() == pytest.approx([0.880797, 0.731059, 0.5], abs=1e-5)
    assert found.boxes[0].tolist() == pytest.approx([0, 40, 100, 60], abs=1e-4)
    assert found.boxes[1].tolist() == found.boxes[2].tolist() == pytest.approx([0, 0, 200, 100])
    assert len(postprocess(predictions, [(100, 200)], top_k=100)[0].scores) == 6  # fewer pairs than 100
    assert len(found.above(0.6).scores) == 2
