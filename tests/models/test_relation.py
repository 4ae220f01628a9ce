"""The relation of boxes (arXiv 2407.11699) by hand, in loops, and in one attention over all groups."""

import math

import pytest
import torch
from einops import rearrange

from models.limits import check_model
from models.queries import Run
from models.relation import BoxRelation, relation_between
from tests.models.decoding import decode, decoding_model
from tests.models.helpers import scramble, small_model
from util.config import ModelConfig
from util.errors import UserError


def random_boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1


def test_a_pair_by_hand():
    """The source is 0.2 wide, 0.1 high; the target lies 0.2 to the left and 0.3 below, twice as wide, half as high."""
    source, target = torch.tensor([[[0.5, 0.4, 0.2, 0.1]]]).double(), torch.tensor([[[0.3, 0.7, 0.4, 0.05]]]).double()
    expected = [math.log(2), math.log(4), math.log(1 / 2), math.log(2)]
    assert relation_between(source, target)[0, 0, 0].tolist() == pytest.approx(expected, abs=1e-3)  # eps is 1e-5
    assert relation_between(source, target, eps=0)[0, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert relation_between(target, source, eps=0)[0, 0, 0].tolist() == pytest.approx(
        [math.log(1.5), math.log(7), math.log(2), math.log(1 / 2)], abs=1e-6
    )


def test_the_bias_is_that_of_the_formulas():
    relation, source, target = BoxRelation(3).double(), random_boxes(2, 4), random_boxes(2, 4, seed=1)
    relation.requires_grad_(False)
    scramble(relation)
    found = relation.bias(source, target)
    assert found.shape == (2, 3, 4, 4) and (found > 0).any() and (found == 0).any()
    for b in range(2):
        for i in range(4):
            for j in range(4):
                (x1, y1, w1, h1), (x2, y2, w2, h2) = source[b, i].tolist(), target[b, j].tolist()
                eps, waves = 1e-5, []
                for number in (
                    math.log(abs(x1 - x2) / (w1 + eps) + 1),
                    math.log(abs(y1 - y2) / (h1 + eps) + 1),
                    math.log((w1 + eps) / (w2 + eps)),
                    math.log((h1 + eps) / (h2 + eps)),
                ):
                    for k in range(8):
                        angle = 100 * number / 10000 ** (2 * k / 16)
                        waves += [math.sin(angle), math.cos(angle)]
                for head in range(3):
                    row = relation.projection.weight[head].tolist()
                    logit = sum(a * w for a, w in zip(row, waves)) + float(relation.projection.bias[head])
                    assert float(found[b, head, i, j]) == pytest.approx(max(0, logit), rel=1e-9, abs=1e-11)


def test_a_layer_adds_the_bias_to_its_logits():
    """The layer's self-attention, written as a softmax; and a masked pair has no weight."""
    model = decoding_model(relation=True, two_stage=True)
    layer, heads = model.transformer.decoder[1], 4
    content, q = (torch.randn(2, 5, 32, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(2, 5, 5, dtype=torch.bool)
    mask[1, 0, 3] = True
    (run,) = model.transformer.relation(random_boxes(2, 5), random_boxes(2, 5, seed=1), [Run(5, 1, mask)])
    bias = model.transformer.relation.bias(random_boxes(2, 5), random_boxes(2, 5, seed=1))
    assert run.mask.isinf().sum() == heads and torch.equal(run.mask.isinf().any(1), mask)
    found = layer._attend_within_groups(q, content, [run])
    of_q, of_k, of_v = layer.self_attn.in_proj_weight.chunk(3)
    bias_q, bias_k, bias_v = layer.self_attn.in_proj_bias.chunk(3)
    queries, keys, values = (
        rearrange(x @ w.T + b, "b q (m d) -> b m q d", m=heads)
        for x, w, b in ((q, of_q, bias_q), (q, of_k, bias_k), (content, of_v, bias_v))
    )
    weights = (queries @ keys.transpose(2, 3) / math.sqrt(8) + bias).exp() * ~mask[:, None]
    attended = weights / weights.sum(-1, keepdim=True) @ values
    expected = layer.self_attn.out_proj(rearrange(attended, "b m q d -> b q (m d)"))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"two_stage": True}, {"reference": "box"}, {}, {"two_stage": True, "decoder_norm": True}]
)
@torch.no_grad()
def test_layers_are_told_the_boxes_of_the_two_before(options):
    """The first box is where queries start; if that is a point, the third layer is the first to be told."""
    model, told = decoding_model(relation=True, **options), []
    model.transformer.relation.register_forward_pre_hook(lambda _, args: told.append(args[:2]))
    done = decode(model, train=False)
    starts = [done.queries.reference] if done.queries.reference.shape[-1] == 4 else []
    boxes = [*starts, *done.boxes]
    assert len(told) == len(starts) + 2
    for (source, target), earlier, later in zip(told, boxes, boxes[1:]):
        assert torch.equal(source, earlier) and torch.equal(target, later)
    masked = [args[-1] is not None and args[-1][0].mask is not None for args in done.layers]
    assert masked == [False, bool(starts), True, True]


