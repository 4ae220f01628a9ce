"""Suppression without waiting, against torchvision's."""

import pytest
import torch
from torchvision.ops import box_convert, box_iou, nms

from models.nms import distinct_first, overlaps, survivors


def random_boxes(count: int, seed: int) -> torch.Tensor:
    """Around a few places, so that many overlap."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(8, 4, generator=generator) * 0.4 + 0.2
    drawn = places[torch.randint(8, (count,), generator=generator)]
    return drawn + 0.03 * torch.randn(count, 4, generator=generator)


def smooth_boxes(seed: int) -> torch.Tensor:
    """What tokens of a grid propose of three objects, with a score that falls with the distance."""
    generator = torch.Generator().manual_seed(seed)
    centre, size = torch.rand(3, 2, generator=generator), torch.rand(3, 2, generator=generator) ** 2 * 0.4 + 0.02
    grid = torch.cartesian_prod(torch.arange(20) / 20, torch.arange(20) / 20)
    distance, of = ((grid[:, None] - centre) / size).norm(dim=-1).min(1)
    return torch.cat([0.6 * centre[of] + 0.4 * grid, size[of]], -1)[distance.argsort()]


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("boxes", [random_boxes(300, 0), random_boxes(130, 1), smooth_boxes(2), smooth_boxes(3)])
def test_the_order_is_that_of_torchvisions_survivors_and_then_the_others(boxes, threshold):
    kept = nms(box_convert(boxes, "cxcywh", "xyxy"), torch.linspace(1, 0, len(boxes)), threshold).tolist()
    others = [i for i in range(len(boxes)) if i not in kept]
    assert distinct_first(boxes[None], threshold)[0].tolist() == kept + others
    assert others or threshold == 0.9


def test_images_do_not_meet():
    boxes = torch.stack([random_boxes(100, 5), random_boxes(100, 6)])
    both = distinct_first(boxes, 0.5)
    for one, found in zip(boxes, both):
        assert torch.equal(distinct_first(one[None], 0.5)[0], found)


def test_overlaps_are_torchvisions_and_boxes_without_area_overlap_nothing():
    boxes = random_boxes(20, 3).clamp(min=0)
    corners = box_convert(boxes, "cxcywh", "xyxy")
    torch.testing.assert_close(overlaps(boxes[None])[0], box_iou(corners, corners))
    assert overlaps(torch.tensor([[[0.5, 0.5, 0.0, 0.0]] * 2])).eq(0).all()


def test_a_chain_longer_than_the_rounds_keeps_what_is_undecided():
    """Each box suppresses just the next, so every other one should go; two rounds decide the first two of a block."""
    chain = torch.diag(torch.ones(7), 1)[None]
    assert survivors(chain, 0.5, block=8, rounds=8)[0].tolist() == [True, False] * 4
    assert survivors(chain, 0.5, block=8, rounds=2)[0].tolist() == [True, False] + [True] * 6
    assert survivors(chain, 0.5, block=2, rounds=2)[0].tolist() == [True, False] * 4
