"""The class loss of everything that is no pair: summed a few logits at a time, for there are hundreds of millions.

Written as tensors, each step of the formula would be as large as the logits and kept for the backward pass. Here
nothing is kept but the logits, and of that size only their gradient is made.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits that are computed at once. On a CPU what is computed of them stays in its caches; a GPU wants many.
AT_ONCE = {"cpu": 2**16}
AT_ONCE_ELSEWHERE = 2**23


def background(logits: Tensor, gamma: float, weighting: Tensor | None = None) -> Tensor:
    """p^gamma BCE(p, 0), elementwise; p^gamma is that of the logits `weighting`, if they are given."""
    probability = (logits if weighting is None else weighting).sigmoid()
    return probability**gamma * F.softplus(logits, threshold=40)  # beyond the threshold it is linear: exact in fp64


def sum_and_pick(
    logits: Tensor,
    gamma: float,
    weighted: bool,
    factors: Tensor | None,
    at: tuple[Tensor, ...],
    classes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums of `background` over queries and classes, and some of the logits.

    Both in one, so that their gradients need no second tensor as large as the logits.

    Args:
        logits: `[N, B, q, C]`.
        gamma: exponent.
        weighted: p^gamma is a weight, without a gradient.
        factors: `[B, q]`, by which the values of each query are multiplied, 0 leaves them out whatever they are; None
            for 1.
        at: four index vectors `[P]` into the logits.
        classes: `[B, V]`, those of each image that are added up, each once, filled up with -1; None for all. The others
            are not even computed.

    Returns:
        Sums `[N]` and logits `[P]`. Their gradient can not be differentiated again.
    """
    return _SumAndPick.apply(logits, gamma, weighted, factors, at, classes)


class _SumAndPick(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, gamma, weighted, factors, at, classes):
        ctx.save_for_backward(logits, factors, classes, *at)
        ctx.gamma, ctx.weighted = gamma, weighted
        sums = logits.new_zeros(len(logits))
        for images, queries in _pieces(logits, classes):
            piece = _of_classes(logits[:, images, queries], classes, images)
            values = piece.sigmoid().pow_(gamma).mul_(_softplus(piece))
            sums += _scale(values, factors, classes, images, queries).sum((1, 2, 3))
        return sums, logits[at]

    @staticmethod
    @once_differentiable
    def backward(ctx, of_sums, of_picked):
        logits, factors, classes, *at = ctx.saved_tensors
        grad = torch.empty_like(logits) if classes is None else torch.zeros_like(logits)
        for images, queries in _pieces(logits, classes):
            here = grad[:, images, queries]
            values = _derivative(_of_classes(logits[:, images, queries], classes, images), ctx.gamma, ctx.weighted)
            values = _scale(values.mul_(of_sums[:, None, None, None]), factors, classes, images, queries)
            if classes is None:
                here.copy_(values)
            else:  # added, for what fills up stands for a class, too
                here.scatter_add_(-1, _index(classes, images, values.shape), values)
        grad.index_put_(tuple(at), of_picked, accumulate=True)
        return grad, None, None, None, None, None


def _of_classes(logits: Tensor, classes: Tensor | None, images: slice) -> Tensor:
    """Logits `[N, b, r, C]` of the classes of each image, `[N, b, r, V]`."""
    if classes is None:
        return logits
    return logits.gather(-1, _index(classes, images, (*logits.shape[:3], classes.shape[1])))


def _index(classes: Tensor, images: slice, shape: Sequence[int]) -> Tensor:
    """Classes `[B, V]` of some images for every layer and query, of this shape `[N, b, r, V]`."""
    return classes[images].clamp(min=0)[None, :, None].expand(tuple(shape))


def _derivative(logits: Tensor, gamma: float, weighted: bool) -> Tensor:
    """Of `background`: p^gamma (gamma (1 - p) BCE(p, 0) + p), or the latter alone if p^gamma is a weight."""
    p = logits.sigmoid()
    power = p**gamma
    if weighted:
        return power.mul_(p)
    inner = _softplus(logits).mul_((1 - p).mul_(gamma))
    return power.mul_(inner.add_(p))


def _softplus(logits: Tensor) -> Tensor:
    """BCE(p, 0) = max(z, 0) + log(1 + exp(-|z|)).

    On a CPU torch takes five times as long for log(1 + e) as for log(u), u = 1 + e rounded. What rounding took away is
    put back to first order, (1 + e - u) / u, and as u - 1 is exact, so is the remainder.
    """
    if logits.device.type != "cpu":
        return F.softplus(logits, threshold=40)
    e = logits.abs().neg_().exp_()
    u = e + 1
    e.sub_(u - 1).div_(u)
    return u.log_().add_(e).add_(logits.clamp(min=0))


def _scale(values: Tensor, factors: Tensor | None, classes: Tensor | None, images: slice, queries: slice) -> Tensor:
    """Values `[N, b, r, C or V]` in place, each with the factor of its query, and without what fills classes up."""
    if classes is not None:
        values.masked_fill_(classes[images, None] < 0, 0.0)
    if factors is None:
        return values
    here = factors[images, queries, None]
    return values.mul_(here).masked_fill_(here == 0, 0.0)


def _pieces(logits: Tensor, classes: Tensor | None = None) -> Iterator[tuple[slice, slice]]:
    """Images and queries of pieces of logits `[N, B, q, C]`, of which V classes may be computed."""
    layers, images, queries, width = logits.shape
    width = width if classes is None else classes.shape[1]
    most = AT_ONCE.get(logits.device.type, AT_ONCE_ELSEWHERE)
    several = max(1, most // max(1, layers * queries * width))
    rows = max(1, most // max(1, layers * min(several, images) * width))
    for image in range(0, images, several):
        for query in range(0, queries, rows):
            yield slice(image, image + several), slice(query, query + rows)
