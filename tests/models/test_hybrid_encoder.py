"""The hybrid encoder beside loops written from its equations, its padding, sizes, and what it goes with."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.looks.effective import trace
from analysis.looks.sampling import record_sampling
from models.criterion import total_loss
from models.from_config import build_criterion
from models.hybrid_encoder import CrossScaleFusion, IntraScaleLayer, hybrid_encoder
from models.reduce import reduce_model
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import BackboneConfig, LossConfig
from util.counting import count_flops, parameters_by_part
from util.errors import UserError

SHAPES = [(7, 9), (4, 5), (2, 3)]  # each half of the one before, rounded up
E, HEADS, GROUPS = 16, 4, 4


def inputs(shapes=SHAPES, batch: int = 2, seed: int = 0):
    """Tokens, position, reference (which nothing reads), shapes and a mask with padding to the right and below."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(h * w for h, w in shapes)
    tokens, position = (torch.randn(batch, count, E, generator=generator).double() for _ in range(2))
    masks = []
    for i, (h, w) in enumerate(shapes):
        mask = torch.zeros(batch, h, w, dtype=torch.bool)
        mask[1:, :, math.ceil(6 / 2**i) :] = True
        mask[1:, math.ceil(5 / 2**i) :] = True
        masks.append(mask.flatten(1))
    return tokens, position, torch.empty(0), list(shapes), torch.cat(masks, 1)


def encoder(ignore_padding: bool, num_layers: int = 2, scales=(2, 2)) -> torch.nn.ModuleList:
    torch.manual_seed(0)
    layers = hybrid_encoder(E, scales, num_layers, HEADS, 24, 0.0, GROUPS, ignore_padding)
    made = torch.nn.ModuleList(layers)
    scramble(made)
    return made.double()


def run(layers, tokens, *rest) -> Tensor:
    for layer in layers:
        tokens = layer(tokens, *rest)
    return tokens


