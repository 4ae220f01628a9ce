"""The saliency region of functions whose answer is known, and of a detector, measured again by other means."""

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from analysis.looks.saliency import cells_of, detection_errors, saliency_region
from tests.analysis.looks.tiny import VARIANTS, tiny, two_images


def share_missing(needed: torch.Tensor):
    """The error is the share of the needed cells that is missing; the others do nothing."""
    return lambda masks: (needed & ~masks).flatten(1).sum(1) / needed.sum()


@pytest.mark.parametrize("rectangle", [(3, 5, 4, 9), (0, 1, 0, 1), (7, 12, 10, 16), (0, 12, 0, 16)])
@pytest.mark.parametrize("batch", [1, 16])
def test_a_known_rectangle_is_found_exactly(rectangle, batch):
    top, bottom, left, right = rectangle
    needed = torch.zeros(12, 16, dtype=torch.bool)
    needed[top:bottom, left:right] = True
    found = saliency_region(share_missing(needed), (12, 16), bound=1e-6, batch=batch)
    assert torch.equal(found.keep, needed) and found.error == 0
    assert found.share == pytest.approx(needed.float().mean().item())


def test_the_bound_is_used_up_and_kept():
    """Of a hundred needed cells a quarter may go."""
    needed = torch.zeros(16, 16, dtype=torch.bool)
    needed[3:13, 2:12] = True
    found = saliency_region(share_missing(needed), (16, 16), bound=0.25)
    assert int(found.keep.sum()) == 75 and not (found.keep & ~needed).any()
    assert found.error == pytest.approx(0.25)


def test_every_cell_that_is_left_is_needed_and_masks_are_counted():
    """A function in which cells help and hinder each other: none can be told from itself alone."""
    generator, asked = torch.Generator().manual_seed(5), []
    one, two = torch.randn(8, 60, generator=generator), torch.randn(8, generator=generator)

    def errors(masks):
        asked.append(len(masks))
        return ((masks.flatten(1).float() @ one.T).tanh() @ two - (one.sum(1).tanh() @ two)).abs()

    found = saliency_region(errors, (6, 10), bound=0.3, batch=7)
    assert 0 < found.share < 1 and found.error <= 0.3 and found.passes == sum(asked) and max(asked) <= 7
    assert float(errors(found.keep[None])) == pytest.approx(found.error, abs=1e-5)
    for row, column in found.keep.nonzero().tolist():
        without = found.keep.clone()
        without[row, column] = False
        assert float(errors(without[None])) > 0.3


@pytest.mark.parametrize("variant", ["plain", "two stages"])
def test_a_detection_stays_within_the_bound(variant):
    """The final image is blanked by hand and its detection compared by hand."""
    model, (images, padding_mask) = tiny(**VARIANTS[variant]), (t[:1] for t in two_images())
    two_stage, bound = variant == "two stages", 0.2
    errors = detection_errors(model, images, padding_mask, 2, 1, any_query=two_stage)
    cells = cells_of((64, 96), 6)
    assert cells == (4, 6)
    assert float(errors(torch.ones(1, *cells, dtype=torch.bool))) == pytest.approx(0, abs=1e-5)
    found = saliency_region(errors, cells, bound)
    assert found.error <= bound and found.share < 1
    blanked = images.clone()
    for row, column in (~found.keep).nonzero().tolist():
        blanked[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 0
    with torch.no_grad():
        before, after = model(images, padding_mask), model(blanked, padding_mask)
    score = before.logits[-1, 0, 2, 1].sigmoid()
    box = box_convert(before.boxes[-1, 0, 2], "cxcywh", "xyxy")[None]
    by_query = []
    for query in range(6) if two_stage else [2]:
        change = abs(float(after.logits[-1, 0, query, 1].sigmoid() / score) - 1)
        other = box_convert(after.boxes[-1, 0, query], "cxcywh", "xyxy")[None]
        by_query.append(max(change, 1 - float(box_iou(box, other))))
    assert min(by_query) == pytest.approx(found.error, abs=1e-4)


@pytest.mark.parametrize(
    ("size", "longer", "expected"), [((100, 100), 16, (16, 16)), ((50, 200), 16, (4, 16)), ((9, 900), 16, (1, 16))]
)
def test_cells_are_nearly_square(size, longer, expected):
    assert cells_of(size, longer) == expected
