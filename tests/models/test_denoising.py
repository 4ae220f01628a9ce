"""Denoising queries against loops written from the equations; what they may see; what they must not change."""

import math
from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_convert, box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from models.denoising import DenoisingQueries, draw_noise, move_corners
from models.from_config import build_criterion, build_model
from models.limits import check_model
from tests.models.helpers import padded_batch, random_objects, scramble, small_config, small_model
from util.config import LossConfig
from util.errors import UserError
from util.objects import Objects
from util.syncs import count_syncs

SOURCES = [{"reference": "box"}, {"two_stage": True}]
CRITERION = build_criterion(LossConfig())


def seeded(counts: list[int], first: int = 7) -> list[Objects]:
    return [replace(o, seed=first + i) for i, o in enumerate(random_objects(counts))]


def denoiser(num: int = 6, loss: LossConfig | None = None, double: bool = True, **options) -> torch.nn.Module:
    options = {"reference": "box", "refinement": True, "denoising_queries": num, **options}
    if options.get("two_stage"):
        options["reference"] = "point"
    model = small_model(loss=loss, **options)
    scramble(model)
    return (model.double() if double else model).eval()  # batch norms keep their statistics


def queries_of(model, images, mask, objects):
    """What the decoder is given for training."""
    found = {}
    original = model.transformer.decode
    model.transformer.decode = lambda queries, *rest: original(found.setdefault("queries", queries), *rest)
    try:
        return model(images, mask, objects), found["queries"]
    finally:
        model.transformer.decode = original


def batch(count: int):
    images, mask = padded_batch([(64, 64)] * count)
    return images.double(), mask


# The noise


def test_noise_is_that_of_the_equations():
    """Every query of three images, from the same random numbers, one coordinate after the other."""
    model, objects = denoiser(6), seeded([2, 0, 4])
    _, queries = queries_of(model, *batch(3), objects)
    group = queries.groups[1]
    reference, content = queries.reference[:, group.queries], queries.content[:, group.queries]
    weight, seen = model.training_queries["denoising"].label_embed.weight, 0
    for i, of_image in enumerate(objects):
        count = len(of_image.labels)
        groups = 6 // count if count else 6
        replaced, moves = draw_noise(of_image.seed, (groups, 2, count), 5, 0.5)
        assert group.weights[i] == pytest.approx(1 / groups)
        for g in range(groups):
            for negative in (0, 1):
                for t in range(count):
                    q = g * 2 * count + negative * count + t
                    x, y, w, h = of_image.boxes[t].tolist()
                    label = int(of_image.labels[t]) if replaced[g, negative, t] < 0 else int(replaced[g, negative, t])
                    corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                    for c in range(4):
                        move = float(moves[g, negative, t, c])
                        assert (1 <= abs(move) <= 2) if negative else abs(move) < 1
                        corners[c] = min(max(corners[c] + move * (w, h, w, h)[c] / 2, 0.0), 1.0)
                    x1, y1, x2, y2 = corners
                    expected = [(x1 + x2) / 2, (y1 + y2) / 2, max(x2 - x1, 0.0), max(y2 - y1, 0.0)]
                    assert reference[i, q].tolist() == pytest.approx(expected, abs=1e-7)
                    assert torch.equal(content[i, q], weight[label])
                    assert group.penalised[i, q]
                    seen += 1
        assert int(group.penalised[i].sum()) == 2 * groups * count
    assert seen == len(group.assignment.query) * 2 == 2 * (3 * 2 + 1 * 4)
    pairs = zip(*(v.tolist() for v in (group.assignment.image, group.assignment.query, group.assignment.object)))
    assert set(pairs) == {(0, 4 * g + t, t) for g in range(3) for t in range(2)} | {(2, t, 2 + t) for t in range(4)}


