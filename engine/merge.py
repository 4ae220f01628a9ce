"""Merging what was found in several views of one image: flipped, at several sizes.

All rules work class by class on the union of the views' boxes, best first, and keep the `top_k` best of the outcome:

- `top_k`: nothing else. An object that several views find is listed several times, of which all but one count as
  wrong: the baseline to beat.
- `nms`: of boxes that overlap by more than `iou`, the best.
- `soft_nms`: arXiv 1704.04503, section 3 (Gaussian): boxes are taken best first, and each one taken multiplies the
  scores of those left by exp(-IoU^2 / sigma).
- `wbf`: weighted box fusion, arXiv 1910.13302, section 3. Best first, each box joins the cluster whose fused box it
  overlaps most, and by more than `iou`, or else founds one. A fused box is the mean of its cluster weighted by score;
  its score is the mean score times min(boxes, views) / views, so that what a single view sees counts less.
- `wbf_set`: ours, for detectors that predict a set: `wbf`, but a cluster takes one box of each view at most. Training
  by matching has made two boxes of one view two objects, or one object and a low score; neither is a second opinion,
  and `wbf` lets them blur the one and dilute the other. The score is then the sum of the cluster's over all views.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.ops import batched_nms

from models.postprocess import Detections

TINY = np.finfo(np.float64).tiny  # keeps 0 / 0 out of boxes without area


def merge_views(
    views: Sequence[Detections], rule: str, top_k: int = 100, iou: float = 0.55, sigma: float = 0.5
) -> Detections:
    """One list of detections from those of several views of an image.

    Args:
        views: the detections in each view, boxes in pixels of the original image, on the CPU.
        rule: `top_k`, `nms`, `soft_nms`, `wbf` or `wbf_set`; the module's first lines say what they do.
        top_k: most detections to keep.
        iou: overlap above which `nms`, `wbf` and `wbf_set` take two boxes for one object.
        sigma: width of `soft_nms`; a larger one lowers the scores less.

    Returns:
        Detections, best first. Equal scores have an order too: that of the views and of what was found in each; of
        fused boxes, that of the classes.

    Raises:
        ValueError: no views, or an unknown rule.
    """
    if not views:
        raise ValueError("views is empty; there is nothing to merge")
    boxes, scores, labels = (torch.cat([getattr(v, part) for v in views]) for part in ("boxes", "scores", "labels"))
    order = _best_first(scores)
    every = Detections(boxes[order], scores[order], labels[order])
    if rule == "nms":
        every = suppress(every, iou)
    elif rule == "soft_nms":
        every = soften(every, sigma, top_k)
    elif rule in ("wbf", "wbf_set"):
        view_of = torch.arange(len(views)).repeat_interleave(torch.tensor([len(v.scores) for v in views]))[order]
        every = fuse(every, view_of, len(views), iou, once=rule == "wbf_set")
    elif rule != "top_k":
        raise ValueError(f"rule is '{rule}'; there are top_k, nms, soft_nms, wbf and wbf_set")
    return Detections(every.boxes[:top_k], every.scores[:top_k], every.labels[:top_k])


def suppress(every: Detections, iou: float) -> Detections:
    """Non-maximum suppression in each class; detections come and go best first."""
    # torchvision shifts every class out of the others' way, which takes coordinates that are not negative.
    boxes = every.boxes.double()
    boxes = boxes - boxes.min() if len(boxes) else boxes
    keep = batched_nms(boxes, every.scores.double(), every.labels, iou).sort().values  # equal scores as they came
    return Detections(every.boxes[keep], every.scores[keep], every.labels[keep])


def soften(every: Detections, sigma: float, top_k: int) -> Detections:
    """The `top_k` first detections that Gaussian soft-NMS takes, with the scores they then have."""
    boxes, labels = every.boxes.double().numpy().T, every.labels.numpy()
    left = every.scores.double().numpy().copy()
    taken, scores = [], []
    # Scores only fall: those taken come best first, over all classes as within each, and the rest need no looking at.
    for _ in range(min(top_k, len(left))):
        best = int(left.argmax())
        taken.append(best)
        scores.append(left[best])
        overlap = _overlaps(boxes[:, best], boxes)
        left *= np.where(labels == labels[best], np.exp(-(overlap**2) / sigma), 1.0)
        left[taken] = -1.0
    found = torch.tensor(taken, dtype=torch.int64)
    return Detections(every.boxes[found], every.scores.new_tensor(scores), every.labels[found])


def fuse(every: Detections, view_of: torch.Tensor, views: int, iou: float, once: bool) -> Detections:
    """Weighted box fusion in each class.

    Args:
        every: detections of all views, best first.
        view_of: `[N]`, the view of each.
        views: how many there are.
        iou: overlap above which a box joins a cluster.
        once: whether a cluster takes only one box of each view.
    """
    parts = []
    for label in every.labels.unique():  # in ascending order
        chosen = every.labels == label
        boxes, scores = every.boxes[chosen].double().numpy(), every.scores[chosen].double().numpy()
        boxes, scores, counts = _fuse_class(boxes, scores, view_of[chosen].numpy(), views, iou, once)
        scores = scores * np.minimum(counts, views) / views
        parts.append((boxes, scores, np.full(len(scores), int(label))))
    if not parts:
        return every
    fused = Detections(*(torch.from_numpy(np.concatenate(part)) for part in zip(*parts)))
    order = _best_first(fused.scores)
    kinds = every.boxes.dtype, every.scores.dtype
    return Detections(fused.boxes[order].to(kinds[0]), fused.scores[order].to(kinds[1]), fused.labels[order])


def _fuse_class(
    boxes: np.ndarray, scores: np.ndarray, view_of: np.ndarray, views: int, iou: float, once: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters of boxes `[N, 4]`: their fused boxes `[M, 4]`, mean scores `[M]` and numbers of boxes `[M]`."""
    fused, sums = np.zeros((4, len(boxes))), np.zeros((4, len(boxes)))
    totals, weights, counts = np.zeros(len(boxes)), np.zeros(len(boxes)), np.zeros(len(boxes), dtype=np.int64)
    taken = np.zeros((views, len(boxes)), dtype=bool)  # which clusters have a box of each view
    found = 0
    for box, score, view in zip(boxes, scores, view_of):
        place = found
        if found:
            overlap = _overlaps(box, fused[:, :found])
            if once:
                overlap[taken[view, :found]] = 0.0
            best = int(overlap.argmax())
            place = best if overlap[best] > iou else found
        found += place == found
        weight = max(score, 1e-12)  # a score of 0 must not leave a cluster without a box
        sums[:, place] += weight * box
        weights[place] += weight
        totals[place] += score
        counts[place] += 1
        taken[view, place] = True
        fused[:, place] = sums[:, place] / weights[place]
    return fused[:, :found].T, totals[:found] / counts[:found], counts[:found]


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU `[N]` of one box `[4]` with others `[4, N]`, all xyxy."""
    width = np.minimum(boxes[2], box[2]) - np.maximum(boxes[0], box[0])
    height = np.minimum(boxes[3], box[3]) - np.maximum(boxes[1], box[1])
    common = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    areas = (boxes[2] - boxes[0]) * (boxes[3] - boxes[1])
    return common / np.maximum(areas + (box[2] - box[0]) * (box[3] - box[1]) - common, TINY)


def _best_first(scores: torch.Tensor) -> torch.Tensor:
    return scores.argsort(descending=True, stable=True)
