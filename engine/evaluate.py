"""Evaluation: detect in every image, score what was found, write it down."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from datasets.annotations import Annotations, Id
from datasets.evaluation import Scores, evaluate_detections, to_coco_results
from datasets.ids import id_order
from datasets.loader import SampleLoader
from datasets.protocol import COCO, MAX_DETECTIONS, protocol_for
from engine.tta import EverySize
from models.postprocess import postprocess
from util.devices import autocast
from util.distributed import ALONE, World
from util.errors import Interrupted
from util.progress import progress
from util.remarks import say_once
from util.signals import StopRequest


@dataclass
class Found:
    """What was detected; empty but in rank 0.

    Attributes:
        results: detections in COCO result format.
        image_ids: the images that were looked at.
    """

    results: list[dict]
    image_ids: list[Id]


def find(
    model: nn.Module,
    loader: SampleLoader | EverySize,
    category_of: Mapping[int, Id],
    prepare: Callable,
    device: torch.device,
    world: World = ALONE,
    top_k: int = 100,
    precision: str = "fp32",
    stop: StopRequest | None = None,
    pick: Callable = postprocess,
) -> Found:
    """Detect in every batch of every process."""
    found = detect(model, loader, partial(pick, top_k=top_k), prepare, device, precision, world=world, stop=stop)
    if found is None:
        return Found([], [])
    results = [r for i, d in found for r in to_coco_results(i, d.boxes, d.scores, d.labels, category_of)]
    return Found(results, [i for i, _ in found])


def score_found(
    found: Found,
    annotations: Annotations,
    world: World = ALONE,
    top_k: int = 100,
    scorer: str = "own",
    protocol: str = COCO,
) -> Scores:
    """Score what was found. Rank 0 scores and tells the others."""
    scores = None
    if world.is_main:
        scores = evaluate_detections(annotations, found.results, top_k, found.image_ids, scorer, protocol)
    for remark in scores.remarks if scores else []:
        say_once(remark)
    return world.broadcast(scores)


def run_evaluation(
    model: nn.Module,
    loader: SampleLoader | EverySize,
    category_of: Mapping[int, Id],
    prepare: Callable,
    device: torch.device,
    world: World = ALONE,
    top_k: int | None = None,
    precision: str = "fp32",
    stop: StopRequest | None = None,
    pick: Callable = postprocess,
    protocol: str = "auto",
) -> tuple[Scores, list[dict]]:
    """Detect in every batch of every process, and score what was found, by a protocol of `datasets.protocol`.

    Returns:
        The scores, and the detections in COCO result format. Rank 0 scores and tells the others; they get no
        detections.
    """
    annotations = loader.dataset.annotations
    protocol = protocol_for(annotations, protocol)
    most = top_k or MAX_DETECTIONS[protocol]
    found = find(model, loader, category_of, prepare, device, world, most, precision, stop, pick)
    return score_found(found, annotations, world, most, protocol=protocol), found.results


@torch.inference_mode()
def detect(
    model: nn.Module,
    batches: Iterable,
    postprocess: Callable,
    prepare: Callable,
    device: torch.device,
    precision: str = "fp32",
    description: str = "eval",
    world: World = ALONE,
    stop: StopRequest | None = None,
) -> list[tuple[Id, Any]] | None:
    """Run the model over every process's share of the batches.

    Args:
        model: batch to predictions.
        batches: this process's share of the images.
        postprocess: (predictions, sizes) to detections of each image.
        prepare: batch to a batch on the device.
        device: where the model is.
        precision: `bf16` and `fp16` run the model under autocast.
        description: text beside the progress bar.
        world: the processes.
        stop: looked at before each batch.

    Returns:
        (image id, detections) of every image, in the order of ids, in rank 0; None elsewhere.

    Raises:
        Interrupted: a process was asked to stop.
    """
    model.eval()
    found = []
    for loaded in progress(batches, description, world=world):
        if stop is not None and stop.requested:
            break
        batch = prepare(loaded)
        with autocast(device, precision):
            predictions = model(batch.images, batch.padding_mask)
        detections = postprocess(predictions, batch.sizes)  # sync: what was found
        found += [(o.image_id, d) for o, d in zip(batch.objects, detections)]
    stopped = world.all_gather(stop is not None and stop.requested)
    if any(stopped):
        raise Interrupted
    gathered = world.gather(found)
    return (
        None if gathered is None else sorted((pair for part in gathered for pair in part), key=lambda p: id_order(p[0]))
    )
