"""The norm of decoder states as DINO has it: what is predicted reads it, what moves references does not."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.decoding import assert_same_gradients, decode, decoding_model
from tests.models.helpers import small_model


def logit(box: Tensor) -> Tensor:
    return F.pad(torch.log(box.clamp(1e-5, 1) / (1 - box).clamp(1e-5, 1)), (0, 4 - box.shape[-1]))


def by_hand(model, done, look_forward: int, refinement: bool) -> tuple[Tensor, Tensor]:
    """Layer by layer: the next reference from the state x, class and box of a layer from norm(x)."""
    norm, heads = model.transformer.decoder_norm, model.heads
    content, seen, start, logits, boxes = done.queries.content, done.queries.reference, done.queries.reference, [], []
    for i, layer in enumerate(model.transformer.decoder):
        on_maps = seen[:, :, None] * done.memory.valid_ratios.repeat(1, 1, seen.shape[-1] // 2)[:, None]
        memory = done.memory.tokens, done.memory.spatial_shapes, done.memory.padding_mask
        groups = done.queries.runs() if len(done.queries.groups) > 1 else None
        content = layer(content, done.queries.position, on_maps, *memory, groups)
        centred = content - content.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        normed = centred / deviation * norm.weight + norm.bias
        head = heads[i] if refinement else heads[0]
        logits.append(head.classify(normed))
        boxes.append((head.regress(normed) + logit(start)).sigmoid())
        if refinement:
            moved = (head.regress(content) + logit(seen)).sigmoid()
            seen = moved.detach()
            start = moved if look_forward == 2 else seen
    return torch.stack(logits), torch.stack(boxes)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"refinement": False},
        {"two_stage": True, "hybrid_queries": 5},
        {"two_stage": True, "look_forward": 2},
        {"reference": "box", "look_forward": 2, "denoising_queries": 5},
    ],
)
def test_predictions_and_gradients_are_those_of_dino(options):
    model = decoding_model(decoder_norm=True, **options)
    done = decode(model)
    logits, boxes = by_hand(model, done, options.get("look_forward", 1), options.get("refinement", True))
    torch.testing.assert_close(done.logits, logits, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(done.boxes, boxes, rtol=1e-9, atol=1e-10)
    assert_same_gradients(model, torch.cat([done.logits, done.boxes], -1), torch.cat([logits, boxes], -1))


def test_it_is_part_of_the_decoder():
    model = small_model(decoder_norm=True)
    assert {n for n in model.state_dict() if "decoder_norm" in n} == {
        f"transformer.decoder_norm.{n}" for n in ("weight", "bias")
    }
    model.freeze(["decoder"])
    assert not any(p.requires_grad for p in model.transformer.decoder_norm.parameters())