def test_half_of_the_share_of_labels_is_replaced_at_random():
    replaced, moves = draw_noise(3, (1000, 2, 20), 10, 0.5)
    assert (replaced >= 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    counts = torch.bincount(replaced[replaced >= 0], minlength=10)
    assert len(counts) == 10 and counts.min() > 800 and counts.max() < 1200
    assert (moves > 0).float().mean((0, 1, 2)).tolist() == pytest.approx([0.5] * 4, abs=0.01)
    size = moves.abs()
    assert size[:, 0].min() >= 0 and size[:, 0].max() < 1
    assert size[:, 1].min() >= 1 and size[:, 1].max() <= 2
    assert size[:, 0].mean().item() == pytest.approx(0.5, abs=0.01)
    signs = moves.sign().flatten(0, 2)
    assert torch.corrcoef(signs.T).fill_diagonal_(0).abs().max() < 0.02  # a sign for each coordinate
    assert (draw_noise(3, (10, 2, 5), 10, 0.0)[0] < 0).all()
    assert not torch.equal(draw_noise(3, (10, 2, 5), 10, 1.0)[1], draw_noise(4, (10, 2, 5), 10, 1.0)[1])


@pytest.mark.parametrize("noise", [0.4, 1.0])
def test_positives_overlap_more_than_negatives_and_all_boxes_are_valid(noise):
    boxes = torch.cat([o.boxes for o in random_objects([50])]).double()
    special = [[0.01, 0.99, 0.02, 0.02], [0.5, 0.5, 1, 1], [0.5, 0.5, 0, 0]]  # in a corner, all of the image, empty
    boxes = torch.cat([boxes, torch.tensor(special)])
    _, moves = draw_noise(0, (20, 2, len(boxes)), 5, 0.5)
    found = move_corners(boxes.expand(20, 2, -1, -1), noise * moves)
    assert (found >= 0).all() and (found <= 1).all()
    corners = box_convert(found, "cxcywh", "xyxy")
    assert (corners >= -1e-12).all() and (corners <= 1 + 1e-12).all()
    truth = box_convert(boxes[:-2], "cxcywh", "xyxy")
    overlap = torch.stack([box_iou(truth, corners.flatten(0, 1)[i, :-2]).diagonal() for i in range(40)])
    positive, negative = overlap[0::2], overlap[1::2]
    assert positive.mean() > negative.mean() + 0.2
    assert negative.max() < 0.9  # corners that have passed each other would give the object back, if turned round
    if noise == 0.4:
        assert positive.min() > 0.2


def test_empty_and_border_boxes_stay_finite():
    model, objects = denoiser(6), seeded([3])
    objects[0].boxes.copy_(torch.tensor([[0.5, 0.5, 1, 1], [0, 0, 0, 0], [1, 1, 1e-3, 1e-3]]))
    for seed in range(5):
        losses = CRITERION(model(*batch(1), [replace(objects[0], seed=seed)]), objects)
        total = sum(losses.values())
        model.zero_grad()
        total.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        assert torch.isfinite(total)


def test_noise_follows_the_image_and_not_the_batch():
    model, objects = denoiser(6), seeded([2, 3, 1])
    _, together = queries_of(model, *batch(3), objects)
    state = torch.get_rng_state()
    _, turned = queries_of(model, *batch(3), objects[::-1])
    assert torch.equal(torch.get_rng_state(), state)  # dropout's numbers are not touched
    place = together.groups[1].queries
    assert torch.equal(together.reference[:, place], turned.reference[:, place].flip(0))
    assert torch.equal(together.content[:, place], turned.content[:, place].flip(0))
    again = [replace(o, seed=o.seed + 1) for o in objects]
    _, other = queries_of(model, *batch(3), again)
    assert not torch.equal(together.reference[:, place], other.reference[:, place])


# What sees what


@pytest.mark.parametrize("options", SOURCES)
def test_groups_see_themselves_alone(options):
    """What one query is at first is changed; the queries of its group notice, to the bit no other does."""
    model, objects = denoiser(6, **options), seeded([2, 1])
    images, mask = batch(2)
    plain, queries = queries_of(model, images, mask, objects)
    start = queries.groups[1].queries.start
    original = model.training_queries["denoising"].forward
    for query, group in ((1, range(0, 4)), (6, range(4, 8)), (11, range(8, 12))):  # 2 objects: three groups of four

        def changed(*inputs, query=query):
            found = original(*inputs)
            content = found.content.clone()
            content[0, query] += 1
            return replace(found, content=content)

        model.training_queries["denoising"].forward = changed
        other = model(images, mask, objects)
        same = (plain.groups[1].logits == other.groups[1].logits).all(-1).all(0)  # [B, q]
        assert (~same[0]).nonzero().flatten().tolist() == list(group)
        assert same[1].all()
        assert torch.equal(plain.logits, other.logits) and torch.equal(plain.boxes, other.boxes)
    model.training_queries["denoising"].forward = original

    padding = ~queries.groups[1].penalised
    assert padding[1].sum() == 0 and padding[0].sum() == 0
    # Matched queries do not reach denoising queries either.
    source = model.queries.forward

    def moved(*inputs):
        found = source(*inputs)
        return replace(found, content=found.content + 1)

    model.queries.forward = moved
    other = model(images, mask, objects)
    assert start == 12 and not torch.equal(plain.logits, other.logits)
    assert torch.equal(plain.groups[1].logits, other.groups[1].logits)


def test_padding_is_seen_by_none_and_costs_nothing():
    model, objects = denoiser(8), seeded([3, 0, 1])  # two groups of three: 12 of 16 queries
    plain, queries = queries_of(model, *batch(3), objects)
    padding = ~queries.groups[1].penalised
    assert padding.sum(1).tolist() == [4, 16, 0]
    original = model.training_queries["denoising"].forward

    def changed(*inputs):
        found = original(*inputs)
        return replace(found, content=torch.where(padding[..., None], found.content + 1, found.content))

    model.training_queries["denoising"].forward = changed
    other = model(*batch(3), objects)
    same = (plain.groups[1].logits == other.groups[1].logits).all(-1).all(0)
    assert torch.equal(same, ~padding)
    before, after = CRITERION(plain, objects), CRITERION(other, objects)
    assert before == after and all(before[f"class/denoising.{i}"] > 0 for i in (0, 1))


# Losses


@pytest.mark.parametrize("options", SOURCES)
def test_losses_are_those_of_a_loop_divided_by_objects_and_groups(options):
    model, objects = denoiser(7, **options), seeded([3, 0, 2])
    out, _ = queries_of(model, *batch(3), objects)
    losses = CRITERION(out, objects)
    group = out.groups[1]
    assert group.name == "denoising"
    for layer in (0, 1):
        sums = {"class": 0.0, "l1": 0.0, "giou": 0.0}
        for i, of_image in enumerate(objects):
            count = len(of_image.labels)
            groups = 7 // max(count, 1)
            for q in range(2 * count * groups):
                logits, box = group.logits[layer, i, q], group.boxes[layer, i, q]
                t, positive = q % count, q % (2 * count) < count
                wanted = torch.zeros_like(logits)
                if positive:
                    wanted[of_image.labels[t]] = 1
                    truth = of_image.boxes[t].double()
                    sums["l1"] += 5 * (box - truth).abs().sum() / groups
                    pair = [box_convert(b[None], "cxcywh", "xyxy") for b in (box, truth)]
                    sums["giou"] += 2 * generalized_box_iou_loss(*pair).sum() / groups
                sums["class"] += 2 * sigmoid_focal_loss(logits, wanted, 0.25, 2, reduction="sum") / groups
        for name, expected in sums.items():
            assert losses[f"{name}/denoising.{layer}"].item() == pytest.approx(expected.item() / 5, rel=1e-5)


@pytest.mark.parametrize("options", SOURCES)
@pytest.mark.parametrize("num", [2, 6])  # with 2, an image has more objects than that, and the queries are more
def test_micro_batches_give_the_loss_and_the_gradients_of_the_batch(num, options):
    model, objects = denoiser(num, **options), seeded([3, 0, 1])
    images, mask = batch(3)

    def gradients(parts):
        model.zero_grad()
        total = 0.0
        for at in parts:
            losses = CRITERION(model(images[at], mask[at], objects[at]), objects[at], num_boxes=4)
            loss = sum(losses.values())
            loss.backward()
            total += loss.item()
        return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    whole, of_whole = gradients([slice(0, 3)])
    parts, of_parts = gradients([slice(i, i + 1) for i in range(3)])
    assert parts == pytest.approx(whole, rel=1e-12)
    for name, gradient in of_whole.items():
        torch.testing.assert_close(of_parts[name], gradient, rtol=1e-12, atol=1e-12)


def test_more_objects_than_queries_have_one_group():
    model, objects = denoiser(4), seeded([9, 2])
    out, queries = queries_of(model, *batch(2), objects)
    group = queries.groups[1]
    assert queries.lengths == [12, 24]  # a multiple of 2 * 4, to which 18 are padded
    assert group.weights.tolist() == [1, 1 / 2] and group.penalised.sum(1).tolist() == [18, 8]
    assert len(group.assignment.query) == 9 + 4
    assert all(torch.isfinite(loss) for loss in CRITERION(out, objects).values())
    for counts in ([4, 1], [0, 0], [3]):  # and one length in all other steps
        assert queries_of(model, *batch(len(counts)), seeded(counts))[1].lengths == [12, 8]


@pytest.mark.parametrize("options", SOURCES)
@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("counts", [[0, 0], [2, 0]])
def test_every_trainable_parameter_gets_a_gradient(options, auxiliary, counts):
    loss = LossConfig(auxiliary=auxiliary)
    model, objects = denoiser(6, loss, **options).train(), seeded(counts)
    losses = build_criterion(loss)(model(*batch(2), objects), objects)
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    learnt = model.training_queries["denoising"].label_embed.weight.grad
    assert bool(learnt.any()) == any(counts)
    if not any(counts):
        assert all(value == 0 for name, value in losses.items() if "denoising" in name)


# What must stay as it is


@pytest.mark.parametrize("options", SOURCES)
def test_inference_is_that_of_a_detector_without(options):
    model = denoiser(6, **options)
    without = denoiser(0, **options)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("training_queries.")}
    without.load_state_dict(state)
    images, mask = batch(2)
    for training in (False, True):
        found, expected = (m.train(training)(images, mask) for m in (model, without))
        assert len(found.groups) == 1 and torch.equal(expected.logits, found.logits)
        assert torch.equal(expected.boxes, found.boxes)


