"""A training step as it is often written, with which `scripts/bench/train.py` compares ours.

Each layer is matched by itself, with a transfer of its own and every query against the objects of all images. Each loss
is computed and read by itself. Convolutions keep the ordinary memory layout, dropout is torch's, and AdamW and clipping
go parameter by parameter. It learns the same, because the sum of its losses equals that of `models.criterion`.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou

from datasets.batch import Batch
from engine.state import TrainingState
from models.class_losses import FocalLoss
from models.detector import DeformableDETR
from models.dropout import Dropout
from models.predictions import Predictions
from util.config import LossConfig
from util.objects import Objects

Matcher = Callable[..., list[tuple]]


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, labels: list[Tensor], wanted: list[Tensor], cfg: LossConfig) -> list[tuple]:
    """The assignment with the least cost for one layer.

    Args:
        logits, boxes: the layer's predictions, `[B, Q, C]` and `[B, Q, 4]`.
        labels, wanted: labels `[T]` and boxes `[T, 4]` of each image's objects.
        cfg: the configuration, which has the costs.

    Returns:
        Indices (queries, objects) for each image.
    """
    p, flat = logits.flatten(0, 1).sigmoid(), boxes.flatten(0, 1)
    ids, truth = torch.cat(labels), torch.cat(wanted)
    positive = cfg.focal_alpha * (1 - p) ** cfg.focal_gamma * -(p + 1e-8).log()
    negative = (1 - cfg.focal_alpha) * p**cfg.focal_gamma * -(1 - p + 1e-8).log()
    cost = cfg.class_cost * (positive[:, ids] - negative[:, ids]) + cfg.l1_cost * torch.cdist(flat, truth, p=1)
    cost -= cfg.giou_cost * generalized_box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (flat, truth)))
    blocks = cost.view(*logits.shape[:2], -1).cpu().split([len(of_image) for of_image in labels], -1)
    return [linear_sum_assignment(block[i]) for i, block in enumerate(blocks)]


def losses_of(
    predictions: Predictions, targets: Sequence[Objects], cfg: LossConfig, matcher: Matcher = match
) -> dict[str, Tensor]:
    """The weighted losses of every layer (and of the proposals), with the names of `models.criterion`.

    Args:
        predictions: the model's predictions.
        targets: the objects of each image.
        cfg: the configuration, which has weights and costs.
        matcher: a function like `match`.
    """
    layers = {f"decoder.{i}": pair for i, pair in enumerate(zip(predictions.logits, predictions.boxes))}
    if not cfg.auxiliary:
        layers = dict([layers.popitem()])
    for group in predictions.groups[1:]:  # a two-stage model's proposals, which have no class
        layers[group.name] = (group.logits[0], group.boxes[0])
    num_boxes, losses = max(sum(len(t.labels) for t in targets), 1), {}
    for name, (logits, boxes) in layers.items():
        labels = [torch.zeros_like(t.labels) if name == "proposals" else t.labels for t in targets]
        pairs = matcher(logits, boxes, labels, [t.boxes for t in targets], cfg)
        image = torch.cat([torch.full((len(queries),), i) for i, (queries, _) in enumerate(pairs)])
        query = torch.cat([torch.as_tensor(queries) for queries, _ in pairs])

        background = logits.shape[2]
        classes = torch.full(logits.shape[:2], background, device=logits.device)
        classes[image, query] = torch.cat([of_image[torch.as_tensor(t)] for of_image, (_, t) in zip(labels, pairs)])
        truth = logits.new_zeros(*logits.shape[:2], background + 1).scatter_(-1, classes[..., None], 1)[..., :-1]
        p = logits.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        missed = 1 - (p * truth + (1 - p) * (1 - truth))
        balance = cfg.focal_alpha * truth + (1 - cfg.focal_alpha) * (1 - truth)
        weight = FocalLoss.weight if cfg.class_weight is None else cfg.class_weight
        losses[f"class/{name}"] = weight * (balance * entropy * missed**cfg.focal_gamma).sum() / num_boxes

        wanted = torch.cat([t.boxes[torch.as_tensor(chosen)] for t, (_, chosen) in zip(targets, pairs)])
        found = boxes[image, query]
        losses[f"l1/{name}"] = cfg.l1_weight * F.l1_loss(found, wanted, reduction="none").sum() / num_boxes
        giou = generalized_box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (found, wanted))).diag()
        losses[f"giou/{name}"] = cfg.giou_weight * (1 - giou).sum() / num_boxes
    return losses


def make_ordinary(model: DeformableDETR) -> None:
    """Undo channels_last in the backbone's weights and inputs, and use torch's dropout."""
    backbone = model.backbone
    backbone.body.to(memory_format=torch.contiguous_format)

    def ordinary_backbone(images: Tensor, padding_mask: Tensor | None = None) -> list[Tensor]:
        return backbone.body(images.contiguous())[-backbone.num_features :]

    def ordinary_dropout(own: Dropout) -> Callable[[Tensor], Tensor]:
        return lambda x: F.dropout(x, own.p, own.training)

    backbone.forward = ordinary_backbone  # type: ignore[method-assign]  # of this one module
    for module in model.modules():
        if isinstance(module, Dropout):
            module.forward = ordinary_dropout(module)  # type: ignore[method-assign, assignment]  # of this one module


def step(batch: Batch, prepare: Callable, criterion: Callable, state: TrainingState, clip_norm: float) -> None:
    """Forward, losses read one by one, backward, clip, update.

    Args:
        batch: the batch on the host.
        prepare: moves a batch to the device.
        criterion: maps (predictions, targets) to a dictionary of losses.
        state: the model and its optimizer. The scaler does nothing in fp32, but the clock times its methods.
        clip_norm: largest gradient norm; 0 does not clip.
    """
    state.model.train()
    batch = prepare(batch)
    losses = criterion(state.model(batch.images, batch.padding_mask, batch.objects), batch.objects)
    total = sum(losses.values())
    if not math.isfinite(total.item()):
        raise FloatingPointError("a loss is not finite")
    state.means.add([*losses], torch.tensor([loss.item() for loss in losses.values()]))
    state.optimizer.zero_grad()
    total.backward()
    state.scaler.unscale_(state.optimizer)
    nn.utils.clip_grad_norm_(state.parameters, clip_norm or math.inf, foreach=False)
    state.scaler.step(state.optimizer)
    if state.ema is not None:
        state.ema.update(state.model)
