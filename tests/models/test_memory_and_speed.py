"""What must not change results: compiling, channels_last."""

import pytest
import torch
from torch._dynamo.utils import counters

from tests.models.helpers import padded_batch, small_model


def outcome(model: torch.nn.Module, images, mask) -> tuple[torch.Tensor, dict]:
    model.zero_grad()
    predictions = model(images, mask)
    (predictions.logits.square().sum() + predictions.boxes.square().sum()).backward()
    return predictions.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["deformable", "hybrid"])
def test_compiling_gives_the_same_results_without_graph_breaks(encoder):
    """Encoder and decoder layers are compiled with fullgraph, which makes a break an error."""
    model = small_model(refinement=True, two_stage=True, encoder=encoder, encoder_layers=2).double()
    batches = [
        [t.double() if t.is_floating_point() else t for t in padded_batch(s)] for s in ([(70, 90)], [(96, 64)] * 2)
    ]
    model.eval()  # batch norms keep their statistics
    eager = [outcome(model, *batch) for batch in batches]
    torch._dynamo.reset()
    counters.clear()
    model.compile_parts(backend="aot_eager")
    compiled = [outcome(model, *batch) for batch in batches]
    for (logits, gradients), (of_compiled, compiled_gradients) in zip(eager, compiled):
        torch.testing.assert_close(of_compiled, logits, rtol=1e-9, atol=1e-9)
        assert gradients.keys() == compiled_gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(compiled_gradients[name], gradient, rtol=1e-7, atol=1e-9)
    assert counters["frames"]["ok"] >= 4 and not counters["graph_break"]
    names = [name for name, _ in model.named_parameters()]
    assert not any("_orig_mod" in name for name in names)  # checkpoints keep their keys


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_encoder_and_decoder_are_one_graph_each(what):
    model = small_model(refinement=True).eval()
    images, mask = padded_batch([(48, 64)])
    torch._dynamo.reset()
    setattr(model.transformer, what, torch.compile(getattr(model.transformer, what), backend="eager", fullgraph=True))
    plain = small_model(refinement=True).eval()(images, mask)
    torch.testing.assert_close(model(images, mask).logits, plain.logits)


def test_the_backbone_computes_in_channels_last():
    backbone = small_model().backbone
    weights = [p for p in backbone.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
