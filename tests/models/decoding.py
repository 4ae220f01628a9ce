"""Detectors in float64, and what their decoder was given and found, for tests of the decoder's options."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.memory import Memory
from models.queries import Queries
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import BackboneConfig

SIZES = [(48, 48), (48, 32)]


def decoding_model(**options) -> nn.Module:
    backbone = BackboneConfig("test_resnet", "none", frozen_stages=0)
    model = small_model(**{"backbone": backbone, "num_queries": 6, "decoder_layers": 4, "refinement": True} | options)
    scramble(model)
    return model.double().eval()


@dataclass
class Decoded:
    """What one decoder took and gave: its queries and memory, logits and boxes, and the arguments of each layer."""

    queries: Queries
    memory: Memory
    logits: Tensor
    boxes: Tensor
    layers: list[tuple]


def decode(model: nn.Module, train: bool = True) -> Decoded:
    """Run a detector on a small batch of two images, the second of them padded."""
    images, mask = padded_batch(SIZES)
    objects = [replace(o, boxes=o.boxes.double(), seed=i) for i, o in enumerate(random_objects([2, 4]))]
    transformer, layers = model.transformer, []
    handles = [layer.register_forward_pre_hook(lambda _, args: layers.append(args)) for layer in transformer.decoder]
    original, seen = transformer.decode, []

    def watched(queries, memory, *more):
        logits, boxes, edges = original(queries, memory, *more)
        seen[:] = [queries, memory, logits, boxes]
        return logits, boxes, edges

    transformer.decode = watched
    model(images.double(), mask, objects if train else None)
    transformer.decode = original
    for handle in handles:
        handle.remove()
    return Decoded(*seen, layers)


def assert_same_gradients(model: nn.Module, found: Tensor, wanted: Tensor) -> None:
    """Of a random sum of both, for every parameter."""
    factors = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parameters = [p for p in model.parameters() if p.requires_grad]
    of_found, of_wanted = (
        torch.autograd.grad((values * factors).sum(), parameters, retain_graph=True, allow_unused=True)
        for values in (found, wanted)
    )
    for one, other in zip(of_found, of_wanted):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
