"""Feature mimicking: in training, what the backbone sees of a region should be what it sees of its crop alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import box_convert, roi_align

from models.backbone import Backbone
from models.detector import DeformableDETR
from models.predictions import Predictions
from ops import ModulatedDeformRoIPool
from util.objects import Objects

BINS = 7  # of the pooled features, each way


class FeatureMimic(nn.Module):
    """A branch that draws a detector's features of objects towards those of their crops (1811.11168, section 3.3).

    Each object is seen twice by the same backbone: in the image, and cropped from it and enlarged, where nothing else
    can leak into its features. Both deepest maps go through the same 1x1 convolution, modulated deformable RoI pooling
    and two linear layers; the vector of the image is drawn to that of the crop by `1 - cos`. Classifying both (by
    unshared layers) keeps the vectors from all becoming one. The paper takes proposals of a Faster R-CNN; a detector
    without them takes the annotated objects. The gradient of the cosine stops at the crop's vector, which is the
    teacher here.

    Args:
        channels, stride: channels and stride of the backbone's deepest map.
        num_classes: classes C.
        regions: largest number of objects of an image; with more, a random subset of this size.
        size: side of a crop in pixels; its proportions are not kept, as in R-CNN.
        weight: weight of each loss.
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        num_classes: int,
        regions: int = 32,
        size: int = 224,
        weight: float = 1.0,
    ):
        super().__init__()
        self.regions, self.size, self.weight = regions, size, weight
        width = min(256, channels)  # as the paper reduces ResNet's; vectors are four times as wide
        self.reduce = nn.Conv2d(channels, width, kernel_size=1)
        self.pool = ModulatedDeformRoIPool(width, BINS, 1 / stride, hidden=4 * width)
        self.embed = nn.Sequential(
            nn.Flatten(), nn.Linear(width * BINS**2, 4 * width), nn.ReLU(), nn.Linear(4 * width, 4 * width), nn.ReLU()
        )
        self.classify_region = nn.Linear(4 * width, num_classes)
        self.classify_crop = nn.Linear(4 * width, num_classes)

    def forward(
        self, backbone: Backbone, features: Tensor, images: Tensor, padding_mask: Tensor, objects: Sequence[Objects]
    ) -> dict[str, Tensor]:
        """Weighted losses, summed over regions.

        Args:
            backbone: the backbone of `features`; it runs once more, on the crops.
            features: `[B, channels, h, w]`.
            images: `[B, 3, H, W]`, as the backbone took them.
            padding_mask: `[B, H, W]`, True on padding.
            objects: the objects of each image; there may be none at all.

        Returns:
            `mimic/regions` (1 - cos), `mimic_class/regions` and `mimic_class/crops` (cross-entropy), scalars.
        """
        rois, labels = object_regions(objects, padding_mask, self.regions)
        if not len(rois):
            # Zero, but in the graph of every parameter, for processes that share gradients; no convolution, compiled
            # or not, is asked for the gradient of an empty batch.
            nothing = torch.stack([p.sum() for p in self.parameters()]).sum() * 0.0
            return dict.fromkeys(("mimic/regions", "mimic_class/regions", "mimic_class/crops"), nothing)
        rois = rois.to(images.dtype)
        crops = crop_regions(images, rois, self.size)
        with still_norms(backbone):
            of_crops = backbone(crops)[-1]
        whole = torch.zeros_like(rois)  # of each crop all; written on the device, nothing is copied there
        whole[:, 0], whole[:, 3:] = torch.arange(len(rois), device=rois.device), self.size
        region, crop = self._vectors(features, rois), self._vectors(of_crops, whole)
        with torch.autocast(images.device.type, enabled=False):
            region, crop = (v.to(images.dtype) for v in (region, crop))
            similarity = F.cosine_similarity(region, crop.detach(), dim=1)
            sums = {
                "mimic/regions": (1 - similarity).sum(),
                "mimic_class/regions": F.cross_entropy(self.classify_region(region), labels, reduction="sum"),
                "mimic_class/crops": F.cross_entropy(self.classify_crop(crop), labels, reduction="sum"),
            }
            return {name: self.weight * total for name, total in sums.items()}

    def _vectors(self, features: Tensor, rois: Tensor) -> Tensor:
        return self.embed(self.pool(self.reduce(features), rois))


class WithMimicking(nn.Module):
    """Training-only wrapper of a detector and its mimicking branch; inference never sees it.

    Args:
        detector: shares its backbone with the branch.
        branch: left behind after training.
    """

    def __init__(self, detector: DeformableDETR, branch: FeatureMimic):
        super().__init__()
        self.detector, self.branch = detector, branch

    def forward(self, images: Tensor, padding_mask: Tensor, objects: Sequence[Objects]) -> Predictions:
        """The detector's predictions, with the branch's losses among `extra_losses`."""
        images, padding_mask = self.detector.fit(images, padding_mask)
        maps = self.detector.backbone(images, padding_mask)
        predictions = self.detector.detect(maps, padding_mask, objects)
        predictions.extra_losses |= self.branch(self.detector.backbone, maps[-1], images, padding_mask, objects)
        return predictions


def object_regions(objects: Sequence[Objects], padding_mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The objects of a batch as regions, at most `most` of an image; nothing waits for the device.

    Args:
        objects: the objects of each image.
        padding_mask: `[B, H, W]`, True on padding.
        most: largest number of objects of an image; with more, a random subset of this size.

    Returns:
        Regions `[R, 5]` (index of the image, then xyxy in pixels of the padded image) and labels `[R]`.
    """
    inside = ~padding_mask
    sizes = torch.stack([inside[:, 0].sum(1), inside[:, :, 0].sum(1)], 1).repeat(1, 2)  # [B, 4]: w, h, w, h
    regions, labels = [], []
    for i, of_image in enumerate(objects):
        boxes, of = of_image.boxes, of_image.labels
        if len(boxes) > most:
            drawn = torch.randperm(len(boxes), device=boxes.device)[:most]
            boxes, of = boxes[drawn], of[drawn]
        boxes = box_convert(boxes, "cxcywh", "xyxy") * sizes[i]
        regions.append(torch.cat([boxes.new_full((len(boxes), 1), i), boxes], 1))
        labels.append(of)
    return torch.cat(regions), torch.cat(labels)


def crop_regions(images: Tensor, rois: Tensor, size: int) -> Tensor:
    """Regions `[R, 5]` of images `[B, 3, H, W]`, each resized to `[3, size, size]`: means of bilinear samples."""
    with torch.autocast(images.device.type, enabled=False):
        return roi_align(images, rois, size, aligned=True)


@contextmanager
def still_norms(module: nn.Module) -> Iterator[None]:
    """Batch norms use the statistics that they have collected, and collect none from what runs within.

    Crops must not enter the statistics by which images are normalised; nor may processes without regions keep others
    waiting for theirs.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True
