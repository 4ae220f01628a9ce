"""Boxes from distributions of their edges (arXiv 2410.13842) against the paper's definitions."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from models.distribution import bin_offsets, decode_edges, edge_offsets, nearest_bins
from models.from_config import build_criterion
from models.limits import check_model
from models.reduce import reduce_model
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import BackboneConfig, LossConfig, ModelConfig
from util.errors import UserError

# Some by hand, s^i - 1 with s^15 = ac + 1 = 3: fifth roots (i = 3, 6, 9, 12), cube roots (5, 10), 3 - 1, and 2ac.
RIGHT = {3: 0.2457309, 5: 0.4422496, 6: 0.5518456, 9: 0.9331820, 10: 1.0800838, 12: 1.4082247, 15: 2.0, 16: 4.0}
# All, to the last digit.
VALUES = [-4.0, *(1 - 3 ** (i / 15) for i in range(15, 0, -1)), 0.0, *(3 ** (i / 15) - 1 for i in range(1, 16)), 4.0]


def bins() -> Tensor:
    return bin_offsets(torch.float64, torch.device("cpu"))


def test_bins_worked_out_by_hand():
    found = bins()
    assert len(found) == 33 and torch.equal(found, -found.flip(0)) and found[16] == 0
    assert {i: found[16 + i].item() for i in RIGHT} == pytest.approx(RIGHT, abs=1e-7)
    assert found.tolist() == pytest.approx(VALUES, abs=1e-14)
    assert bin_offsets(torch.float32, torch.device("cpu")).tolist() == pytest.approx(VALUES, rel=1e-6)


def sure_of(*chosen: int) -> Tensor:
    """Logits `[4, 33]` of edges that are surely in these bins."""
    logits = torch.full((4, 33), -1e4, dtype=torch.float64)
    logits[torch.arange(4), torch.tensor(chosen)] = 0
    return logits


def test_decoding_by_hand():
    start = torch.tensor([0.5, 0.4, 0.2, 0.4], dtype=torch.float64)  # edges 0.4, 0.2, 0.6, 0.6
    torch.testing.assert_close(decode_edges(torch.zeros(4, 33).double(), start), start)
    torch.testing.assert_close(decode_edges(sure_of(16, 16, 16, 16), start), start)
    # Left half a width outwards, top half a height inwards, right a whole width outwards, bottom as it is.
    found = box_convert(decode_edges(sure_of(31, 1, 32, 16), start), "cxcywh", "xyxy")
    assert found.tolist() == pytest.approx([0.3, 0.4, 0.8, 0.6])
    half = torch.stack([sure_of(16, 16, 16, 16), sure_of(32, 16, 16, 16)]).amax(0)  # as likely at 0 as a width out
    found = box_convert(decode_edges(half, start), "cxcywh", "xyxy")
    assert found.tolist() == pytest.approx([0.3, 0.2, 0.6, 0.6])


def test_edges_that_pass_each_other_make_an_empty_box_that_still_learns():
    start = torch.tensor([0.5, 0.4, 0.2, 0.4], dtype=torch.float64)
    logits = (sure_of(0, 16, 0, 16) / 1e3).requires_grad_()
    box = decode_edges(logits, start)
    assert box.tolist() == pytest.approx([0.5, 0.4, 0.0, 0.4], abs=1e-3) and box[2] == 0
    assert torch.autograd.grad(box[2], logits)[0].any()


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.6 + 0.05


def of_two_bins(below: Tensor, share: Tensor) -> Tensor:
    """Logits whose distribution is in two bins alone."""
    chances = torch.zeros(*below.shape, 33, dtype=torch.float64)
    chances.scatter_(-1, below[..., None], 1 - share[..., None]).scatter_(-1, below[..., None] + 1, share[..., None])
    return chances.log()


def test_targets_decode_to_the_box_within_reach_and_to_the_outermost_bins_beyond():
    start, boxes = random_boxes(500, 0), random_boxes(500, 1)
    offsets = edge_offsets(boxes, start)
    corners, origin = (box_convert(b, "cxcywh", "xyxy") for b in (boxes, start))
    size = start[:, [2, 3, 2, 3]]
    outwards = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(offsets, 4 * outwards * (corners - origin) / size, rtol=0, atol=1e-12)
    within = (offsets.abs() < 4).all(-1)
    assert 100 < within.sum() < 400
    found = decode_edges(of_two_bins(*nearest_bins(offsets)), start)
    torch.testing.assert_close(found[within], boxes[within], rtol=0, atol=1e-12)
    nearest = origin + outwards * offsets.clamp(-4, 4) * size / 4
    kept = (nearest[:, 2:] >= nearest[:, :2]).all(-1)
    found = box_convert(found, "cxcywh", "xyxy")
    torch.testing.assert_close(found[kept], nearest[kept], rtol=0, atol=1e-12)


def test_two_bins_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randn(40, 4, generator=generator, dtype=torch.float64) * 2
    offsets[0] = torch.tensor([-4.0, 4.0, 0.0, -9.0])
    offsets[1] = bins()[[1, 15, 17, 31]]
    below, share = nearest_bins(offsets)
    for offset, n, of_next in zip(offsets.flatten().tolist(), below.flatten().tolist(), share.flatten().tolist()):
        offset = max(-4.0, min(4.0, offset))
        fits = [k for k in range(32) if bins()[k] <= offset <= bins()[k + 1]]
        assert n in fits
        low, high = bins()[n].item(), bins()[n + 1].item()
        assert of_next == pytest.approx((offset - low) / (high - low), abs=1e-12)


def detector(auxiliary: bool = True, trained: bool = True, **options) -> nn.Module:
    backbone = BackboneConfig("test_resnet", "none", frozen_stages=0)
    settings = {"backbone": backbone, "num_queries": 6, "decoder_layers": 4}
    loss = LossConfig(auxiliary=auxiliary)
    model = small_model(loss=loss, refinement=True, distribution_boxes=True, **settings | options)
    if trained:
        scramble(model)
        for head in model.heads:  # edges that are sure of where they are
            nn.init.normal_(head.edges.last.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model.double().eval()


def inputs():
    images, mask = padded_batch([(48, 48), (48, 32)])
    objects = [replace(o, boxes=o.boxes.double(), seed=i) for i, o in enumerate(random_objects([2, 4]))]
    return images.double(), mask, objects


def by_hand(model: nn.Module, queries, memory, detach: bool) -> Tensor:
    """Boxes of every layer `[N, B, Q, 4]`, edge by edge, from the paper's definitions."""
    content, reference, before, logits, boxes = queries.content, queries.reference, None, 0.0, []
    for i, (layer, head) in enumerate(zip(model.transformer.decoder, model.heads)):
        ratios = memory.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)
        on_maps, groups = reference[:, :, None] * ratios[:, None], queries.runs() if len(queries.groups) > 1 else None
        rest = on_maps, memory.tokens, memory.spatial_shapes, memory.padding_mask, groups
        content = layer(content, queries.position, *rest)
        if i == 0:
            known = torch.log(reference / (1 - reference))
            moved = [head.regress(content)[..., k] + (known[..., k] if k < known.shape[-1] else 0) for k in range(4)]
            start = torch.stack(moved, -1).sigmoid()
            if detach:
                start = start.detach()
            cx, cy, w, h = start.unbind(-1)
        logits = logits + head.edges(content if before is None else content + before.detach()).view(*start.shape, 33)
        chances = logits.exp() / logits.exp().sum(-1, keepdim=True)
        left, top, right, bottom = sum(chances[..., n] * value for n, value in enumerate(VALUES)).unbind(-1)
        x1, x2 = cx - (2 + left) * w / 4, cx + (2 + right) * w / 4
        y1, y2 = cy - (2 + top) * h / 4, cy + (2 + bottom) * h / 4
        boxes.append(torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1))
        reference, before = boxes[-1].detach() if detach else boxes[-1], content
    return torch.stack(boxes)


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("options", [{}, {"reference": "box"}, {"two_stage": True, "hybrid_queries": 5}], ids=str)
def test_boxes_and_gradients_are_those_of_the_definitions(options, auxiliary, monkeypatch):
    model, (images, mask, objects), seen = detector(auxiliary, **options), inputs(), []
    decode = model.transformer.decode

    def watched(queries, memory, *more):
        seen[:] = [queries, memory, decode(queries, memory, *more)]
        return seen[-1]

    monkeypatch.setattr(model.transformer, "decode", watched)
    model(images, mask, objects)
    queries, memory, (_, found, _) = seen
    wanted = by_hand(model, queries, memory, auxiliary)
    assert (wanted[..., 2:] > 0).all() and (wanted[-1] - wanted[0]).abs().max() > 0.05
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    factors = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parameters = [p for p in model.parameters() if p.requires_grad]
    of_found, of_wanted = (
        torch.autograd.grad((boxes * factors).sum(), parameters, retain_graph=True, allow_unused=True)
        for boxes in (found, wanted)
    )
    for one, other in zip(of_found, of_wanted):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_untrained_edges_stay_at_the_first_box():
    model, (images, mask, objects) = detector(trained=False), inputs()
    group = model(images, mask, objects).groups[0]
    torch.testing.assert_close(group.boxes, group.distributions.start.expand_as(group.boxes), rtol=0, atol=1e-12)


