"""Effective sampling locations of a backbone: where its stacked convolutions read, and how much each place matters.

A unit of a feature map reads the image through every convolution below it. Each kernel point of each convolution reads
its input at one location. The location's strength is |d response / d location|: how fast the unit's response would
change if this one sample moved a little (arXiv 1811.11168, sections 2.1 and 2.2; the pictures of
1703.06211, figures 6 and 7, are the same points without strengths).

The response is the norm of the unit's feature vector. One backward pass then serves all channels. Each channel counts
by how active it is, and nothing depends on the channels' order, on a class or on a head.

No location has to be moved. A sample enters the convolution's output linearly. By the chain rule the derivative is the
gradient at the output times the kernel's weights times the slope of the bilinear surface at the location, summed over
channels. The gradient runs through later layers as they are, with the offsets and modulation that they predict.

The bilinear surface has a kink at each pixel's centre, where ordinary convolutions read. The slope of one side would
favour right over left, so the mean of both sides is taken. It is the derivative that central differences measure, and
equals the slope anywhere else. A peak one pixel wide that is read in its middle thus has strength 0.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import Backbone
from models.deform_backbone import stage_convolutions
from models.folded_norms import weight_in_use
from ops import DeformConv2d
from util.errors import UserError

STAGES = (2, 3, 4, 5)  # stages of blocks, numbered as in papers: conv2_x to conv5_x


@dataclass
class ConvLocations:
    """The locations that a unit of a backbone reads, in fp64 on the CPU.

    Attributes:
        unit: (x, y) in [0, 1] of the image, the centre of the unit's cell.
        points: `[N, 2]`, (x, y) in [0, 1] of the image; points outside read the zeros around a map.
        strength: `[N]`, |d response / d location| per pixel of the network's input image; above 0.
        stages: `[N]`, stage of the convolution that reads, 2 to 5.
        layers: `[N]`, the convolution's index in `names`.
        names: names of the convolutions, in the order in which they run.
    """

    unit: tuple[float, float]
    points: Tensor
    strength: Tensor
    stages: Tensor
    layers: Tensor
    names: list[str]

    def where(self, chosen: Tensor) -> "ConvLocations":
        """The locations that indices or a mask `[N]` choose."""
        parts = {name: getattr(self, name)[chosen] for name in ("points", "strength", "stages", "layers")}
        return replace(self, **parts)

    def of_stage(self, stage: int) -> "ConvLocations":
        """The locations of one stage."""
        return self.where(self.stages == stage)

    def strongest(self, count: int) -> "ConvLocations":
        """The `count` strongest locations, or all if there are fewer, strongest first."""
        return self.where(self.strength.topk(min(count, len(self.strength))).indices)

    def share_inside(self, box: Sequence[float]) -> float:
        """The share of all strength in a box (cxcywh in [0, 1] of the image); NaN without locations."""
        centre, size = torch.tensor(box, dtype=torch.float64).split(2)
        inside = ((self.points - centre).abs() <= size / 2).all(-1)
        return float(self.strength[inside].sum() / self.strength.sum())

    def radius(self, share: float, size: tuple[int, int]) -> float:
        """The radius around the unit, in pixels of a picture, that holds a share of all strength; NaN if it is empty.

        Args:
            share: the share, in (0, 1]; 0.5 gives the median distance.
            size: (width, height) of the picture.
        """
        if not len(self.strength):
            return float("nan")
        scale = torch.tensor(size, dtype=torch.float64)
        distance, order = ((self.points - torch.tensor(self.unit, dtype=torch.float64)) * scale).norm(dim=-1).sort()
        reached = self.strength[order].cumsum(0)
        # By rounding, the last sum can lie below `share` times itself.
        return float(distance[int((reached < share * reached[-1]).sum().clamp(max=len(order) - 1))])


def conv_sampling(
    backbone: Backbone, images: Tensor, point: tuple[float, float], level: int = -1, stages: Sequence[int] = STAGES
) -> ConvLocations:
    """The locations that a unit reads through the 3x3 convolutions of its backbone, and their strengths.

    It takes one forward and one backward pass. The backbone, its gradients and its statistics do not change.

    Args:
        backbone: a backbone of ResNet blocks, regular or deformable, in evaluation mode.
        images: `[1, 3, H, W]`, normalised, without padding.
        point: (x, y) in [0, 1] of the image; the unit's cell holds it.
        level: the unit's level, an index into the maps that the backbone returns; -1 is the deepest.
        stages: the stages whose convolutions are followed, 2 to 5. Those above the unit do not move it and have no
            locations.

    Raises:
        UserError: the backbone is of another kind, there is no such level or stage, or all stages lie above the unit.
        ValueError: there are several images, or the backbone is in training mode, in which its norms would change.
    """
    if len(images) != 1 or backbone.training:
        raise ValueError(f"images {list(images.shape)} must be one, and the backbone in evaluation mode")
    if not stage_convolutions(backbone.body, STAGES):
        raise UserError("only a ResNet's or ResNeXt's convolutions can be followed; this backbone has no such blocks")
    if not stages or not set(stages) <= set(STAGES):
        raise UserError(f"stages is {list(stages)}; it must list some of {list(STAGES)}")
    if not -backbone.num_features <= level < backbone.num_features:
        raise UserError(f"there is no level {level}; this backbone returns levels 0 to {backbone.num_features - 1}")
    layers = stage_convolutions(backbone.body, stages)
    images = images.detach().clone().requires_grad_()  # frozen stages have a gradient only through their input
    read: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    with ExitStack() as hooks, torch.enable_grad():
        for _, _, layer in layers:
            hooks.callback(layer.register_forward_hook(_keep_in(read)).remove)
        features = backbone(images)[level]
        (height, width), (x, y) = features.shape[-2:], point
        column, row = min(max(int(x * width), 0), width - 1), min(max(int(y * height), 0), height - 1)
        response = torch.linalg.vector_norm(features[0, :, row, column])
        gradients = torch.autograd.grad(response, [read[layer][1] for *_, layer in layers], allow_unused=True)
    below = [i for i, gradient in enumerate(gradients) if gradient is not None]
    if not below:
        raise UserError(f"the convolutions of stages {list(stages)} lie above level {level} and do not move it")
    found = [_locations(layers[i][2], read[layers[i][2]][0], gradients[i], images.shape[-2:]) for i in below]
    counts = torch.tensor([len(strength) for _, strength in found])
    return ConvLocations(
        ((column + 0.5) / width, (row + 0.5) / height),
        torch.cat([points for points, _ in found]),
        torch.cat([strength for _, strength in found]),
        torch.tensor([layers[i][1] for i in below]).repeat_interleave(counts),
        torch.tensor(below).repeat_interleave(counts),
        [name for name, *_ in layers],
    )


def _keep_in(read: dict[nn.Module, tuple[Tensor, Tensor]]) -> Callable:
    def hook(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
        read[layer] = (inputs[0].detach(), out)
        return out.clone()  # an activation that follows in place would change what was kept

    return hook


@torch.no_grad()
def _locations(layer: nn.Conv2d, x: Tensor, gradient: Tensor, image_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Points `[N, 2]` in [0, 1] of the image and strengths `[N]` of a convolution.

    Args:
        layer: the convolution, regular or deformable.
        x: `[1, C, H, W]`, its input.
        gradient: `[1, O, h, w]`, gradient of the response by its output; where it is zero, nothing is read.
        image_size: (height, width) of the image.
    """
    rows, columns = gradient[0].abs().amax(0).nonzero().unbind(-1)  # [n] positions that count
    gradient = gradient[0, :, rows, columns].T.unflatten(1, (layer.groups, -1))  # [n, groups, O/groups]
    if isinstance(layer.padding, str):
        raise ValueError(f"the padding of {layer} must be given in pixels")
    first = torch.stack([rows, columns], -1) * _pair(layer.stride, x) - _pair(layer.padding, x)
    if isinstance(layer, DeformConv2d):
        offsets, modulation = layer.offsets_and_modulation(x)
        offsets = offsets[0, :, rows, columns].T.unflatten(1, (layer.offset_groups, -1, 2))  # [n, G, k, 2]
        if modulation is not None:
            modulation = modulation[0, :, rows, columns].T.unflatten(1, (layer.offset_groups, -1))  # [n, G, k]
    else:
        offsets, modulation = x.new_zeros(1, 1, 9, 2), None
    size = _pair(x.shape[-2:], x)
    per_pixel = size / _pair(image_size, x)  # pixels of the map for each of the image
    kernel = weight_in_use(layer).flatten(2)
    points, strength = [], []
    for k, step in enumerate(product(range(3), range(3))):  # one by one, to use nine times less memory
        pixels = (first + _pair(step, x) * _pair(layer.dilation, x))[:, None] + offsets[:, :, k]  # [n, G, 2]
        weights = kernel[..., k].unflatten(0, (layer.groups, -1))  # [groups, O/groups, C/groups]
        by_sample = torch.einsum("ngo,goc->ngc", gradient, weights).flatten(1).unflatten(1, (pixels.shape[1], -1))
        if modulation is not None:
            by_sample = by_sample * modulation[:, :, k, None]
        by_axis = [(by_sample * _slope(x, pixels, axis)).sum(-1) for axis in (0, 1)]  # [n, G] each
        strength.append((torch.stack(by_axis, -1) * per_pixel).norm(dim=-1).flatten())
        points.append(((pixels + 0.5) / size).flip(-1).flatten(0, 1))
    strengths = torch.cat(strength).double().cpu()
    return torch.cat(points).double().cpu()[strengths > 0], strengths[strengths > 0]


