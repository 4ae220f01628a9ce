"""Feature pyramids from timm: any `features_only` backbone, by name."""

from pathlib import Path

import timm
import torch.nn.functional as F
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from util.checkpoint import load_plain
from util.errors import UserError


class Backbone(nn.Module):
    """The last feature maps of a timm backbone.

    Args:
        name: timm model name, e.g. `resnet50`.
        num_features: how many maps to return, the deepest ones (C3..C5 are three).
        weights: `timm` downloads pretrained weights, `none` starts at random, anything else is a local file
            (`.pth`, `.bin`, `.safetensors`) with the keys of timm or torchvision.
        norm: `frozen` fixes the batch norms' statistics and affine parameters; `trainable` trains them.
        frozen_stages: how many stages, the stem first, receive no gradient (2 for a ResNet: stem and layer1).
        output_stride: stride of the deepest map; 16 dilates the last stage (DC5). None keeps the network's own.

    Attributes:
        channels: channels of each returned map.
        strides: stride of each returned map in pixels.
        size_multiple: image sizes must be a multiple of this (1 for convolutional networks).

    Raises:
        UserError: timm does not know the name, lacks an option, or the weights cannot be had.
    """

    def __init__(
        self,
        name: str = "resnet50",
        num_features: int = 3,
        weights: str = "timm",
        norm: str = "frozen",
        frozen_stages: int = 2,
        output_stride: int | None = None,
    ):
        super().__init__()
        self.body = _create(name, weights == "timm", output_stride)
        if weights not in ("timm", "none"):
            load_backbone_weights(self.body, weights)
        if norm == "frozen":
            self.body = freeze_batch_norm_2d(self.body)

        info = self.body.feature_info
        available = len(info.channels())
        if num_features > available:
            raise UserError(f"backbone '{name}' has {available} feature maps, but {num_features} are asked for")
        self.num_features = num_features
        self.channels: list[int] = info.channels()[-num_features:]
        self.strides: list[int] = info.reduction()[-num_features:]
        self.channels_last_output = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")
        self.size_multiple = max(self.strides) if _wants_fixed_size(name) else 1
        freeze_stages(self.body, frozen_stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """`[B, 3, H, W]` -> the `num_features` deepest maps `[B, channels, H/stride, W/stride]`, shallow first."""
        if self.size_multiple > 1:
            height, width = images.shape[-2:]
            images = F.pad(images, (0, -width % self.size_multiple, 0, -height % self.size_multiple))
        maps = self.body(images)[-self.num_features :]
        return [m.permute(0, 3, 1, 2).contiguous() for m in maps] if self.channels_last_output else maps


def freeze_stages(body: nn.Module, count: int) -> None:
    """Stop the gradients of the first `count` stages; parameters are registered in the order they are used."""
    if count <= 0:
        return
    stages = [stage.replace(".", "_") for stage in body.feature_info.module_name()]
    last_frozen = stages[min(count, len(stages)) - 1]
    names = [name.replace(".", "_").removeprefix("model_") for name, _ in body.named_modules()]
    end = max(i for i, name in enumerate(names) if name == last_frozen or name.startswith(last_frozen + "_"))
    for module in list(body.modules())[1 : end + 1]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def load_backbone_weights(body: nn.Module, path: str) -> None:
    """Load a local file into a timm feature extractor; every parameter and statistic must be in it.

    Raises:
        UserError: no such file, not a file of tensors, or keys or shapes that do not fit.
    """
    if not Path(path).is_file():
        raise UserError(f"model.backbone.weights: no file '{path}'; give a path, 'timm' to download, or 'none'")
    found = load_plain(Path(path))
    for wrapper in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict):
        raise UserError(f"model.backbone.weights: '{path}' holds no state dict of tensors")

    # timm flattens stages.0 to stages_0 when it extracts features; files have the dots.
    def plain(key: str) -> str:
        return key.removeprefix("module.").removeprefix("model.").replace(".", "_")

    by_plain_name = {plain(str(key)): tensor for key, tensor in found.items()}
    wanted = {key: tensor for key, tensor in body.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if plain(key) not in by_plain_name]
    misfit = [key for key in wanted if key not in missing and by_plain_name[plain(key)].shape != wanted[key].shape]
    if missing or misfit:
        raise UserError(
            f"model.backbone.weights: '{path}' is not of this backbone: {len(missing)} of {len(wanted)} tensors are "
            f"missing and {len(misfit)} differ in shape (the first: {(missing + misfit)[0]})"
        )
    body.load_state_dict({key: by_plain_name[plain(key)] for key in wanted}, strict=False)


def _wants_fixed_size(name: str) -> bool:
    """Vision transformers are built for one image size; convolutional networks take any."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.fixed_input_size)


def _create(name: str, pretrained: bool, output_stride: int | None) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"{name[:4]}*")[:4]
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UserError(f"model.backbone.name: timm has no model '{name}'{hint}")
    options = {} if output_stride is None else {"output_stride": output_stride}
    # How a fixed-size architecture is told to take any size differs between timm's families.
    attempts = [{"dynamic_img_size": True}, {"strict_img_size": False}] if _wants_fixed_size(name) else [{}]
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
                f"model.backbone.weights: timm could not fetch weights for '{name}' ({_first_line(error)}); give a "
                "local file with --model.backbone.weights FILE, or start at random with --model.backbone.weights none"
            ) from None
    wanted = f"output_stride {output_stride}" if output_stride else "features_only"
    raise UserError(f"model.backbone: timm cannot build '{name}' with {wanted}: {_first_line(reason)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "not supported").split("\n")[0]
