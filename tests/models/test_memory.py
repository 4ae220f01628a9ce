"""What tokens know of their levels."""

import pytest
import torch

from models.memory import flatten_levels, resize_mask, valid_ratio


def test_valid_ratio_counts_what_is_not_padding():
    mask = torch.zeros(1, 4, 10, dtype=torch.bool)
    mask[:, 3:] = True
    mask[:, :, 7:] = True
    assert valid_ratio(mask)[0].tolist() == pytest.approx([0.7, 0.75])


def test_levels_follow_each_other_row_by_row():
    maps = [torch.arange(24.0).reshape(1, 2, 3, 4), torch.arange(100.0, 104.0).reshape(1, 2, 1, 2)]
    masks = [torch.zeros(1, 3, 4, dtype=torch.bool), torch.tensor([[[False, True]]])]
    memory = flatten_levels(maps, masks, torch.float64)
    assert memory.tokens.shape == (1, 14, 2) and memory.spatial_shapes == [(3, 4), (1, 2)]
    assert memory.tokens[0, 5].tolist() == [5, 17] and memory.tokens[0, 13].tolist() == [101, 103]
    assert memory.padding_mask[0].tolist() == [False] * 13 + [True]
    assert memory.valid_ratios.tolist() == [[[1, 1], [0.5, 1]]] and memory.valid_ratios.dtype == torch.float64


def test_masks_are_resized_by_nearest_neighbour():
    mask = torch.ones(1, 6, 6, dtype=torch.bool)
    mask[:, :2, :5] = False
    assert (~resize_mask(mask, (3, 3)))[0].tolist() == [[True, True, True], [False] * 3, [False] * 3]
    assert not resize_mask(mask, (1, 1)).any()