def _slope(x: Tensor, pixels: Tensor, axis: int) -> Tensor:
    """The slope of the bilinear surface along an axis; on a kink, the mean of both sides.

    Args:
        x: `[1, C, H, W]`, zero outside.
        pixels: `[n, G, 2]`, (y, x) of each of G groups of channels.
        axis: 0 for y, 1 for x.

    Returns:
        `[n, G, C/G]`, per pixel of x.
    """
    before, after = pixels.clone(), pixels.clone()
    before[..., axis] = before[..., axis].ceil() - 1
    after[..., axis] = after[..., axis].floor() + 1
    rise = _read(x, after) - _read(x, before)
    return rise / (after - before)[..., axis, None]  # they are two pixels apart on a kink, else one


def _read(x: Tensor, pixels: Tensor) -> Tensor:
    """Bilinear samples `[n, G, C/G]` of x `[1, C, H, W]` at `[n, G, 2]`, (y, x)."""
    grid = (
        ((2 * pixels + 1) / torch.tensor(x.shape[-2:]).to(x) - 1).flip(-1).transpose(0, 1)[:, :, None]
    )  # [G, n, 1, 2]
    samples = F.grid_sample(x[0].unflatten(0, (pixels.shape[1], -1)), grid, align_corners=False)
    return samples[..., 0].permute(2, 0, 1)


def _pair(value: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(value).to(like)
