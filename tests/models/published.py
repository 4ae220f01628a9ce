"""Files as other projects write them: the names and shapes of their tensors, written from the definitions of their
models, and what those models compute, written from their equations and read from the names of the file."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Size:
    """Width E, feed-forward, levels, layers, queries, further queries, classes, heads, points; blocks of the ResNet."""

    width: int = 256
    ffn: int = 2048
    levels: int = 4
    layers: int = 6
    queries: int = 900
    further: int = 1500
    classes: int = 80
    heads: int = 8
    points: int = 4
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True

    @property
    def maps(self) -> list[int]:
        """Channels of the backbone's maps."""
        return [(4 if self.bottleneck else 1) * 64 * 2**i for i in (1, 2, 3)]


TINY = Size(32, 48, layers=2, queries=9, further=4, classes=11, blocks=(2, 2, 2, 2), bottleneck=False)


def linear(name: str, out: int, width: int) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def norm(name: str, width: int, statistics: bool = False) -> Shapes:
    parts = ("weight", "bias", *(("running_mean", "running_var") if statistics else ()))
    return {f"{name}.{part}": (width,) for part in parts}


def perceptron(name: str, width: int, hidden: int, out: int, layers: int, numbers: tuple = (0, 1, 2)) -> Shapes:
    sizes = [width, *[hidden] * (layers - 1), out]
    return {k: v for i in range(layers) for k, v in linear(f"{name}.{numbers[i]}", sizes[i + 1], sizes[i]).items()}


def resnet(size: Size, prefix: str, detectron: bool = False) -> Shapes:
    """torchvision's names, or detectron2's."""
    stem, dot = ("stem.conv1", ".norm") if detectron else ("conv1", "")
    shapes: Shapes = {f"{prefix}{stem}.weight": (64, 3, 7, 7)}
    shapes |= norm(prefix + (stem + dot if detectron else "bn1"), 64, True)
    entering, wider = 64, 4 if size.bottleneck else 1
    for stage, blocks in enumerate(size.blocks):
        inner = 64 * 2**stage
        for block in range(blocks):
            name = f"{prefix}{f'res{stage + 2}' if detectron else f'layer{stage + 1}'}.{block}"
            kernels = [(inner, entering, 1), (inner, inner, 3), (inner * 4, inner, 1)]
            if not size.bottleneck:
                kernels = [(inner, entering, 3), (inner, inner, 3)]
            for i, (out, into, side) in enumerate(kernels, 1):
                shapes[f"{name}.conv{i}.weight"] = (out, into, side, side)
                shapes |= norm(f"{name}.conv{i}.norm" if detectron else f"{name}.bn{i}", out, True)
            if block == 0 and (stage or wider > 1):
                shortcut = f"{name}.shortcut" if detectron else f"{name}.downsample.0"
                shapes[f"{shortcut}.weight"] = (inner * wider, entering, 1, 1)
                shapes |= norm(f"{shortcut}.norm" if detectron else f"{name}.downsample.1", inner * wider, True)
            entering = inner * wider
    return shapes


def neck(size: Size, names: str, extra: str, norm_name: str, bias: bool) -> Shapes:
    """`names` and `extra` with the level's number, and with `.conv` or `.0` for the convolution."""
    shapes: Shapes = {}
    for level in range(size.levels):
        further = level - len(size.maps)
        name = names.format(level) if further < 0 or extra == names else extra.format(further)
        if extra == names:
            name = names.format(level)
        into = size.maps[level] if further < 0 else size.maps[-1] if further == 0 else size.width
        side = 1 if further < 0 else 3
        convolution = name + (".conv" if norm_name not in (".1",) else ".0")
        shapes[f"{convolution}.weight"] = (size.width, into, side, side)
        if bias:
            shapes[f"{convolution}.bias"] = (size.width,)
        shapes |= norm(name + norm_name, size.width)
    return shapes