def layer_norm(x: Tensor, weights: dict, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention_by_hand(tokens: Tensor, position: Tensor, padding: Tensor, w: dict) -> Tensor:
    """One image `[N, E]`, token by token and head by head."""
    wide = E // HEADS
    q_in = tokens + position
    q, k, v = (
        source @ w["self_attn.in_proj_weight"][i * E : (i + 1) * E].T + w["self_attn.in_proj_bias"][i * E : (i + 1) * E]
        for i, source in enumerate((q_in, q_in, tokens))
    )
    attended = torch.zeros_like(tokens)
    for n in range(len(tokens)):
        for head in range(HEADS):
            part = slice(head * wide, (head + 1) * wide)
            seen = [m for m in range(len(tokens)) if not padding[m]]
            scores = [math.exp(float(q[n, part] @ k[m, part]) / math.sqrt(wide)) for m in seen]
            attended[n, part] = sum(s / sum(scores) * v[m, part] for s, m in zip(scores, seen))
    attended = attended @ w["self_attn.out_proj.weight"].T + w["self_attn.out_proj.bias"]
    x = layer_norm(tokens + attended, w, "norm1")
    inner = x @ w["ffn.linear1.weight"].T + w["ffn.linear1.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return layer_norm(x + inner @ w["ffn.linear2.weight"].T + w["ffn.linear2.bias"], w, "norm2")


def conv_by_hand(x: Tensor, padding: Tensor, w: dict, name: str, ignore: bool, out=None, stride: int = 1) -> Tensor:
    """Convolution, norm and SiLU of one image `[C, H, W]`; padding `[H, W]`, and that of the map it leads to."""
    kernel = w[f"{name}.conv.weight"]
    if kernel.shape[-1] > 1:
        x = torch.where(padding, 0.0, x)
    x = F.conv2d(x[None], kernel, stride=stride, padding=kernel.shape[-1] // 2)[0]
    inside = ~(padding if out is None else out)
    normed = torch.zeros_like(x)
    for group in torch.arange(E).split(E // GROUPS):
        counted = x[group][:, inside] if ignore else x[group].flatten(1)
        mean = counted.mean()
        normed[group] = (x[group] - mean) / (counted.square().mean() - mean.square() + 1e-5).sqrt()
    normed = normed * w[f"{name}.norm.weight"][:, None, None] + w[f"{name}.norm.bias"][:, None, None]
    return (torch.where(inside, normed, 0.0) if ignore else normed) * torch.sigmoid(
        torch.where(inside, normed, 0.0) if ignore else normed
    )


def fuse_by_hand(x: Tensor, padding: Tensor, w: dict, name: str, ignore: bool) -> Tensor:
    y = conv_by_hand(x, padding, w, f"{name}.entry", ignore)
    for i in range(3):
        y = conv_by_hand(y, padding, w, f"{name}.blocks.{i}", ignore)
    return y + conv_by_hand(x, padding, w, f"{name}.bypass", ignore)


def fusion_by_hand(maps: list[Tensor], paddings: list[Tensor], w: dict, ignore: bool) -> list[Tensor]:
    """RT-DETR, figure 4, of one image: down from the deepest map, then up from the shallowest."""
    last = len(maps) - 1
    inner = {last: maps[last]}
    for i in range(last - 1, -1, -1):
        inner[i + 1] = conv_by_hand(inner[i + 1], paddings[i + 1], w, f"laterals.{i}", ignore)
        height, width = maps[i].shape[-2:]
        raised = torch.stack([inner[i + 1][:, y // 2, x // 2] for y in range(height) for x in range(width)], -1)
        joined = torch.cat([raised.view(E, height, width), maps[i]])
        inner[i] = fuse_by_hand(joined, paddings[i], w, f"top_down.{i}", ignore)
    out = [inner[0]]
    for i in range(last):
        lowered = conv_by_hand(out[i], paddings[i], w, f"strided.{i}", ignore, paddings[i + 1], stride=2)
        joined = torch.cat([lowered, inner[i + 1]])
        out.append(fuse_by_hand(joined, paddings[i + 1], w, f"bottom_up.{i}", ignore))
    return out


@pytest.mark.parametrize("ignore_padding", [False, True])
@torch.no_grad()
def test_it_is_the_loop_of_its_equations(ignore_padding):
    layers, (tokens, position, reference, shapes, mask) = encoder(ignore_padding), inputs()
    found = run(layers, tokens, position, reference, shapes, mask)
    lengths = [h * w for h, w in shapes]
    for image in range(len(tokens)):
        parts = list(tokens[image].split(lengths))
        paddings = [m.view(s) for m, s in zip(mask[image].split(lengths), shapes)]
        for layer in layers[:2]:
            deepest = position[image].split(lengths)[-1]
            parts[-1] = attention_by_hand(parts[-1], deepest, paddings[-1].flatten(), layer.state_dict())
        maps = [p.T.reshape(E, *s) for p, s in zip(parts, shapes)]
        fused = fusion_by_hand(maps, paddings, layers[2].state_dict(), ignore_padding)
        wanted = torch.cat([m.flatten(1).T for m in fused])
        torch.testing.assert_close(found[image], wanted, rtol=0, atol=1e-11)


@torch.no_grad()
def test_what_lies_on_padding_reaches_nothing():
    """Nothing at all where padding is ignored, and in attention always; norms count it as those of the neck do."""
    tokens, *rest = inputs()
    mask = rest[-1]
    other = tokens + 5 * torch.randn_like(tokens) * mask[..., None]
    for layers, same in ((encoder(True), True), (encoder(False)[:2], True), (encoder(False), False)):
        found, changed = run(layers, tokens, *rest), run(layers, other, *rest)
        assert torch.allclose(found[~mask], changed[~mask], rtol=0, atol=1e-12) == same
    assert not run(encoder(True), tokens, *rest)[mask].any()


@pytest.mark.parametrize("num_levels", [1, 2, 3, 5])
@pytest.mark.parametrize("num_layers", [0, 1, 2])
def test_any_number_of_levels_and_layers(num_levels, num_layers):
    model = small_model(encoder="hybrid", encoder_layers=num_layers, num_levels=num_levels).train()
    kinds = [type(layer) for layer in model.transformer.encoder]
    assert kinds == [IntraScaleLayer] * num_layers + [CrossScaleFusion] * (num_levels > 1)
    objects, criterion = random_objects([2, 1]), build_criterion(LossConfig())
    total_loss(criterion(model(*padded_batch([(61, 90), (75, 33)]), objects), objects)).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert model.position.level_embed.requires_grad == (num_layers > 0)


@pytest.mark.parametrize("size", [(70, 90), (65, 33), (34, 101)])
@pytest.mark.parametrize(
    ("name", "more", "scales"),
    [
        ("resnet10t", {}, [2, 2, 2]),
        ("convnext_atto", {}, [2, 2, 2]),  # it rounds sizes down
        ("resnet10t", {"output_stride": 16}, [2, 1, 2]),
    ],
)
@torch.no_grad()
def test_maps_of_any_size(name, more, scales, size):
    backbone = BackboneConfig(name=name, weights="none", frozen_stages=0, **more)
    model = small_model(encoder="hybrid", backbone=backbone, num_levels=4).eval()
    assert [c.conv.stride[0] for c in model.transformer.encoder[-1].strided] == scales
    assert model(*padded_batch([size])).logits.isfinite().all()


@torch.no_grad()
def test_an_image_gives_the_same_however_far_it_is_padded():
    backbone = BackboneConfig(name="resnet10t", weights="none", frozen_stages=0)
    images, mask = (t.double() if t.is_floating_point() else t for t in padded_batch([(53, 90)]))
    model = small_model(encoder="hybrid", backbone=backbone, num_levels=4, ignore_padding=True, two_stage=True)
    scramble(model)
    model = model.double().eval()
    alone = model(images, mask)
    for right, below in ((37, 59), (0, 75), (130, 12)):
        padded = model(F.pad(images, (0, right, 0, below)), F.pad(mask, (0, right, 0, below), value=True))
        torch.testing.assert_close(padded.logits, alone.logits, rtol=0, atol=1e-9)


def test_gradients_are_those_of_differences():
    layers, (tokens, *rest) = encoder(True, 1), inputs([(3, 3), (2, 2)], 1)
    layers = torch.nn.ModuleList([layers[0], encoder(True, 0, (2,))[0]])
    assert torch.autograd.gradcheck(lambda t: run(layers, t, *rest), tokens[:1].requires_grad_())


def test_a_frozen_encoder_stays_as_it_is():
    model = small_model(encoder="hybrid", dropout=0.5).train()
    model.freeze(["encoder"])
    assert not any(p.requires_grad for p in model.transformer.encoder.parameters())
    assert not any(m.training for m in model.transformer.encoder.modules())


@torch.no_grad()
def test_what_looks_into_an_encoder_goes_on_without_sampling_points():
    model = small_model(encoder="hybrid").eval()
    images, mask = padded_batch([(64, 64)])
    record = record_sampling(model, images, mask)
    assert record.encoder == [] and len(record.decoder) == 2
    assert float(trace(record, 0).token_mass.sum()) <= 1 + 1e-9
    flops = count_flops(model, lambda: model(images, mask))
    assert flops["encoder"] > 0
    part = next(p for p in parameters_by_part(model) if p.name == "encoder")
    assert part.trainable == sum(p.numel() for p in model.transformer.encoder.parameters())
    assert reduce_model(model, num_points=1, decoder_layers=1)(images, mask).logits.isfinite().all()
    with pytest.raises(UserError, match="encoder_points cannot change: the checkpoint's encoder samples nothing"):
        reduce_model(model, encoder_points=1)


@pytest.mark.parametrize("option", [{"encoder_points": 2}, {"cross_level": False}])
def test_options_of_sampling_are_refused(option):
    with pytest.raises(UserError, match=f"model.{next(iter(option))} is about sampling in the deformable encoder"):
        small_model(encoder="hybrid", **option)
