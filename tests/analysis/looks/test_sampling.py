"""What is recorded is what was sampled, in the image's coordinates, and recording changes nothing."""

import pytest
import torch
import torch.nn.functional as F

from analysis.looks.sampling import record_sampling, recording
from tests.analysis.looks.tiny import VARIANTS, tiny, two_images


def attention_layers(model):
    return [x.self_attn for x in model.transformer.encoder] + [x.cross_attn for x in model.transformer.decoder]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
@pytest.mark.parametrize("kept", [None, 1])
def test_locations_and_weights_reproduce_every_layers_output(options, kept):
    """Independently: `F.grid_sample` at the recorded points of the value maps, weighted and summed.

    Also of a model that keeps only the strongest point of each level.
    """
    model, seen = tiny(**options), []
    for module in attention_layers(model) if kept else []:
        module.kept_points = [kept] * len(module.num_points)
    images, padding_mask = two_images()
    for module in attention_layers(model):
        module.register_forward_hook(lambda m, inputs, out: seen.append((m, inputs, out)))
    model(images, padding_mask)
    plain, _ = list(seen), seen.clear()
    record = record_sampling(model, images, padding_mask)
    recorded = [*record.encoder, *record.decoder]
    assert len(recorded) == len(plain) == len(model.transformer.encoder) + 3
    for (module, (_, _, memory, shapes, padding), expected), sampling in zip(plain, recorded):
        value = module.value_proj(memory).masked_fill(padding[..., None], 0.0)
        batch, queries, heads = sampling.weights.shape[:3]
        counts = [kept] * len(shapes) if kept else module.num_points
        assert sampling.levels.tolist() == [i for i, k in enumerate(counts) for _ in range(k)]
        out = torch.zeros(batch, queries, heads, 32 // heads)
        for b in range(batch):
            start = 0
            for level, (height, width) in enumerate(shapes):
                maps = value[b, start : start + height * width].T.reshape(heads, -1, height, width)
                start += height * width
                for p in (sampling.levels == level).nonzero()[:, 0].tolist():
                    on_map = sampling.locations[b, :, :, p] * record.valid_ratios[b, level]  # [Q, M, 2]
                    grid = on_map.transpose(0, 1)[:, :, None] * 2 - 1
                    sample = F.grid_sample(maps, grid, align_corners=False)[..., 0]  # [M, D, Q]
                    out[b] += sample.permute(2, 0, 1) * sampling.weights[b, :, :, p, None]
        assert torch.allclose(module.output_proj(out.flatten(2)), expected, atol=1e-5)
        assert torch.allclose(sampling.weights.sum(-1), torch.ones(()))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_recording_changes_no_bit(options):
    model, inputs = tiny(**options), two_images()
    before = model(*inputs)
    record = record_sampling(model, *inputs)
    after = model(*inputs)
    for predictions in (record.predictions, after):
        assert torch.equal(predictions.logits, before.logits) and torch.equal(predictions.boxes, before.boxes)


def test_nothing_stays_behind_even_after_an_error():
    model, (images, padding_mask) = tiny(), two_images()
    with pytest.raises(ValueError, match="stop"), recording(model) as recorder:
        model(images, padding_mask)
        raise ValueError("stop")
    with pytest.raises((RuntimeError, ValueError)), recording(model):
        model(images[:, :2], padding_mask)
    record = recorder.last
    assert len(record.decoder) == 3
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    model(images, padding_mask)
    assert recorder.last is record  # the recording has ended


def test_of_several_passes_the_last_is_kept():
    model, (images, padding_mask) = tiny(), two_images()
    with recording(model) as recorder, torch.no_grad():
        model(images, padding_mask)
        model(images[1:], padding_mask[1:])
    record = recorder.last
    assert [s.locations.shape[0] for s in record.encoder + record.decoder] == [1] * 5
    assert record.predictions.boxes.shape[1] == 1


def test_without_a_finished_pass_there_is_no_recording():
    model, (images, padding_mask) = tiny(), two_images()
    with recording(model) as recorder:
        with pytest.raises((RuntimeError, ValueError)):
            model(images[:, :2], padding_mask)
        with pytest.raises(RuntimeError, match="no forward pass has finished"):
            recorder.last  # noqa: B018


@pytest.mark.parametrize("variant", ["refinement", "two stages"])
def test_a_layers_reference_is_the_box_of_the_layer_before(variant):
    record = record_sampling(tiny(**VARIANTS[variant]), *two_images())
    boxes = record.predictions.boxes
    for i in (1, 2):
        assert torch.allclose(record.decoder[i].references, boxes[i - 1], atol=1e-6)
    assert record.decoder[0].references.shape[-1] == (4 if variant == "two stages" else 2)


def test_locations_are_of_the_unpadded_image():
    """A padded image's tokens lie where those of the image alone do."""
    model, (images, padding_mask) = tiny(trained=False), two_images()
    padded = record_sampling(model, images, padding_mask)
    alone = record_sampling(model, images[1:, :, :48, :64], padding_mask[1:, :48, :64])
    (height, width), (small_height, small_width) = padded.spatial_shapes[0], alone.spatial_shapes[0]
    grid = padded.encoder[0].locations[1, : height * width].unflatten(0, (height, width))
    inside = grid[:small_height, :small_width].flatten(0, 1)
    assert small_width < width
    assert torch.allclose(inside, alone.encoder[0].locations[0, : small_height * small_width], atol=1e-5)
    assert torch.allclose(padded.decoder[0].locations[1], alone.decoder[0].locations[0], atol=1e-5)


# DESIGN, section 5, worked out by hand: head m looks 45 m degrees on, x to the right and y down.
DIRECTIONS = torch.tensor([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)], dtype=torch.float32)