@pytest.mark.parametrize("options", SOURCES)
def test_matched_queries_learn_the_same_beside_denoising(options):
    model, objects = denoiser(6, **options), seeded([2, 1])
    without = denoiser(0, **options)
    without.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("training_queries.")})
    losses, alone = (CRITERION(m(*batch(2), objects), objects) for m in (model, without))
    for name, loss in alone.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-9, atol=1e-12)
    assert {n.split("/")[1] for n in losses.keys() - alone.keys()} == {"denoising.0", "denoising.1"}


@pytest.mark.parametrize("options", SOURCES)
def test_under_autocast_and_with_checkpoints(options):
    model, objects = denoiser(6, double=False, **options), seeded([2, 1])
    images, mask = padded_batch([(64, 64)] * 2)
    model.train()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.eval()
    results = []
    for checkpointing in (False, True):
        model.transformer.checkpointing = checkpointing
        model.zero_grad()
        loss = sum(CRITERION(model(images, mask, objects), objects).values())
        loss.backward()
        results.append((loss.detach(), model.training_queries["denoising"].label_embed.weight.grad.clone()))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images, mask, objects)
    half = sum(CRITERION(out, objects).values())
    half.backward()
    assert out.groups[1].boxes.dtype == torch.float32
    assert half.item() == pytest.approx(results[0][0].item(), rel=0.05)