def sampling(name: str, size: Size) -> Shapes:
    samples = size.heads * size.levels * size.points
    shapes = linear(f"{name}.sampling_offsets", samples * 2, size.width)
    shapes |= linear(f"{name}.attention_weights", samples, size.width)
    for part in ("value_proj", "output_proj"):
        shapes |= linear(f"{name}.{part}", size.width, size.width)
    return shapes


def attention(name: str, width: int) -> Shapes:
    shapes: Shapes = {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)}
    return shapes | linear(f"{name}.out_proj", width, width)


STYLES = {  # self-attention of the encoder, of the decoder, cross-attention, feed-forward, norms in order of use
    "torch": (
        "self_attn",
        "self_attn",
        "cross_attn",
        "linear1",
        "linear2",
        ("norm1", "norm2"),
        ("norm2", "norm1", "norm3"),
    ),
    "mmcv": ("attentions.0", "attentions.0.attn", "attentions.1", "ffns.0.layers.0.0", "ffns.0.layers.1"),
    "mmdet3": ("self_attn", "self_attn.attn", "cross_attn", "ffn.layers.0.0", "ffn.layers.1"),
}
STYLES = {
    k: v if len(v) > 5 else (*v, ("norms.0", "norms.1"), ("norms.0", "norms.1", "norms.2")) for k, v in STYLES.items()
}


def layers(size: Size, prefix: str, style: str) -> Shapes:
    of_encoder, of_decoder, cross, first, second, encoder_norms, decoder_norms = STYLES[style]
    shapes: Shapes = {}
    for part, i in ((part, i) for part in ("encoder", "decoder") for i in range(size.layers)):
        name = f"{prefix}{part}.layers.{i}."
        shapes |= linear(name + first, size.ffn, size.width) | linear(name + second, size.width, size.ffn)
        if part == "encoder":
            shapes |= sampling(name + of_encoder, size)
        else:
            shapes |= attention(name + of_decoder, size.width) | sampling(name + cross, size)
        for one in encoder_norms if part == "encoder" else decoder_norms:
            shapes |= norm(name + one, size.width)
    return shapes


def heads(size: Size, classify: str, regress: str, count: int, numbers: tuple = (0, 1, 2)) -> Shapes:
    shapes: Shapes = {}
    for i in range(count):
        shapes |= linear(classify.format(i), size.classes, size.width)
        shapes |= perceptron(regress.format(i), size.width, size.width, 4, 3, numbers)
    return shapes


def proposals(size: Size, names: tuple[str, str]) -> Shapes:
    return linear(names[0], size.width, size.width) | norm(names[1], size.width)


def positions(size: Size, names: tuple[str, str]) -> Shapes:
    return linear(names[0], 2 * size.width, 2 * size.width) | norm(names[1], 2 * size.width)


