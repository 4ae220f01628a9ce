"""Adaptive training sample selection against a loop over objects, as algorithm 1 of arXiv 1912.02424 has it."""

import statistics

import pytest
import torch
from torchvision.ops import box_convert, box_iou, sigmoid_focal_loss

from models.atss import assign_tokens
from models.criterion import total_loss
from models.from_config import build_criterion
from models.memory import Memory, flatten_levels, resize_mask
from models.proposals import token_anchors
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import LossConfig
from util.objects import Objects

SHAPES = [(12, 16), (6, 8), (3, 4), (2, 2)]  # the last two with too few tokens on padded images, or at all


def memory_of(sizes: list[tuple[int, int]]) -> Memory:
    """Levels of images of so many pixels of the first level, padded to 12 x 16."""
    mask = torch.ones(len(sizes), 96, 128, dtype=torch.bool)
    for i, (height, width) in enumerate(sizes):
        mask[i, : 8 * height, : 8 * width] = False
    maps = [torch.zeros(len(sizes), 1, *shape) for shape in SHAPES]
    return flatten_levels(maps, [resize_mask(mask, shape) for shape in SHAPES], torch.float64)


def iou_of(a: torch.Tensor, b: torch.Tensor) -> float:
    return box_iou(box_convert(a[None], "cxcywh", "xyxy"), box_convert(b[None], "cxcywh", "xyxy")).item()


def looped(memory: Memory, image: int, boxes: torch.Tensor) -> dict[int, int]:
    """The object of each positive token of an image, of plain numbers."""
    anchors, usable = (t[image] for t in token_anchors(memory))
    height, width = SHAPES[0]
    size = [
        round(width * memory.valid_ratios[image, 0, 0].item()),
        round(height * memory.valid_ratios[image, 0, 1].item()),
    ]
    considered, claims = {}, {}
    for number, box in enumerate(boxes):
        chosen, start = [], 0
        for h, w in SHAPES:
            distances = []
            for token in range(start, start + h * w):
                if usable[token]:
                    apart = [(anchors[token, i] - box[i]).item() * size[i] for i in (0, 1)]
                    distances.append(((apart[0] ** 2 + apart[1] ** 2) ** 0.5, token))
            chosen += sorted(distances)[:9]
            start += h * w
        overlap = {token: iou_of(anchors[token], box) for _, token in chosen}
        least = statistics.mean(overlap.values()) + statistics.stdev(overlap.values())
        considered[number] = [(overlap[token], -distance, token) for distance, token in chosen]
        for token in overlap:
            x, y = ((anchors[token, i] - box[i]).abs() < box[2 + i] / 2 for i in (0, 1))
            if overlap[token] >= least and x and y:
                claims.setdefault(token, []).append((overlap[token], number))
    owner = {token: max(of)[1] for token, of in claims.items()}
    for number in considered:
        if number not in owner.values():
            free = [c for c in considered[number] if c[2] not in owner]
            alike = [c for c in free if c[0] >= 0.999 * max(free)[0]]
            owner[max(alike, key=lambda c: c[1])[2]] = number
    return owner


def objects_of(counts: list[int], seed: int) -> list[Objects]:
    """Random ones in float64; the first image has a tiny and a huge one, and one that shares tokens with another."""
    objects = random_objects(counts, seed=seed)
    for o in objects:
        o.boxes = o.boxes.double()
    special = [[0.31, 0.52, 0.004, 0.006], [0.48, 0.51, 0.93, 0.9], [0.613, 0.381, 0.21, 0.27], [0.641, 0.4, 0.2, 0.3]]
    objects[0].boxes[:4] = torch.tensor(special, dtype=torch.float64)
    return objects


@pytest.mark.parametrize("seed", range(4))
def test_positives_and_weights_are_those_of_the_algorithm(seed):
    memory, objects = memory_of([(12, 16), (9, 11), (12, 7)]), objects_of([8, 0, 6], seed)
    anchors, usable = token_anchors(memory)
    found, weights = assign_tokens(memory, anchors, usable[..., 0], objects)
    assert len(found.query) == 14 * (9 + 9 + 9 + 4) == len(found.valid)
    positives = []
    for image, start in ((0, 0), (1, 8), (2, 8)):
        mine = found.valid & (found.image == image)
        pairs = dict(zip(found.query[mine].tolist(), (found.object[mine] - start).tolist()))
        assert len(pairs) == mine.sum()  # no token stands for two
        assert pairs == looped(memory, image, objects[image].boxes)
        assert set(pairs.values()) == set(range(len(objects[image].boxes)))  # and none goes without
        positives.append(len(pairs))
    assert weights.tolist() == pytest.approx([8 / positives[0], 1 / (0.2 * 9 * 4), 6 / positives[2]])
    assert positives[0] > 16


def test_objects_of_one_place_all_get_a_token_and_those_without_tokens_do_no_harm():
    memory = memory_of([(12, 16)])
    anchors, usable = token_anchors(memory)
    same = Objects(torch.tensor([[0.4, 0.4, 0.01, 0.01]]).repeat(4, 1).double(), torch.zeros(4, dtype=torch.long), 1)
    found, weights = assign_tokens(memory, anchors, usable[..., 0], [same])
    assert sorted(found.object[found.valid].tolist()) == [0, 1, 2, 3] and weights.tolist() == [1]
    assert len(set(found.query[found.valid].tolist())) == 4
    found, weights = assign_tokens(memory, anchors, torch.zeros_like(usable[..., 0]), [same])
    assert not found.valid.any() and weights.isfinite().all()
    found, weights = assign_tokens(memory, anchors, usable[..., 0], [Objects(same.boxes[:0], same.labels[:0], 1)])
    assert len(found.query) == 0 and weights.tolist() == pytest.approx([1 / 7.2])


@pytest.mark.parametrize("head", ["objectness", "class"])
def test_losses_of_all_tokens_are_those_of_a_loop(head):
    model = small_model(
        two_stage=True, refinement=True, proposal_head=head, loss=LossConfig(proposal_assignment="atss")
    )
    scramble(model)
    images, mask = padded_batch([(96, 96), (64, 80)])
    objects = random_objects([3, 2])
    predictions = model(images, mask, objects)
    group, losses = predictions.groups[1], build_criterion(LossConfig())(predictions, objects)
    assert group.logits.shape[2] > 100
    expected = {"class": 0.0, "l1": 0.0}
    for image, (start, count) in enumerate(((0, 3), (3, 2))):
        mine = group.assignment.valid & (group.assignment.image == image)
        tokens, of = group.assignment.query[mine], group.assignment.object[mine] - start
        one_hot = torch.zeros_like(group.logits[0, image])
        for token, number in zip(tokens.tolist(), of.tolist()):
            one_hot[token, objects[image].labels[number] if head == "class" else 0] = 1
            apart = (group.boxes[0, image, token] - objects[image].boxes[number]).abs().sum()
            expected["l1"] += 5 * apart * count / len(tokens) / 5
        focal = sigmoid_focal_loss(group.logits[0, image], one_hot, 0.25, 2).sum()
        expected["class"] += 2 * focal * count / len(tokens) / 5
    for name, value in expected.items():
        torch.testing.assert_close(losses[f"{name}/proposals"], value, rtol=1e-5, atol=1e-6)
    total_loss(losses).backward()
    assert model.queries.head.classify.weight.grad.any()
