"""Mixup: two images in one, each half transparent."""

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from datasets.exhaustive import exhaustive_in_all
from datasets.transforms import View, draw_int, target_on

LEAST, MOST = 0.45, 0.55  # share of the first image


def mixup(view: View, partner: View) -> View:
    """An image blended with another, and the objects of both (arXiv 1710.09412; for detection 1902.04103, section 3.1).

    The second paper draws the share from Beta(1.5, 1.5) and weights each object's loss with it. Here every object
    counts in full, so every one must be seen: the share is even between 0.45 and 0.55, as in DEIM (arXiv 2412.04234,
    its published code). The canvas is the first image's, so that no more memory is needed; the partner keeps its shape,
    is made smaller where it would not fit, and lies anywhere on it. Beyond the partner the image stays as it is.

    Args:
        view, partner: images `[3, H, W]` and `[3, h, w]`, each with its boxes and labels.

    Returns:
        Image `[3, H, W]`, boxes and labels, the first image's before the partner's.
    """
    share = LEAST + (MOST - LEAST) * float(torch.rand(()))
    height, width = view[0].shape[-2:]
    image, target = partner
    scale = min(height / image.shape[-2], width / image.shape[-1])
    if scale < 1:
        size = [max(1, round(scale * side)) for side in image.shape[-2:]]
        image, target = TF.resize(image, size), target | {"boxes": TF.resize(target["boxes"], size)}
    top, left = draw_int(0, height - image.shape[-2]), draw_int(0, width - image.shape[-1])
    return blend(view, (image, target), share, top, left)


def blend(view: View, partner: View, share: float, top: int, left: int) -> View:
    """`share` of an image and the rest of a partner, which lies within it from (top, left) on; rounded."""
    image, target = view
    above, its_target = partner
    rows, columns = slice(top, top + above.shape[-2]), slice(left, left + above.shape[-1])
    mixed = image.as_subclass(torch.Tensor).clone()
    part = mixed[:, rows, columns].float().mul_(share).add_(above.as_subclass(torch.Tensor).float(), alpha=1 - share)
    mixed[:, rows, columns] = part.round_().to(torch.uint8)
    boxes = torch.cat([target["boxes"], its_target["boxes"] + torch.tensor([left, top, left, top])])
    labels = torch.cat([target["labels"], its_target["labels"]])
    size = (image.shape[-2], image.shape[-1])
    return tv_tensors.Image(mixed), target_on(size, boxes, labels) | exhaustive_in_all([target, its_target])
