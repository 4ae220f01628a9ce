"""The neck's norm is torch's, and takes what torch's module refuses."""

import pytest
import torch
from torch import nn

from models.neck import GroupNorm
from tests.models.helpers import padded_batch, small_model


def test_the_norm_is_that_of_torch():
    ours, torchs = GroupNorm(8, 32), nn.GroupNorm(8, 32)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 32, 5, 7)
    assert torch.equal(ours(x), torchs(x))


def test_of_a_single_value_only_the_bias_remains():
    ours = GroupNorm(32, 32)
    nn.init.normal_(ours.bias)
    x = torch.randn(1, 32, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.GroupNorm(32, 32)(x)
    assert torch.allclose(ours(x).flatten(), ours.bias, atol=1e-4)


def test_as_many_groups_as_channels_and_a_level_of_one_pixel():
    model = small_model(norm_groups=32, d_model=32, num_levels=5).eval()
    predictions = model(*padded_batch([(40, 40)]))
    assert torch.isfinite(predictions.boxes).all()
