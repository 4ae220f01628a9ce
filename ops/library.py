"""The operators as registered with `torch.library`: schema, shapes, gradients, vmap and FLOPs.

The compiled libraries (`ops/csrc`) add the kernels of `torch.ops.deformable_detr.ms_deform_attn` and `..._backward` to
the schemas below. Call `ops.ms_deform_attn` instead: it checks its arguments and has a fallback.
"""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ops import reference

_library = torch.library.Library("deformable_detr", "DEF")
_ARGUMENTS = "Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights"
_library.define(f"ms_deform_attn({_ARGUMENTS}, SymInt[] num_points) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.define(
    f"ms_deform_attn_backward(Tensor grad, {_ARGUMENTS}, SymInt[] num_points, bool deterministic)"
    " -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_FORWARD, _BACKWARD = "deformable_detr::ms_deform_attn", "deformable_detr::ms_deform_attn_backward"
_forward = torch.ops.deformable_detr.ms_deform_attn.default
_backward = torch.ops.deformable_detr.ms_deform_attn_backward.default


@torch.library.register_fake(_FORWARD)
def _(value, spatial_shapes, sampling_locations, attention_weights, num_points):
    batch, _, heads, channels = value.shape
    return value.new_empty((batch, attention_weights.shape[1], heads * channels))


@torch.library.register_fake(_BACKWARD)
def _(grad, value, spatial_shapes, sampling_locations, attention_weights, num_points, deterministic):
    return tuple(t.new_empty(t.shape) for t in (value, sampling_locations, attention_weights))


def _save(ctx, inputs, output):
    value, ctx.spatial_shapes, locations, weights, ctx.num_points = inputs
    ctx.save_for_backward(value, locations, weights)


def _gradient(ctx, grad):
    value, locations, weights = ctx.saved_tensors
    # torch's own switch asks for deterministic kernels; those of the CPU always are.
    exact = torch.are_deterministic_algorithms_enabled()
    grads = _backward(grad, value, ctx.spatial_shapes, locations, weights, ctx.num_points, exact)
    return grads[0], None, grads[1], grads[2], None


torch.library.register_autograd(_FORWARD, _gradient, setup_context=_save)


def _save_backward(ctx, inputs, output):
    grad, value, ctx.spatial_shapes, locations, weights, ctx.num_points, _ = inputs
    ctx.save_for_backward(grad, value, locations, weights)


def _second_gradient(ctx, *seconds):
    """The gradient of the gradient, by the reference, which PyTorch can differentiate."""
    shapes = list(zip(ctx.spatial_shapes[::2], ctx.spatial_shapes[1::2]))
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Take views: the incoming gradient may depend on these same tensors, and that path is not differentiated here.
        inputs = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in ctx.saved_tensors]
        grad, *points = inputs
        out = reference.ms_deform_attn(points[0], shapes, points[1], points[2], ctx.num_points)
        firsts = torch.autograd.grad(out, points, grad, create_graph=True)
        given = [torch.zeros_like(first) if second is None else second for first, second in zip(firsts, seconds)]
        found = torch.autograd.grad(firsts, inputs, given, create_graph=again, allow_unused=True)
    return found[0], found[1], None, found[2], found[3], None, None


torch.library.register_autograd(_BACKWARD, _second_gradient, setup_context=_save_backward)


class _Eager(torch.autograd.Function):
    """The gradient registered above, for plain eager calls, where registered formulas take three times as long.

    A call with small shapes, as in a decoder, takes less time than PyTorch's dispatch to a registered formula.
    """

    @staticmethod
    def forward(ctx, *arguments):
        _save(ctx, arguments, None)
        with torch._C._AutoDispatchBelowAutograd():
            return _forward(*arguments)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # create_graph=True
            return _gradient(ctx, grad)
        with torch._C._AutoDispatchBelowAutograd():
            return _gradient(ctx, grad)


def ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights, num_points) -> Tensor:
    """`ops.ms_deform_attn` by the compiled kernels for the value's device. The arguments must be checked already."""
    if torch.autograd.forward_ad._current_level >= 0:  # torch would silently take zero for the derivative
        inputs = (value, sampling_locations, attention_weights)
        if any(torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in inputs):
            raise NotImplementedError(
                "ms_deform_attn has no forward-mode derivative (jvp); use torch.autograd.grad or backward()"
            )
    flat = [size for shape in spatial_shapes for size in shape]
    arguments = (value, flat, sampling_locations, attention_weights, list(num_points))
    if torch._C._are_functorch_transforms_active():
        try:
            return _forward(*arguments)
        except RuntimeError as error:
            if "setup_context" not in str(error):
                raise
            raise NotImplementedError(
                "ms_deform_attn works under torch.vmap, but not under torch.func's derivatives (grad, vjp, jacrev, "
                "hessian); use torch.autograd.grad or backward()"
            ) from None
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return _forward(*arguments)  # both use the registered formulas
    return _Eager.apply(*arguments)


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Fold the mapped dimension of a vmapped tensor into the batch."""
    tensor = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


@torch.library.register_vmap(_FORWARD)
def _(info, in_dims, value, spatial_shapes, sampling_locations, attention_weights, num_points):
    size, dims = info.batch_size, (in_dims[0], in_dims[2], in_dims[3])
    value, locations, weights = (
        _fold(t, dim, size) for t, dim in zip((value, sampling_locations, attention_weights), dims)
    )
    return _forward(value, spatial_shapes, locations, weights, num_points).unflatten(0, (size, -1)), 0


@torch.library.register_vmap(_BACKWARD)
def _(info, in_dims, grad, value, spatial_shapes, sampling_locations, attention_weights, num_points, deterministic):
    size, dims = info.batch_size, (in_dims[0], in_dims[1], in_dims[3], in_dims[4])
    grad, value, locations, weights = (
        _fold(t, dim, size) for t, dim in zip((grad, value, sampling_locations, attention_weights), dims)
    )
    grads = _backward(grad, value, spatial_shapes, locations, weights, num_points, deterministic)
    return tuple(t.unflatten(0, (size, -1)) for t in grads), (0, 0, 0)


@register_flop_formula(torch.ops.deformable_detr.ms_deform_attn)
def _(value_shape, spatial_shapes, locations_shape, weights_shape, num_points, *args, out_shape=None, **kwargs) -> int:
    # Four corners, with a multiplication and an addition for each channel. Coordinates and weights are not counted.
    return 8 * math.prod(weights_shape) * value_shape[3]


@register_flop_formula(torch.ops.deformable_detr.ms_deform_attn_backward)
def _(
    grad_shape, value_shape, spatial_shapes, locations_shape, weights_shape, num_points, *args, out_shape=None, **kwargs
) -> int:
    # The corners' dot products with the gradient take as many, and adding to the corners' gradients as many again.
    return 16 * math.prod(weights_shape) * value_shape[3]
