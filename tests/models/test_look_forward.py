"""Look forward twice (arXiv 2203.03605, section 3.5) against the equations."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.limits import check_model
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import BackboneConfig, LossConfig, ModelConfig
from util.errors import UserError


def looking_model(look_forward: int, **options) -> nn.Module:
    backbone = BackboneConfig("test_resnet", "none", frozen_stages=0)
    settings = {"backbone": backbone, "num_queries": 6, "decoder_layers": 4, "refinement": True} | options
    model = small_model(look_forward=look_forward, **settings)
    scramble(model)
    return model.double().eval()


def inputs():
    images, mask = padded_batch([(48, 48), (48, 32)])
    return images.double(), mask, [replace(o, boxes=o.boxes.double()) for o in random_objects([2, 4])]


def by_hand(model: nn.Module, queries, memory) -> Tensor:
    """Boxes of every layer `[N, B, Q, 4]`: of layer i sigmoid(delta_i + logit(b'_{i-1})), with the box before detached
    in b'_{i-1} = sigmoid(delta_{i-1} + logit(b_{i-2}))."""

    def logit(box: Tensor) -> Tensor:
        return F.pad(torch.log(box / (1 - box)), (0, 4 - box.shape[-1]))

    content, boxes, deltas, starts = queries.content, [], [], [queries.reference]
    for i, layer in enumerate(model.transformer.decoder):
        seen = starts[i]  # where to sample: no gradient, but to where the first layer starts
        ratios = memory.valid_ratios.repeat(1, 1, seen.shape[-1] // 2)
        on_maps = seen[:, :, None] * ratios[:, None]
        groups = queries.runs() if len(queries.groups) > 1 else None
        content = layer(
            content, queries.position, on_maps, memory.tokens, memory.spatial_shapes, memory.padding_mask, groups
        )
        deltas.append(model.heads[i](content)[1])
        undetached = queries.reference if i == 0 else (deltas[i - 1] + logit(starts[i - 1])).sigmoid()
        boxes.append((deltas[i] + logit(undetached)).sigmoid())
        starts.append(boxes[-1].detach())
    return torch.stack(boxes)


@pytest.mark.parametrize("options", [{}, {"two_stage": True}, {"two_stage": True, "hybrid_queries": 5}])
def test_boxes_and_gradients_are_those_of_the_equations(options, monkeypatch):
    model, (images, mask, objects), seen = looking_model(2, **options), inputs(), []
    decode = model.transformer.decode

    def watched(queries, memory, *more):
        seen[:] = [queries, memory, decode(queries, memory, *more)]
        return seen[-1]

    monkeypatch.setattr(model.transformer, "decode", watched)
    model(images, mask, objects)
    queries, memory, (_, found, _) = seen
    wanted = by_hand(model, queries, memory)
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


@pytest.mark.parametrize("look_forward", [1, 2])
def test_a_box_teaches_so_many_layers(look_forward):
    model, (images, mask, _) = looking_model(look_forward), inputs()
    boxes, heads = model(images, mask).boxes, [head.regress.layers[0].weight for head in model.heads]
    for i, of_layer in enumerate(boxes):
        gradients = torch.autograd.grad(of_layer.sum(), heads, retain_graph=True, allow_unused=True)
        taught = [j for j, gradient in enumerate(gradients) if gradient is not None and gradient.any()]
        assert taught == [j for j in range(4) if i - look_forward < j <= i]


@torch.no_grad()
def test_predictions_are_the_same():
    once, twice, (images, mask, _) = looking_model(1), looking_model(2), inputs()
    assert torch.equal(once(images, mask).boxes, twice(images, mask).boxes)


@pytest.mark.parametrize(
    ("model", "auxiliary", "message"),
    [
        ({"look_forward": 3}, True, "look_forward is 3; it must be 1 or 2"),
        ({"look_forward": 2}, True, "needs model.refinement true"),
        ({"look_forward": 2, "refinement": True}, False, "loss.auxiliary true"),
        ({"look_forward": 2, "refinement": True, "decoder_layers": 1}, True, "take 2 or more"),
    ],
)
def test_where_it_does_nothing_it_is_refused(model, auxiliary, message):
    with pytest.raises(UserError, match=message):
        check_model(ModelConfig(**model), LossConfig(auxiliary=auxiliary))
