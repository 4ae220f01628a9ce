"""Small models and targets for tests."""

import torch
from torch import Tensor

from models.from_config import build_model
from util.config import BackboneConfig, LossConfig, ModelConfig
from util.objects import Objects


def small_config(**options) -> ModelConfig:
    backbone = BackboneConfig(name="resnet10t", weights="none", norm="trainable", frozen_stages=0)
    settings = {
        "backbone": backbone,
        "d_model": 32,
        "num_levels": 3,
        "num_queries": 12,
        "num_heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "ffn_dim": 64,
        "dropout": 0.0,
        "norm_groups": 8,
    }
    return ModelConfig(**{**settings, **options})


def small_model(num_classes: int = 5, auxiliary: bool = True, seed: int = 0, loss: LossConfig | None = None, **options):
    torch.manual_seed(seed)
    return build_model(small_config(**options), num_classes, loss or LossConfig(auxiliary=auxiliary))


def padded_batch(sizes: list[tuple[int, int]], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images of the given (height, width), padded to a common size with zeros."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(s[d] for s in sizes) for d in (0, 1))
    images, mask = torch.zeros(len(sizes), 3, height, width), torch.ones(len(sizes), height, width, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        images[i, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[i, :h, :w] = False
    return images, mask


def random_objects(counts: list[int], num_classes: int = 5, seed: int = 0) -> list[Objects]:
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for i, n in enumerate(counts):
        size = torch.rand(n, 2, generator=generator) * 0.3 + 0.05
        centre = size / 2 + torch.rand(n, 2, generator=generator) * (1 - size)
        labels = torch.randint(num_classes, (n,), generator=generator)
        targets.append(Objects(torch.cat([centre, size], -1), labels, image_id=100 + i))
    return targets


def scramble(model: torch.nn.Module, seed: int = 0) -> None:
    """Random values everywhere, also in layers that start at zero and in the statistics of frozen norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "running_var" in name:
                tensor.copy_(1 + 0.2 * noise.abs())
            elif "running_mean" in name:
                tensor.copy_(0.1 * noise)
            else:
                tensor.add_(0.05 * noise)