def test_losses_of_all_groups_and_of_the_boxes_that_edges_start_from():
    more = {"two_stage": True, "hybrid_queries": 5, "denoising_queries": 4, "query_groups": 2, "decoder_layers": 2}
    model, (images, mask, objects) = detector(**more), inputs()
    predictions = model(images, mask, objects)
    losses = build_criterion(LossConfig(distillation_weight=1.5))(predictions, objects)
    usual = ["class", "l1", "giou"]
    names = {f"{k}/{name}" for k in usual for name in ("proposals", "proposals1")}
    for group in ("decoder", "group1", "hybrid", "denoising"):
        names |= {f"{k}/{group}.start" for k in usual}
        names |= {f"{k}/{group}.{i}" for k in [*usual, "fgl", "distill"] for i in range(2)}
    assert set(losses) == names
    assert all(losses[name] > 0 for name in names if name.startswith(("fgl", "l1")))
    by_name = {group.name: group for group in predictions.groups}
    for name in ("hybrid", "denoising"):
        start, group = by_name[f"{name}.start"], by_name[name]
        assert torch.equal(start.logits[0], group.logits[0]) and torch.equal(start.boxes[0], group.distributions.start)
        for key in ("assignment", "weights", "penalised", "repeats", "objects"):
            assert getattr(start, key) is getattr(group, key)