def file_of(family: str, size: Size) -> Shapes:
    """What a file of a family holds: names and shapes."""
    e, n, q = size.width, size.layers, size.queries
    embeds = {"transformer.level_embeds": (size.levels, e)}
    original = resnet(size, "backbone.0.body.") | neck(size, "input_proj.{}", "input_proj.{}", ".1", True)
    detrex = resnet(size, "backbone.", True) | neck(size, "neck.convs.{}", "neck.extra_convs.{}", ".norm", True)
    mmdet = resnet(size, "backbone.") | neck(size, "neck.convs.{}", "neck.extra_convs.{}", ".gn", False)
    two = ("transformer.enc_output", "transformer.enc_output_norm")
    pos = ("transformer.pos_trans", "transformer.pos_trans_norm")
    plain = ("class_embed.{}", "bbox_embed.{}.layers")
    below = ("transformer.decoder.class_embed.{}", "transformer.decoder.bbox_embed.{}.layers")
    dino_decoder = perceptron("transformer.decoder.ref_point_head.layers", 2 * e, e, e, 2) | norm(
        "transformer.decoder.norm", e
    )
    mm_heads = ("bbox_head.cls_branches.{}", "bbox_head.reg_branches.{}", (0, 2, 4))
    points = linear("transformer.reference_points", 2, e)
    if family == "hdetr":
        shapes = original | layers(size, "transformer.", "torch") | proposals(size, two) | positions(size, pos)
        shapes |= heads(size, *plain, n + 1) | heads(size, *below, n + 1)
        return shapes | {"transformer.level_embed": (size.levels, e), "query_embed.weight": (q + size.further, e)}
    if family == "hdetr_one_stage":
        shapes = original | layers(size, "transformer.", "torch") | points | heads(size, *plain, n)
        shapes |= {k: v for k, v in heads(size, *below, n).items() if "bbox" in k}
        return shapes | {"transformer.level_embed": (size.levels, e), "query_embed.weight": (q + size.further, 2 * e)}
    if family == "dino":
        shapes = original | layers(size, "transformer.", "torch") | proposals(size, two) | dino_decoder
        shapes |= heads(size, *plain, n) | heads(size, *below, n)
        shapes |= heads(size, "transformer.enc_out_class_embed", "transformer.enc_out_bbox_embed.layers", 1)
        shapes |= {"transformer.tgt_embed.weight": (q, e), "label_enc.weight": (size.classes + 1, e)}
        return shapes | {"transformer.level_embed": (size.levels, e)}
    if family == "relation":
        shapes = resnet(size, "backbone.") | neck(size, "neck.convs.{}", "neck.convs.{}", ".1", False)
        shapes |= layers(size, "transformer.", "torch") | proposals(size, two) | dino_decoder | embeds
        shapes |= heads(size, "transformer.decoder.class_head.{}", "transformer.decoder.bbox_head.{}.layers", n)
        for kind in ("encoder", "hybrid"):
            shapes |= heads(size, f"transformer.{kind}_class_head", f"transformer.{kind}_bbox_head.layers", 1)
        fusion = "transformer.encoder.memory_fusion"
        shapes |= linear(f"{fusion}.0", e, (n + 1) * e) | linear(f"{fusion}.2", e, e) | norm(f"{fusion}.3", e)
        shapes |= perceptron("transformer.decoder.query_scale.layers", e, e, e, 2)
        relation = "transformer.decoder.position_relation_embedding.pos_proj.0"
        shapes |= {f"{relation}.weight": (size.heads, 64, 1, 1), f"{relation}.bias": (size.heads,)}
        shapes |= {"transformer.tgt_embed.weight": (q, e), "transformer.hybrid_tgt_embed.weight": (size.further, e)}
        return shapes | {"denoising_generator.label_encoder.weight": (size.classes, e)}
    if family.startswith("detrex"):
        shapes = detrex | layers(size, "transformer.", "mmcv") | embeds
        if family == "detrex":
            return shapes | points | heads(size, *plain, n) | {"query_embedding.weight": (q, 2 * e)}
        shapes |= proposals(size, two)
        shapes |= heads(size, *plain, n + 1) | heads(size, *below, n + 1)
        if family == "detrex_two_stage":
            return shapes | positions(size, pos)
        if family == "detrex_hdetr":
            return shapes | positions(size, pos) | {"query_embedding.weight": (q + size.further, e)}
        return shapes | dino_decoder | {"transformer.tgt_embed.weight": (q, e), "label_enc.weight": (size.classes, e)}
    if family.startswith("mmdet2"):
        top = "bbox_head.transformer."
        shapes = mmdet | layers(size, top, "mmcv") | {f"{top}level_embeds": (size.levels, e)}
        if family == "mmdet2_two_stage":
            shapes |= proposals(size, (f"{top}enc_output", f"{top}enc_output_norm")) | heads(
                size, *mm_heads[:2], n + 1, (0, 2, 4)
            )
            return shapes | positions(size, (f"{top}pos_trans", f"{top}pos_trans_norm"))
        shapes |= linear(f"{top}reference_points", 2, e) | heads(size, *mm_heads[:2], n, (0, 2, 4))
        return shapes | {"bbox_head.query_embedding.weight": (q, 2 * e)}
    shapes = mmdet | layers(size, "", "mmdet3") | {"level_embed": (size.levels, e)}
    if family in ("mmdet3", "mmdet3_refinement"):
        shapes |= linear("reference_points_fc", 2, e) | heads(size, *mm_heads[:2], n, (0, 2, 4))
        return shapes | {"query_embedding.weight": (q, 2 * e)}
    shapes |= proposals(size, ("memory_trans_fc", "memory_trans_norm")) | heads(size, *mm_heads[:2], n + 1, (0, 2, 4))
    if family == "mmdet3_two_stage":
        return shapes | positions(size, ("pos_trans_fc", "pos_trans_norm"))
    assert family == "mmdet_dino"
    shapes |= perceptron("decoder.ref_point_head.layers", 2 * e, e, e, 2) | norm("decoder.norm", e)
    return shapes | {"query_embedding.weight": (q, e), "dn_query_generator.label_embedding.weight": (size.classes, e)}


