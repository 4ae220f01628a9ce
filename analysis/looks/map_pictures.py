"""Pictures of the three maps: effective sampling locations, effective receptive field, saliency region."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from analysis.looks.canvas import box_key, colour_bar, draw_box, draw_points, legend, level_keys, panels
from analysis.looks.effective import EffectiveLocations, density
from analysis.looks.saliency import SaliencyRegion
from analysis.looks.sampling import Recording
from analysis.looks.sampling_pictures import describe_query
from analysis.looks.selection import ChosenQuery

_HEAT = "magma"
_DARK = 0.45


def locations_picture(
    picture: Image.Image,
    record: Recording,
    traced: Sequence[tuple[ChosenQuery, EffectiveLocations]],
    names: Mapping[int, str],
) -> Figure:
    """A row for each query: the strongest final points, and the mass of all points by pixel.

    Args:
        picture: the recorded image, RGB.
        record: the recorded forward pass; its first image is drawn.
        traced: queries, and the locations where their attention ends.
        names: class names by label.
    """
    figure, axes = panels(picture, len(traced), 2, "effective sampling locations", _DARK)
    size, levels = picture.size, list(range(len(record.spatial_shapes)))
    strongest = max(float(t.mass.max()) for _, t in traced)
    weakest = max(min(float(t.mass[t.mass > 0].min()) for _, t in traced), strongest / 1000)
    points = LogNorm(min(weakest, strongest / 10), strongest)
    maps = [density(t.token_mass, record.spatial_shapes, record.valid_ratios[0].cpu(), size[::-1]) for _, t in traced]
    heat = PowerNorm(0.5, 0, max(float(m.max()) for m in maps) * size[0] * size[1])
    for (left, right), (query, found), mass in zip(axes, traced, maps):
        draw_points(left, found.points, found.mass, found.levels, size, points)
        share = float(found.mass.sum())
        left.set_title(f"the {len(found.points)} strongest points: {share:.0%}", fontsize="small")
        _lay_heat(right, mass * size[0] * size[1], size, heat)
        right.set_title(f"all attention on the image: {found.kept:.0%}", fontsize="small")
        for panel in (left, right):
            draw_box(panel, record.predictions.boxes[-1, 0, query.query], size)
        left.set_ylabel(describe_query(query, names), fontsize="small")
    colour_bar(figure, axes[:, 0], points, "mass of a point")
    colour_bar(figure, axes[:, 1], heat, "mass by area (1: spread evenly)", _HEAT)
    legend(figure, [*level_keys(levels), box_key("box")])
    return figure


def gradient_picture(
    picture: Image.Image,
    record: Recording,
    fields: Sequence[tuple[ChosenQuery, Mapping[str, Tensor]]],
    names: Mapping[int, str],
) -> Figure:
    """A row for each query, a column for each output: how strongly each pixel moves the output, slightly smoothed.

    Args:
        picture: the recorded image, RGB.
        record: the recorded forward pass, which has the boxes.
        fields: queries, and |gradient| `[H, W]` by the output's name.
        names: class names by label.
    """
    columns = list(fields[0][1])
    title = "effective receptive field: |gradient| of an output by the image"
    figure, axes = panels(picture, len(fields), len(columns), title, _DARK)
    size = picture.size
    scale = PowerNorm(0.5, 0, 1)
    for row, (query, by_output) in zip(axes, fields):
        for panel, name in zip(row, columns):
            smooth = _smooth(by_output[name])
            _lay_heat(panel, smooth / smooth.max().clamp(min=torch.finfo(smooth.dtype).tiny), size, scale)
            draw_box(panel, record.predictions.boxes[-1, 0, query.query], size)
            panel.set_title(f"of the {name}" + ("" if smooth.any() else ": none"), fontsize="small")
        row[0].set_ylabel(describe_query(query, names), fontsize="small")
    colour_bar(figure, axes, scale, "share of the panel's largest, smoothed", _HEAT)
    legend(figure, [box_key("box")])
    return figure


def saliency_picture(
    picture: Image.Image,
    record: Recording,
    regions: Sequence[tuple[ChosenQuery, SaliencyRegion]],
    bound: float,
    names: Mapping[int, str],
) -> Figure:
    """A panel for each query: the region that is kept is bright, the rest is dark.

    Args:
        picture: the recorded image, RGB.
        record: the recorded forward pass, which has the boxes.
        regions: queries, and the regions they need.
        bound: the error that was allowed.
        names: class names by label.
    """
    title = f"the smallest region found that keeps score and box within {bound:g}"
    figure, axes = panels(picture, 1, len(regions), title, 0.22, below=2)
    (width, height), full = picture.size, np.asarray(picture.convert("RGB"))
    for panel, (query, region) in zip(axes[0], regions):
        keep = np.asarray(Image.fromarray(region.keep.numpy()).resize(picture.size, Image.Resampling.NEAREST))
        alpha = (keep * 255).astype(np.uint8)[..., None]
        panel.imshow(np.concatenate([full, alpha], -1), extent=(0, width, height, 0), interpolation="nearest")
        draw_box(panel, record.predictions.boxes[-1, 0, query.query], picture.size)
        panel.set_title(describe_query(query, names).replace("\n", ": "), fontsize="small")
        panel.set_xlabel(
            f"{region.share:.0%} of the image, error {region.error:.3f}\n{region.passes} masks tried", fontsize="small"
        )
    legend(figure, [box_key("box")])
    return figure


def _lay_heat(panel, values: Tensor, size: tuple[int, int], scale: Normalize) -> None:
    """Draw heat over a dark picture, opaque where it is hot."""
    heat = values.float().cpu().numpy()
    alpha = np.clip(np.ma.getdata(scale(heat)) * 1.6, 0, 0.88)
    panel.imshow(heat, cmap=_HEAT, norm=scale, alpha=alpha, extent=(0, size[0], size[1], 0), interpolation="bilinear")


def _smooth(field: Tensor) -> Tensor:
    sigma = max(0.5, 0.008 * max(field.shape))
    # Borders are mirrored, so that the kernel must be narrower than twice the field: of a strip it is cut.
    kernel = [2 * min(int(3 * sigma), side - 1) + 1 for side in reversed(field.shape)]  # along x, then y
    return gaussian_blur(field[None], kernel, [sigma, sigma])[0]