def test_without_auxiliary_losses_the_last_layer_teaches_the_first_box():
    model, (images, mask, objects) = detector(auxiliary=False), inputs()
    predictions = model(images, mask, objects)
    assert len(predictions.groups) == 1
    losses = build_criterion(LossConfig(auxiliary=False))(predictions, objects)
    assert set(losses) == {f"{k}/decoder.3" for k in ("class", "l1", "giou", "fgl")}
    losses["l1/decoder.3"].backward()
    assert model.heads[0].regress.last.weight.grad.any()


@torch.no_grad()
def test_inference_says_boxes_alone_and_fewer_layers_say_the_same():
    model, (images, mask, _) = detector(), inputs()
    whole = model(images, mask)
    assert len(whole.groups) == 1 and whole.groups[0].distributions is None
    for layers in (1, 2):
        found = reduce_model(model, decoder_layers=layers)(images, mask)
        assert torch.equal(found.boxes, whole.boxes[:layers]) and torch.equal(found.logits, whole.logits[:layers])


@torch.no_grad()
def test_half_precision_leaves_boxes_in_fp32():
    model, (images, mask, objects) = detector().float(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        group = model(images.float(), mask, objects).groups[0]
    assert {t.dtype for t in (group.boxes, group.distributions.logits, group.distributions.start)} == {torch.float32}


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        ({"distribution_boxes": True}, {}, "it needs model.refinement true"),
        ({"distribution_boxes": True, "refinement": True, "decoder_layers": 1}, {}, "decoder_layers of 2 or more"),
        ({"distribution_boxes": True, "refinement": True, "look_forward": 2}, {}, "leave one of them out"),
        ({}, {"fgl_weight": 1.0}, "loss.fgl_weight is about distributions; it needs model.distribution_boxes true"),
        ({}, {"distillation_weight": 1.5}, "loss.distillation_weight is about distributions"),
        (
            {"distribution_boxes": True, "refinement": True},
            {"distillation_weight": 1.5, "auxiliary": False},
            "teaches the layers before the last",
        ),
    ],
)
def test_where_it_does_nothing_it_is_refused(model, loss, message):
    with pytest.raises(UserError, match=message):
        check_model(ModelConfig(**model), LossConfig(**loss))