@dataclass(frozen=True)
class Kind:
    """How a family's detector computes, and how it names what is computed with.

    Attributes:
        style: of the layers' names, a key of `STYLES`; `top` is before them.
        backbone: prefix, and whether the names are detectron2's.
        neck: convolution and norm of a level; those of further levels, if they are counted anew.
        embed: the level embedding.
        queries: learned queries, or learned contents.
        classify, regress: heads of a layer.
        encoder_heads: those of proposals.
        proposals, norm: projection of tokens and its norm; None in one stage.
        position: what makes positions of boxes, and its norm; None otherwise.
        shared: whether all layers have one head and one reference.
        by_class: whether proposals are ranked by their best class.
        sine: prefix of a decoder whose layers encode their boxes; None otherwise.
        eps: smallest number before a logarithm.
        temperature, offset: of the encoding of tokens.
        relation: whether it is Relation-DETR.
    """

    style: str
    top: str
    backbone: tuple[str, bool]
    neck: tuple[str, str]
    embed: str
    queries: str = ""
    extra: tuple[str, str] | None = None
    classify: str = "class_embed.{}"
    regress: str = "bbox_embed.{}.layers"
    numbers: tuple[int, ...] = (0, 1, 2)
    encoder_heads: tuple[str, str] | None = None
    points: str = "transformer.reference_points"
    proposals: tuple[str, str] | None = None
    position: tuple[str, str] | None = None
    shared: bool = False
    by_class: bool = False
    sine: str | None = None
    eps: float = 1e-5
    temperature: float = 10000.0
    offset: float = -0.5
    relation: bool = False


