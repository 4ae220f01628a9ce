"""The inputs of the operator's benchmark are what they are called, and their bytes are counted right."""

import torch

from scripts.bench import op_inputs


def test_bytes_of_a_hand_worked_case():
    # Two heads of 3 fp32 channels on 2x2 pixels. Head 0 samples between all four, head 1 outside and in the corner.
    inputs = op_inputs.Inputs(
        value=torch.zeros(1, 4, 2, 3),
        spatial_shapes=((2, 2),),
        locations=torch.tensor([[[[[0.5, 0.5], [0.4, 0.6]], [[-3.0, 0.5], [-0.4, -0.4]]]]]),
        weights=torch.zeros(1, 1, 2, 2),
        points=2,
        grad=torch.zeros(1, 1, 6),
    )
    assert op_inputs.sampled_rows(inputs) == 4
    read = 4 * 12 + 8 * 4 + 4 * 4
    assert op_inputs.compulsory_bytes(inputs) == (read + 24, read + 24 + 24 * 4 + 8 * 4 + 4 * 4)


def test_cases_are_what_they_are_called():
    local, uniform, decoder = (op_inputs.make_inputs(case, 2) for case in op_inputs.CASES[:3])
    assert local.value.shape == (2, 22223, 8, 32) and local.locations.shape == (2, 22223, 8, 16, 2)
    assert decoder.locations.shape == (2, 300, 8, 16, 2) and decoder.value.shape == local.value.shape
    torch.testing.assert_close(local.weights.sum(-1), torch.ones(2, 22223, 8))
    # A pixel of level 2 and its points on level 0: about 2.5 of level 0's pixels from the same place.
    query = 100 * 167 + 50 * 84 + 7 * 42 + 30
    away = local.locations[:, query, :, :4] - torch.tensor([30.5 / 42, 7.5 / 25])
    assert 1.5 < (away * torch.tensor([167.0, 100.0])).std() < 3.5
    assert uniform.locations.min() >= 0 and uniform.locations.max() <= 1 and uniform.locations.std() > 0.25
    assert op_inputs.make_inputs("encoder-uniform", 1, quick=True).locations.equal(
        op_inputs.make_inputs("encoder-uniform", 1, quick=True).locations
    )
