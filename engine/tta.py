"""Test-time augmentation: a detector looks at several views of every image, and what it finds in them is merged.

A view is an image at one size, mirrored or not. `MultiView` takes the place of the detector, of what prepares its
batches and of what postprocesses its predictions, so that the loop around them does not know of views.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from util.config import TTAConfig
from util.errors import UserError
from util.objects import Objects

KEPT = 100  # detections of each view that are merged, at least: what is found must not depend on how many are shown


@dataclass(frozen=True)
class View:
    """One way to look at an image.

    Attributes:
        size: shorter side in pixels.
        max_size: longest the longer side may be.
        flip: mirrored left and right.
        plain: the only view there would be without augmentation.
    """

    size: int
    max_size: int
    flip: bool
    plain: bool


def views_of(tta: TTAConfig, size: int, max_size: int) -> list[View]:
    """List the views by size, the plain one before the mirrored one. A single view needs no merging.

    Args:
        tta: the options of test-time augmentation.
        size: the usual shorter side; the only one, if no others are given.
        max_size: bound of the longer side at that size. It grows and shrinks with the size: as it is, it would leave
            wide pictures as they are.

    Raises:
        UserError: a size is given twice, which would only count its boxes twice; or a rule, but nothing to merge.
    """
    if replace(tta, sizes=[]) != TTAConfig() and not tta.flip and len(tta.sizes) < 2:
        raise UserError("tta.merge, tta.iou and tta.sigma merge several views; add --tta.flip true or --tta.sizes")
    sizes = tta.sizes or [size]
    twice = [s for s in sizes if sizes.count(s) > 1]
    if twice:
        raise UserError(f"tta.sizes gives {twice[0]} more than once; each size is one view")
    flips = (False, True) if tta.flip else (False,)
    return [View(s, round(max_size * s / size), flip, s == size and not flip) for s in sizes for flip in flips]


def sizes_of(views: Sequence[View]) -> list[tuple[int, int]]:
    """Every (shorter side, bound of the longer one) among views, in their order."""
    return list(dict.fromkeys((view.size, view.max_size) for view in views))


@dataclass
class ViewBatch:
    """The same images at every size.

    Attributes:
        images: for each size `[B, 3, H, W]`.
        padding_mask: for each size `[B, H, W]`, all False.
        objects: the objects of each image.
        sizes: (height, width) in pixels of each image's file.
    """

    images: list[Tensor]
    padding_mask: list[Tensor]
    objects: list[Objects]
    sizes: list[tuple[int, int]]


class EverySize:
    """Loads one data set at several sizes at once: yields a tuple of batches of the same images.

    Args:
        loaders: one for each size; their batches hold the same images in the same order.
    """

    def __init__(self, loaders: Sequence):
        self.loaders, self.dataset = loaders, loaders[0].dataset

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[tuple]:
        return zip(*self.loaders)


class MultiView(nn.Module):
    """A detector that looks at every image several times. Its predictions are those of each view, in order.

    Args:
        model: batch to predictions.
        views: of each image.
        to_device: batch to a normalised batch on the device.
        postprocess: (predictions, sizes, top_k) to detections of each image.
        merge: (detections of each view, rule, top_k, iou, sigma) to detections.
        tta: rule and its numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        views: Sequence[View],
        to_device: Callable,
        postprocess: Callable,
        merge: Callable,
        tta: TTAConfig,
    ):
        super().__init__()
        self.model, self.views, self.tta = model, views, tta
        self.to_device, self.of_view, self.merge = to_device, postprocess, merge
        self.sizes = [size for size, _ in sizes_of(views)]
        self.batches, self.images = 0, 0
        self.seconds, self.merge_seconds = [0.0] * len(views), 0.0  # of each view, and of merging

    def prepare(self, batches: Sequence) -> ViewBatch:
        """A batch for each size, of the same images, on the device.

        Raises:
            ValueError: a batch has padding, which would come to lie on the left of a mirrored image.
        """
        if any(batch.padding_mask.any() for batch in batches):  # still on the host
            raise ValueError("batches have padding; views are made of images of one size")
        ready = [self.to_device(batch) for batch in batches]
        of_images = ready[0].objects, ready[0].sizes
        return ViewBatch([b.images for b in ready], [b.padding_mask for b in ready], *of_images)

    def forward(self, images: Sequence[Tensor], padding_masks: Sequence[Tensor]) -> list:
        """The model's predictions of each view.

        Args:
            images: for each size `[B, 3, H, W]`.
            padding_masks: for each size `[B, H, W]`.
        """
        if self.batches == 1:  # the first warms up, and counts only if it is the only one
            self.images, self.seconds, self.merge_seconds = 0, [0.0] * len(self.views), 0.0
        predictions = []
        for i, view in enumerate(self.views):
            size = self.sizes.index(view.size)
            begun = _now(images[size].device)
            looked_at = images[size].flip(-1) if view.flip else images[size]
            predictions.append(self.model(looked_at, padding_masks[size]))
            self.seconds[i] += _now(images[size].device) - begun
        self.batches, self.images = self.batches + 1, self.images + len(images[0])
        return predictions

    def postprocess(self, predictions: Sequence, sizes: Sequence[tuple[int, int]], top_k: int = 100) -> list:
        """Merged detections of each image.

        Args:
            predictions: of each view.
            sizes: (height, width) in pixels of each original image.
            top_k: most detections of an image.
        """
        found = [self.of_view(p, sizes, max(top_k, KEPT)) for p in predictions]
        begun = time.perf_counter()
        merged = []
        for i, (_, width) in enumerate(sizes):
            views = [_mirrored(d[i], width) if view.flip else d[i] for view, d in zip(self.views, found)]
            merged.append(self.merge(views, self.tta.merge, top_k, self.tta.iou, self.tta.sigma))
        self.merge_seconds += time.perf_counter() - begun
        return merged

    def describe(self) -> str:
        """Say how many views there are, and how they are made."""
        flips = len(self.views) // len(self.sizes)
        several = f"{len(self.sizes)} size{'s' if len(self.sizes) > 1 else ''}"
        made_of = f"{several} x {flips}" if flips > 1 else several
        return f"test-time augmentation: {len(self.views)} views an image ({made_of}, merged by {self.tta.merge})"

    def cost(self) -> dict[str, float | None]:
        """Seconds of an image so far, in this process, without reading and resizing it.

        Returns:
            `seconds_per_image` in the model, all views together; `plain_seconds_per_image`, the plain view alone, and
            `ratio` of the two, None where it is not among the views; `merge_seconds_per_image`.
        """
        images = max(1, self.images)  # a process may have had none
        views = [seconds / images for seconds in self.seconds]
        whole = sum(views)
        alone = next((s for view, s in zip(self.views, views) if view.plain), None)
        return {
            "seconds_per_image": whole,
            "plain_seconds_per_image": alone,
            "ratio": whole / alone if alone else None,
            "merge_seconds_per_image": self.merge_seconds / images,
        }

    def cost_line(self) -> str:
        """Say the cost in a sentence."""
        cost = self.cost()
        line = f"{len(self.views)} views take {cost['seconds_per_image']:.4f} s an image"
        if cost["ratio"]:
            line += f", {cost['ratio']:.1f} times the {cost['plain_seconds_per_image']:.4f} s of the plain view alone"
        return f"{line}; merging takes {cost['merge_seconds_per_image']:.4f} s"

    def to_dict(self) -> dict:
        """Views, rule and cost, for JSON."""
        views = [asdict(view) for view in self.views]
        return {"views": views, "merge": self.tta.merge, "iou": self.tta.iou, "sigma": self.tta.sigma, **self.cost()}


def _mirrored(detections, width: int):
    """Detections of a mirrored image, in pixels of the image itself."""
    x0, y0, x1, y1 = detections.boxes.unbind(-1)
    return replace(detections, boxes=torch.stack([width - x1, y0, width - x0, y1], -1))


def _now(device: torch.device) -> float:
    """Seconds on the clock, when the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
