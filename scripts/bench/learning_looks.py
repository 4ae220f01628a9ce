"""What `learning.py` looks at between epochs: AP, what proposals cover, how steady the matching is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from analysis.errors.diagnosis import diagnose
from datasets.annotations import Annotations, Id
from datasets.batch import Batch, collate
from datasets.dataset import CocoDetection
from datasets.evaluation import Scores
from datasets.loader import SampleLoader
from datasets.transforms import eval_transform
from engine.evaluate import run_evaluation
from models.detector import DeformableDETR
from models.matcher import HungarianMatcher
from models.queries import Queries
from util.devices import autocast
from util.objects import Objects

FIGURES = ("AP", "AP50", "AP_small", "AP_medium", "AP_large")
COVERED_IOU = 0.5


@dataclass
class Instability:
    """How many objects are matched with another query, as a share in [0, 1]; None where it is not defined.

    Attributes:
        between_layers: than in the decoder layer before, over all pairs of neighbouring layers; needs two layers.
        between_looks: than at the look before, in the last layer; needs one, and queries that are not ranked, for
            ranked query q is not the same query at the next look.
    """

    between_layers: float | None
    between_looks: float | None


def figures_of(scores: Scores) -> dict[str, float | None]:
    """The figures that are kept; None where there is nothing to score."""
    return {name: None if scores.figures[name] == -1 else scores.figures[name] for name in FIGURES}


def errors_of(annotations: Annotations, results: list[dict]) -> dict[str, dict]:
    """Count and AP50 lost by kind of error, as `main.py eval --analyse` has them."""
    return diagnose(annotations, results, worst=0).to_dict()["errors"]["types"]


@contextmanager
def watched_references(detector: DeformableDETR) -> Iterator[list[Tensor]]:
    """Collect the references that the decoder gets, `[Q, 2 or 4]` of each image, while the context lasts."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple, queries: Queries) -> None:
        found.extend(queries.reference.detach().float().cpu())

    handle = detector.queries.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def covered(references: Tensor, boxes: Tensor) -> Tensor:
    """Whether a reference overlaps each object with IoU >= 0.5.

    Args:
        references: `[Q, 4]`, cxcywh in [0, 1].
        boxes: `[T, 4]`, likewise.

    Returns:
        `[T]`, booleans.
    """
    overlap = box_iou(box_convert(references, "cxcywh", "xyxy"), box_convert(boxes, "cxcywh", "xyxy"))  # [Q, T]
    return (overlap >= COVERED_IOU).any(0)


def proposal_recall(references: Sequence[Tensor], objects: Sequence[Objects]) -> float | None:
    """The share of objects that a reference box covers; None if references are points, or without objects.

    Args:
        references: `[Q, 2 or 4]` of each image.
        objects: of each image.
    """
    if not sum(len(o.labels) for o in objects) or any(r.shape[-1] != 4 for r in references):
        return None
    return float(torch.cat([covered(r, o.boxes.cpu().float()) for r, o in zip(references, objects)]).float().mean())


def look_at_detector(
    detector: DeformableDETR,
    loader: SampleLoader,
    category_of: Mapping[int, Id],
    prepare: Callable[[Batch], Batch],
    device: torch.device,
    precision: str,
) -> tuple[dict[str, float | None], list[dict]]:
    """AP and the recall of the boxes that the decoder starts from, in one pass, and the detections."""
    objects: list[Objects] = []

    def remember(loaded: Batch) -> Batch:
        objects.extend(loaded.objects)
        return prepare(loaded)

    with watched_references(detector) as references:
        scores, results = run_evaluation(detector, loader, category_of, remember, device, precision=precision)
    return {**figures_of(scores), "proposal_recall": proposal_recall(references, objects)}, results


def subset_batches(dataset: CocoDetection, count: int, size: int, max_size: int) -> list[Batch]:
    """The same `count` images every time, one in a batch, as evaluation sees them.

    Args:
        dataset: training images.
        count: how many; fewer if there are fewer.
        size, max_size: shorter side and bound of the longer one.
    """
    plain = dataset.transformed(eval_transform(size, max_size))
    chosen = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0))[:count].sort().values
    return [collate([plain[i]]) for i in chosen.tolist()]


class MatchingWatch:
    """How steady the matching of objects and queries is (DN-DETR, arXiv 2203.01305, section 3.2).

    The paper counts queries whose object differs between epochs. Where an object moves from one query to another, two
    queries differ, so that the paper's sum over an image is up to twice the number of objects; here it is the share of
    objects. For ranked queries, whose indices mean nothing at the next look, layers are compared as well.

    Args:
        batches: images to look at, one in a batch.
        matcher: the criterion's.
        prepare: batch to a batch on the device.
    """

    def __init__(self, batches: Sequence[Batch], matcher: HungarianMatcher, prepare: Callable[[Batch], Batch]):
        self.batches, self.matcher, self.prepare = batches, matcher, prepare
        self.before: Tensor | None = None

    def look(self, detector: DeformableDETR, device: torch.device, precision: str = "fp32") -> Instability:
        """Match every image anew."""
        now = self.matched(detector, device, precision)
        before = None if detector.queries.ranked else self.before
        self.before = now[-1]
        return Instability(
            share_changed(now[1:], now[:-1]), None if before is None else share_changed(now[-1:], before[None])
        )

    @torch.inference_mode()
    def matched(self, detector: DeformableDETR, device: torch.device, precision: str) -> Tensor:
        """The query of each object of all images in each of N layers, `[N, T]`; -1 where there is none left."""
        detector.eval()
        found = []
        for loaded in self.batches:
            batch = self.prepare(loaded)
            with autocast(device, precision):
                group = detector(batch.images, batch.padding_mask).groups[0]
            (matches,) = self.matcher([group], [batch.objects])
            queries = torch.full((len(group.logits), len(batch.objects[0].labels)), -1)
            queries[matches.layer.cpu(), matches.object.cpu()] = matches.query.cpu()
            found.append(queries)
        return torch.cat(found, 1)


def share_changed(now: Tensor, before: Tensor) -> float | None:
    """The share of entries of `[N, T]` that differ; None if there are none."""
    return float((now != before).float().mean()) if now.numel() else None