TWO = ("transformer.enc_output", "transformer.enc_output_norm")
POS = ("transformer.pos_trans", "transformer.pos_trans_norm")
ORIGINAL = Kind(
    "torch",
    "transformer.",
    ("backbone.0.body.", False),
    ("input_proj.{}.0", "input_proj.{}.1"),
    "transformer.level_embed",
)
DETREX = Kind(
    "mmcv",
    "transformer.",
    ("backbone.", True),
    ("neck.convs.{}.conv", "neck.convs.{}.norm"),
    "transformer.level_embeds",
    extra=("neck.extra_convs.{}.conv", "neck.extra_convs.{}.norm"),
    eps=1e-3,
)
MMDET3 = Kind(
    "mmdet3",
    "",
    ("backbone.", False),
    ("neck.convs.{}.conv", "neck.convs.{}.gn"),
    "level_embed",
    "query_embedding.weight",
    ("neck.extra_convs.{}.conv", "neck.extra_convs.{}.gn"),
    "bbox_head.cls_branches.{}",
    "bbox_head.reg_branches.{}",
    (0, 2, 4),
    points="reference_points_fc",
)
MMDET2 = replace(
    MMDET3,
    style="mmcv",
    top="bbox_head.transformer.",
    embed="bbox_head.transformer.level_embeds",
    queries="bbox_head.query_embedding.weight",
    points="bbox_head.transformer.reference_points",
)
DINO = {"by_class": True, "sine": "transformer.decoder.", "proposals": TWO, "queries": "transformer.tgt_embed.weight"}
PROPOSING = "memory_trans_fc", "memory_trans_norm"
KINDS = {
    "hdetr": replace(ORIGINAL, proposals=TWO, position=POS, queries="query_embed.weight"),
    "hdetr_one_stage": replace(ORIGINAL, queries="query_embed.weight"),
    "dino": replace(
        ORIGINAL,
        **DINO,
        encoder_heads=("transformer.enc_out_class_embed", "transformer.enc_out_bbox_embed.layers"),
        eps=1e-3,
        temperature=20.0,
        offset=0.0,
    ),
    "relation": replace(
        ORIGINAL,
        **DINO,
        backbone=("backbone.", False),
        neck=("neck.convs.{}.0", "neck.convs.{}.1"),
        embed="transformer.level_embeds",
        classify="transformer.decoder.class_head.{}",
        regress="transformer.decoder.bbox_head.{}.layers",
        encoder_heads=("transformer.encoder_class_head", "transformer.encoder_bbox_head.layers"),
        eps=1e-3,
        relation=True,
    ),
    "detrex": replace(DETREX, queries="query_embedding.weight", shared=True),
    "detrex_two_stage": replace(DETREX, proposals=TWO, position=POS),
    "detrex_hdetr": replace(DETREX, proposals=TWO, position=POS, queries="query_embedding.weight"),
    "detrex_dino": replace(DETREX, **DINO),
    "mmdet2": replace(MMDET2, shared=True),
    "mmdet2_two_stage": replace(
        MMDET2,
        queries="",
        proposals=tuple("bbox_head." + name for name in TWO),
        position=tuple("bbox_head." + name for name in POS),
    ),
    "mmdet3": replace(MMDET3, shared=True),
    "mmdet3_refinement": MMDET3,
    "mmdet3_two_stage": replace(MMDET3, queries="", proposals=PROPOSING, position=("pos_trans_fc", "pos_trans_norm")),
    "mmdet_dino": replace(
        MMDET3, proposals=PROPOSING, by_class=True, sine="decoder.", eps=1e-3, temperature=20.0, offset=0.0
    ),
}


