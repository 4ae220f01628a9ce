"""Random arguments of the operator and the results to compare, for the tests of its backends."""

import torch

import ops

ENCODER_LIKE = [(9, 13), (5, 7), (3, 4)]


def arguments(
    spatial_shapes=ENCODER_LIKE,
    num_points=(2, 3, 1),
    batch=2,
    queries=11,
    heads=2,
    channels=8,
    dtype=torch.float32,
    seed=0,
):
    """Some locations outside the maps, one far away, one at infinity, one that is not a number."""
    generator = torch.Generator().manual_seed(seed)
    tokens, points = sum(h * w for h, w in spatial_shapes), sum(num_points)
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    value = torch.randn(batch, tokens, heads, channels, generator=generator).to(dtype)
    locations = torch.rand(batch, queries, heads, points, 2, generator=generator, dtype=compute) * 1.3 - 0.15
    strange = locations.view(-1, 2)
    for index, (x, y) in enumerate([(1e30, 0.5), (0.5, -3e9), (float("inf"), 0.5), (0.5, float("nan"))]):
        if 3 * index < len(strange):
            strange[3 * index] = torch.tensor([x, y])
    weights = torch.rand(batch, queries, heads, points, generator=generator, dtype=compute).softmax(-1)
    return value, list(spatial_shapes), locations, weights, list(num_points)


def results(arguments, backend, grad=None):
    """Output, and gradients of value, locations and weights for a given gradient of the output."""
    value, shapes, locations, weights, points = arguments
    leaves = [t.detach().requires_grad_() for t in (value, locations, weights)]
    out = ops.ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2], points, backend=backend)
    if grad is None:
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def in_float64(arguments):
    """The same numbers in float64."""
    return [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]


def relative_errors(ours, exact):
    """The largest deviation of each result, relative to its largest entry."""
    return [
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)) if b.numel() else 0.0
        for a, b in zip(ours, exact)
    ]