@pytest.mark.parametrize("two_stage", [False, True])
def test_an_untrained_model_looks_in_eight_directions(two_stage):
    """The k-th point k pixels of its level away; around a box, k quarters of the way to its edge."""
    options = {"num_heads": 8, "num_points": 4, "num_levels": 4, "refinement": two_stage, "two_stage": two_stage}
    record = record_sampling(tiny(trained=False, **options), *two_images())
    sizes = torch.tensor([(w, h) for h, w in record.spatial_shapes])  # [L, 2]
    expected = DIRECTIONS[:, None, None] * torch.arange(1, 5)[:, None]  # [M, 1, K, 2]
    for sampling in record.encoder + record.decoder:
        away = (sampling.locations - sampling.references[:, :, None, None, :2])[0].unflatten(2, (4, 4))  # [Q,M,L,K,2]
        if sampling.references.shape[-1] == 4:
            found = away / (sampling.references[0, :, None, None, None, 2:] / 2) * 4
        else:
            found = away * sizes[:, None]
        assert torch.allclose(found, expected.expand_as(found), atol=1e-3)
        assert torch.allclose(sampling.weights, torch.tensor(1 / 16))


@torch.no_grad()
def test_attention_within_levels_is_recorded_as_if_the_other_levels_weighed_nothing():
    model, (images, padding_mask), calls = tiny(cross_level=False), two_images(), []
    for layer in model.transformer.encoder:
        layer.self_attn.register_forward_hook(lambda m, inputs, out: calls.append((inputs, out)))
    model(images, padding_mask)
    plain, _ = list(calls), calls.clear()
    record = record_sampling(model, images, padding_mask)
    assert len(plain) == 4 and len(record.encoder) == 2
    lengths = [h * w for h, w in record.spatial_shapes]
    for layer, sampling in enumerate(record.encoder):
        module = model.transformer.encoder[layer].self_attn
        assert sampling.levels.tolist() == [0, 0, 1, 1]
        begin = 0
        for level, length in enumerate(lengths):
            (query, reference, memory, shapes, mask), _ = plain[2 * layer + level]
            _, on_maps, weights = module(query, reference, memory, shapes, mask, return_sampling=True)
            part = slice(begin, begin + length)
            begin += length
            here = sampling.levels == level
            assert torch.equal(sampling.on_maps[:, part][..., here, :], on_maps)
            assert torch.equal(sampling.weights[:, part][..., here], weights)
            assert not sampling.weights[:, part][..., ~here].any()
            ratio = record.valid_ratios[:, None, level]
            assert torch.allclose(sampling.references[:, part], reference[:, :, 0] / ratio)
        assert begin == sampling.weights.shape[1]
    assert record_sampling(model, images, padding_mask).predictions.logits.equal(model(images, padding_mask).logits)