@torch.no_grad()
def test_groups_attend_as_in_one_attention_over_all_queries():
    """Between groups -inf; within groups the bias, but for hybrid queries, as in Relation-DETR's code."""
    more = {"query_groups": 3, "hybrid_queries": 6, "denoising_queries": 5}
    model = decoding_model(relation=True, two_stage=True, **more)
    done = decode(model)
    boxes = [done.queries.reference, *done.boxes]
    for i, layer in enumerate(model.transformer.decoder):
        content, position, on_maps, tokens, shapes, padding, runs = done.layers[i]
        if not i:
            assert all(run.mask is None or run.mask.dtype == torch.bool for run in runs)
            continue
        everywhere = model.transformer.relation.bias(boxes[i - 1], boxes[i])
        bias, end = torch.full_like(everywhere, float("-inf")), 0
        for group, length in zip(done.queries.groups, done.queries.lengths):
            part, end = slice(end, end + length), end + length
            bias[:, :, part, part] = 0 if group.name == "hybrid" else everywhere[:, :, part, part]
            if group.attention_mask is not None:
                bias[:, :, part, part].masked_fill_(group.attention_mask[:, None], float("-inf"))
        expected = layer(content, position, on_maps, tokens, shapes, padding, [Run(end, 1, bias)])
        found = layer(content, position, on_maps, tokens, shapes, padding, runs)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert {group.name for group in done.queries.groups} == {"decoder", "group1", "group2", "hybrid", "denoising"}


def test_no_gradient_runs_into_boxes_and_empty_boxes_do_no_harm():
    relation, boxes = BoxRelation(2), random_boxes(1, 3).float()
    boxes[0, 0, 2:] = 0
    boxes.requires_grad_(True)
    bias = relation.bias(boxes, boxes)
    assert bias.isfinite().all()
    bias.sum().backward()
    assert boxes.grad is None and relation.projection.weight.grad.any()


def test_it_matters_and_is_part_of_the_decoder():
    model = decoding_model(relation=True, two_stage=True)
    with torch.no_grad():
        related = decode(model, train=False).boxes
        model.transformer.relation.projection.weight.zero_()
        model.transformer.relation.projection.bias.fill_(-1)  # nothing is left of the bias
        without = decode(model, train=False).boxes
        model.transformer.relation = None
        plain = decode(model, train=False).boxes
    assert torch.equal(related[0], plain[0]) and not torch.allclose(related[1:], plain[1:], rtol=1e-6)
    torch.testing.assert_close(without, plain, rtol=1e-10, atol=1e-12)
    model = small_model(relation=True, two_stage=True, refinement=True)
    assert {n for n in model.state_dict() if "relation" in n} == {
        f"transformer.relation.projection.{n}" for n in ("weight", "bias")
    }
    model.freeze(["decoder"])
    assert not any(p.requires_grad for p in model.transformer.relation.parameters())


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"two_stage": True}, 2),
        ({"two_stage": True, "refinement": True, "decoder_layers": 1}, 2),
        ({"reference": "box", "refinement": True, "decoder_layers": 1}, 2),
        ({"refinement": True, "decoder_layers": 2}, 3),
    ],
)
def test_where_there_are_no_two_boxes_it_is_refused(options, least):
    with pytest.raises(UserError, match=rf"model\.relation .* model\.decoder_layers {least} or more"):
        check_model(ModelConfig(relation=True, **options))
