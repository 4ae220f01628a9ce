"""Small detectors whose attention is not as at the start, and images with padding."""

import torch
from torch import Tensor

from models.detector import DeformableDETR
from models.from_config import build_model
from ops import MSDeformAttn
from util.config import BackboneConfig, ModelConfig

VARIANTS = {
    "plain": {},
    "points by level": {"num_points": [1, 3]},
    "no encoder": {"encoder_layers": 0},
    "one level": {"num_levels": 1},
    "refinement": {"refinement": True},
    "two stages": {"refinement": True, "two_stage": True, "num_levels": 4},
    "distributions": {"refinement": True, "distribution_boxes": True},
}


def tiny(seed: int = 0, trained: bool = True, **options) -> DeformableDETR:
    """Two encoder and decoder layers, evaluation mode; `trained` gives attention and box heads random weights."""
    torch.manual_seed(seed)
    settings = {
        "backbone": BackboneConfig("test_resnet", "none", "frozen", 0), "d_model": 32, "num_levels": 2,
        "num_queries": 6, "num_heads": 4, "num_points": 2, "encoder_layers": 2, "decoder_layers": 3, "ffn_dim": 32,
        "norm_groups": 8,
    }  # fmt: skip
    model = build_model(ModelConfig(**settings | options), num_classes=3, backbone_weights="none").eval()
    if trained:
        for module in model.modules():
            if isinstance(module, MSDeformAttn):
                torch.nn.init.normal_(module.sampling_offsets.weight, std=0.1)
                torch.nn.init.normal_(module.attention_weights.weight, std=0.3)
        for head in [*model.heads, *([model.queries.head] if hasattr(model.queries, "head") else [])]:
            for of_boxes in (head.regress, getattr(head, "edges", None)):
                if of_boxes is not None:
                    torch.nn.init.normal_(of_boxes.last.weight, std=0.3)
    return model


def two_images(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images `[2, 3, 64, 96]` and padding: the second one is 48 x 64."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1), dtype=dtype)
    padding_mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding_mask[1, 48:], padding_mask[1, :, 64:] = True, True
    return images.masked_fill(padding_mask[:, None], 0.0), padding_mask