def test_nothing_waits_for_the_device():
    model = denoiser(6, double=False)
    objects = seeded([2, 0, 1])
    images, mask = padded_batch([(64, 64)] * 3)
    model(images, mask, objects)  # constants are made
    with count_syncs() as found:
        out = model(images, mask, objects)
    assert found.total == 0, str(found)
    with count_syncs() as found:
        sum(CRITERION(out, objects).values()).backward()
    assert found.total == 1, str(found)  # the matcher's


@pytest.mark.slow
def test_a_decoder_layer_is_one_graph():
    model, objects = denoiser(6, decoder_layers=1), seeded([2, 1])
    images, mask = batch(2)
    plain = model(images, mask, objects)
    torch._dynamo.reset()
    for layer in model.transformer.decoder:
        layer.compile(fullgraph=True, dynamic=True, backend="eager")
    compiled = model(images, mask, objects)
    torch.testing.assert_close(compiled.groups[1].logits, plain.groups[1].logits, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_it_learns_to_denoise():
    model, objects = denoiser(6, double=False).train(), seeded([3, 2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images, mask = padded_batch([(48, 48), (48, 32)])
    history = []
    for _ in range(30):
        losses = CRITERION(model(images, mask, objects), objects)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(sum(loss.item() for name, loss in losses.items() if "denoising" in name))
    assert history[-1] < 0.7 * history[0] and math.isfinite(history[-1])


@pytest.mark.parametrize(
    ("options", "loss", "said"),
    [
        ({"denoising_queries": 100}, {}, "add --model.reference box"),
        ({"denoising_queries": -1}, {}, "denoising_queries is -1"),
        ({}, {"denoising_label_noise": 0.2}, r"loss\.denoising_label_noise is about noised objects"),
        ({}, {"denoising_box_noise": 0.2}, r"loss\.denoising_box_noise is about noised objects"),
        ({"denoising_queries": 9, "reference": "box"}, {"denoising_box_noise": 0.0}, "negatives start where positives"),
    ],
)
def test_what_would_do_nothing_is_refused(options, loss, said):
    with pytest.raises(UserError, match=said):
        check_model(small_config(**options), LossConfig(**loss))


def test_options_reach_the_queries():
    loss = LossConfig(denoising_label_noise=0.3, denoising_box_noise=0.4)
    model = build_model(small_config(denoising_queries=9, two_stage=True), 5, loss)
    (queries,) = model.training_queries.values()
    assert isinstance(queries, DenoisingQueries) and queries.num_queries == 9
    assert (queries.label_noise, queries.box_noise, queries.num_classes) == (0.3, 0.4, 5)