def written(family: str, size: Size, seed: int = 0) -> dict[str, Tensor]:
    """A file of a family with random values; heads are alike where the family shares them."""
    generator, kind, file = torch.Generator().manual_seed(seed), KINDS[family], {}
    for name, shape in file_of(family, size).items():
        values = torch.randn(shape, generator=generator)
        one = len(shape) == 1 and not name.endswith("bias")  # scales and variances
        file[name] = (
            1 + 0.1 * values.abs()
            if one
            else values * (0.4 / max(1.0, math.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.2)
        )
    # The first layer's boxes come nearer to 0 and 1 than the smallest number before a logarithm, whichever it is.
    file[f"{kind.regress.format(0)}.{kind.numbers[-1]}.bias"] = torch.tensor([0.3, -0.2, -12.0, 12.0])
    for name in list(file):
        for layer in range(1, size.layers):
            if kind.shared or family == "dino":  # heads of all decoder layers are one
                for part in (kind.classify, kind.regress):
                    if name.startswith(part.format(layer) + "."):
                        file[name] = file[part.format(0) + name.removeprefix(part.format(layer))]
    for name in file:  # what is named twice is one
        plain = name.removeprefix("transformer.decoder.")
        if plain != name and plain in file:
            file[name] = file[plain]
    return file


def sines(values: Tensor, width: int, temperature: float = 10000.0, scale: float = 2 * math.pi) -> Tensor:
    """`[...]` to `[..., width]`: sine and cosine by turns, two channels for each wavelength."""
    waves = [scale * values / temperature ** (2 * (channel // 2) / width) for channel in range(width)]
    return torch.stack([wave.cos() if channel % 2 else wave.sin() for channel, wave in enumerate(waves)], -1)


def logit(x: Tensor, eps: float) -> Tensor:
    return x.clamp(min=eps).log() - (1 - x).clamp(min=eps).log()


class Reference:
    """What a family's detector makes of images, by the names of its file; all in float64."""

    def __init__(self, file: dict[str, Tensor], kind: Kind, size: Size):
        self.file, self.kind, self.size = {k: v.double() for k, v in file.items()}, kind, size

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.file[f"{name}.weight"].T + self.file[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * self.file[f"{name}.weight"] + self.file[f"{name}.bias"]

    def perceptron(self, name: str, x: Tensor, numbers: tuple[int, ...]) -> Tensor:
        for number in numbers[:-1]:
            x = self.linear(f"{name}.{number}", x).clamp(min=0)
        return self.linear(f"{name}.{numbers[-1]}", x)

    def features(self, x: Tensor) -> list[Tensor]:
        prefix, detectron = self.kind.backbone

        def normed(x: Tensor, convolution: str, batch: str, stride: int = 1, padding: int = 0) -> Tensor:
            x = F.conv2d(x, self.file[f"{convolution}.weight"], stride=stride, padding=padding)
            mean, variance, scale, shift = (
                self.file[f"{batch}.{part}"][:, None, None]
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

        stem = ("stem.conv1", "stem.conv1.norm") if detectron else ("conv1", "bn1")
        x = F.max_pool2d(normed(x, *(prefix + part for part in stem), 2, 3).relu(), 3, 2, 1)
        found = []
        for stage, blocks in enumerate(self.size.blocks):
            for block in range(blocks):
                name = f"{prefix}{f'res{stage + 2}' if detectron else f'layer{stage + 1}'}.{block}"
                step, y = 2 if stage and not block else 1, x
                count = 3 if self.size.bottleneck else 2
                for i in range(1, count + 1):
                    wide = not self.size.bottleneck or i == 2  # the 3x3 one, and the first of those, has the stride
                    stride = step if i == (2 if self.size.bottleneck else 1) else 1
                    batch = f"{name}.conv{i}.norm" if detectron else f"{name}.bn{i}"
                    y = normed(y, f"{name}.conv{i}", batch, stride, int(wide))
                    y = y.relu() if i < count else y
                shortcut = (
                    (f"{name}.shortcut", f"{name}.shortcut.norm")
                    if detectron
                    else (f"{name}.downsample.0", f"{name}.downsample.1")
                )
                if f"{shortcut[0]}.weight" in self.file:
                    x = normed(x, *shortcut, step)
                x = (x + y).relu()
            found.append(x)
        return found[1:]

    def maps(self, images: Tensor) -> list[Tensor]:
        maps, source = [], self.features(images)
        for level in range(self.size.levels):
            further = level - len(source)
            names, number = self.kind.neck, level
            if further >= 0 and self.kind.extra is not None:
                names, number = self.kind.extra, further
            x = source[level] if further < 0 else source[-1] if further == 0 else maps[-1]
            convolution, group = (name.format(number) for name in names)
            stride, padding = (1, 0) if further < 0 else (2, 1)
            x = F.conv2d(x, self.file[f"{convolution}.weight"], self.file.get(f"{convolution}.bias"), stride, padding)
            maps.append(F.group_norm(x, 32, self.file[f"{group}.weight"], self.file[f"{group}.bias"], 1e-5))
        return maps

    def sample(self, name: str, query: Tensor, points: Tensor, tokens: Tensor, shapes: list, mask: Tensor) -> Tensor:
        """Deformable attention; points `[B, Q, L, 2 or 4]`."""
        size, batch = self.size, len(query)
        spread = batch, -1, size.heads, size.levels, size.points
        value = self.linear(f"{name}.value_proj", tokens).masked_fill(mask[..., None], 0)
        value = value.view(batch, -1, size.heads, size.width // size.heads)
        offsets = self.linear(f"{name}.sampling_offsets", query).view(*spread, 2)
        weights = self.linear(f"{name}.attention_weights", query).view(batch, -1, size.heads, size.levels * size.points)
        weights = weights.softmax(-1).view(spread)
        out, start = 0.0, 0
        for level, (height, width) in enumerate(shapes):
            part = (
                value[:, start : start + height * width]
                .permute(0, 2, 3, 1)
                .reshape(-1, size.width // size.heads, height, width)
            )
            start += height * width
            where = points[:, :, None, level, None]  # [B, Q, 1, 1, 2 or 4]
            scale = where[..., 2:] / size.points / 2 if where.shape[-1] == 4 else 1 / where.new_tensor([width, height])
            at = (where[..., :2] + offsets[:, :, :, level] * scale).transpose(1, 2).flatten(0, 1)  # [BM, Q, K, 2]
            found = F.grid_sample(part, 2 * at - 1, padding_mode="zeros", align_corners=False)  # [BM, D, Q, K]
            share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
            out = out + (found * share).sum(-1)
        out = out.view(batch, size.width, -1).transpose(1, 2)
        return self.linear(f"{name}.output_proj", out)

    def attend(self, name: str, x: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        size, out = self.size, []
        query, key, value = (
            inputs @ matrix.T + shift
            for inputs, matrix, shift in zip(
                (x, x, value), self.file[f"{name}.in_proj_weight"].chunk(3), self.file[f"{name}.in_proj_bias"].chunk(3)
            )
        )
        for head, (q, k, v) in enumerate(zip(*(t.chunk(size.heads, -1) for t in (query, key, value)))):
            logits = q @ k.transpose(1, 2) / (size.width // size.heads) ** 0.5
            out.append((logits if bias is None else logits + bias[:, head]).softmax(-1) @ v)
        return self.linear(f"{name}.out_proj", torch.cat(out, -1))

    def encoded(self, mask: Tensor) -> Tensor:
        """`[B, H, W, E]`, y first."""
        inside, kind = (~mask).double(), self.kind
        found = []
        for axis in (1, 2):
            counted = inside.cumsum(axis)
            last = counted.narrow(axis, counted.shape[axis] - 1, 1)
            found.append(sines((counted + kind.offset) / (last + 1e-6), self.size.width // 2, kind.temperature))
        return torch.cat(found, -1)

    def __call__(self, images: Tensor, padding: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and boxes of each decoder layer."""
        kind, size, file = self.kind, self.size, self.file
        of_encoder, of_decoder, cross, first, second, encoder_norms, decoder_norms = STYLES[kind.style]
        maps = self.maps(images)
        shapes = [tuple(m.shape[-2:]) for m in maps]
        masks = [F.interpolate(padding[:, None].double(), size=shape)[:, 0].bool() for shape in shapes]
        mask = torch.cat([m.flatten(1) for m in masks], 1)
        ratios = torch.stack(
            [torch.stack([(~m[:, 0]).double().mean(1), (~m[:, :, 0]).double().mean(1)], -1) for m in masks], 1
        )  # [B, L, 2]
        position = torch.cat([(self.encoded(m) + embed).flatten(1, 2) for m, embed in zip(masks, file[kind.embed])], 1)
        centres, anchors = [], []
        for level, (height, width) in enumerate(shapes):
            y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
            centre = torch.stack([x, y], -1).double().flatten(0, 1) / (
                ratios[:, None, level] * torch.tensor([width, height])
            )
            centres.append(centre)
            anchors.append(torch.cat([centre, torch.full_like(centre, 0.05 * 2**level)], -1))
        points = torch.cat(centres, 1)[:, :, None] * ratios[:, None]

        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        stages = [tokens]
        for i in range(size.layers):
            name = f"{kind.top}encoder.layers.{i}."
            tokens = tokens + self.sample(name + of_encoder, tokens + position, points, tokens, shapes, mask)
            tokens = self.norm(name + encoder_norms[0], tokens)
            tokens = tokens + self.linear(name + second, self.linear(name + first, tokens).relu())
            tokens = self.norm(name + encoder_norms[1], tokens)
            stages.append(tokens)
        if kind.relation:
            fusion = "transformer.encoder.memory_fusion."
            tokens = self.norm(
                f"{fusion}3", self.linear(f"{fusion}2", self.linear(f"{fusion}0", torch.cat(stages, -1)).relu())
            )

        content, static, reference = self.start(tokens, mask, torch.cat(anchors, 1))
        start, seen = reference, [reference]
        for i in range(size.layers):
            name = f"{kind.top}decoder.layers.{i}."
            on_maps = reference[:, :, None] * torch.cat([ratios] * (reference.shape[-1] // 2), -1)[:, None]
            place = static
            if kind.sine is not None:
                x, y, w, h = on_maps[:, :, 0].unbind(-1)
                waves = torch.cat([sines(v, size.width // 2) for v in (y, x, w, h)], -1)
                place = self.perceptron(f"{kind.sine}ref_point_head.layers", waves, (0, 1))
                if kind.relation and i:
                    place = place * self.perceptron(f"{kind.sine}query_scale.layers", content, (0, 1))
            bias = self.relation(*seen[-2:]) if kind.relation and i else None
            content = content + self.attend(name + of_decoder, content + place, content, bias)
            content = self.norm(name + decoder_norms[0], content)
            content = content + self.sample(name + cross, content + place, on_maps, tokens, shapes, mask)
            content = self.norm(name + decoder_norms[1], content)
            content = content + self.linear(name + second, self.linear(name + first, content).relu())
            content = self.norm(name + decoder_norms[2], content)
            shown = content if kind.sine is None else self.norm(f"{kind.sine}norm", content)
            boxes = self.moved(i, shown, start)
            seen.append(boxes)
            yield self.linear(kind.classify.format(i), shown), boxes
            if not kind.shared:
                reference = start = self.moved(i, content, reference)

    def moved(self, layer: int, states: Tensor, reference: Tensor) -> Tensor:
        delta = self.perceptron(self.kind.regress.format(layer), states, self.kind.numbers)
        at = logit(reference, self.kind.eps)
        return torch.cat([delta[..., : at.shape[-1]] + at, delta[..., at.shape[-1] :]], -1).sigmoid()

    def start(self, tokens: Tensor, mask: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Content, position, and reference of the queries."""
        kind, size, batch = self.kind, self.size, len(tokens)
        learned = self.file[kind.queries][: size.queries] if kind.queries else None
        if kind.proposals is None:
            position, content = (t.expand(batch, -1, -1) for t in learned.split(size.width, 1))
            return content, position, self.linear(kind.points, position).sigmoid()
        usable = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True) & ~mask[..., None]
        seen = self.norm(kind.proposals[1], self.linear(kind.proposals[0], tokens * usable))
        classify, regress = kind.encoder_heads or (kind.classify.format(size.layers), kind.regress.format(size.layers))
        scores = self.linear(classify, seen)
        best = (scores.amax(-1) if kind.by_class else scores[..., 0]).topk(size.queries, 1).indices[..., None]
        boxes = self.perceptron(regress, seen, kind.numbers) + (anchors / (1 - anchors)).log()
        boxes = boxes.where(usable, boxes.new_tensor(math.inf)).gather(1, best.expand(-1, -1, 4)).sigmoid()
        if kind.position is None:
            return learned.expand(batch, -1, -1), None, boxes
        waves = torch.cat([sines(number, size.width // 2) for number in boxes.unbind(-1)], -1)
        position, content = self.norm(kind.position[1], self.linear(kind.position[0], waves)).chunk(2, -1)
        return content if learned is None else learned.expand(batch, -1, -1), position, boxes

    def relation(self, before: Tensor, now: Tensor, eps: float = 1e-5) -> Tensor:
        """A bias `[B, M, Q, Q]` by the boxes of the layer before and of this one."""
        numbers = []
        for at, length in ((0, 2), (1, 3)):
            away = (before[:, :, None, at] - now[:, None, :, at]).abs()
            numbers.append((away / (before[:, :, None, length] + eps) + 1).log())
        for length in (2, 3):
            numbers.append(((before[:, :, None, length] + eps) / (now[:, None, :, length] + eps)).log())
        waves = torch.cat([sines(number, 16, 10000.0, 100.0) for number in numbers], -1)  # [B, Q, Q, 64]
        name = "transformer.decoder.position_relation_embedding.pos_proj.0"
        bias = torch.einsum("bijc,mc->bmij", waves, self.file[f"{name}.weight"][..., 0, 0])
        return (bias + self.file[f"{name}.bias"][:, None, None]).relu()
