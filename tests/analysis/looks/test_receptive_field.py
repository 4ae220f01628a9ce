"""The receptive field against differences of outputs, and where it must be nothing."""

import pytest
import torch

from analysis.looks.receptive_field import box_output, class_output, receptive_field
from tests.analysis.looks.tiny import VARIANTS, tiny, two_images


@pytest.mark.parametrize("variant", ["plain", "refinement", "no encoder"])
@pytest.mark.parametrize("output", [class_output(2, 1), box_output(2)], ids=["class", "box"])
def test_it_is_the_sum_of_absolute_differences(variant, output):
    """Central differences in fp64, channel by channel; with refinement through the references too."""
    model = tiny(**VARIANTS[variant]).double()
    images, padding_mask = (t[:1] for t in two_images(torch.float64))
    field = receptive_field(model, images, padding_mask, output)[0]
    step = 1e-6
    places = [*((field / field.max() > 0.3).nonzero()[:3].tolist()), [10, 20], [40, 70]]
    for row, column in places:
        expected = 0.0
        for channel in range(3):
            moved = images.repeat(2, 1, 1, 1)
            moved[0, channel, row, column] += step
            moved[1, channel, row, column] -= step
            with torch.no_grad():
                up, down = (output(model(m[None], padding_mask)) for m in moved)
            expected += float((up - down).abs().sum() / (2 * step))
        assert float(field[row, column]) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_other_images_and_padding_have_none():
    model, (images, padding_mask) = tiny(), two_images()
    field = receptive_field(model, images, padding_mask, class_output(0, 0))
    assert field[0].max() > 0 and not field[1].any()
    second = receptive_field(model, images, padding_mask, lambda p: p.logits[-1, 1, 0, :1])
    assert second[1].max() > 0 and not second[0].any() and not second[1][padding_mask[1]].any()


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_it_leaves_the_model_as_it_was(options):
    model, inputs = tiny(**options), [t[:1] for t in two_images()]
    assert receptive_field(model, *inputs, box_output(0)).max() > 0
    assert model.auxiliary_losses and all(p.grad is None for p in model.parameters())
    with pytest.raises(IndexError):
        receptive_field(model, *inputs, class_output(99, 0))
    assert model.auxiliary_losses
