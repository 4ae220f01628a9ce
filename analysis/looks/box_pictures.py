"""Pictures of the decoder's boxes, refined layer by layer."""

from collections.abc import Mapping, Sequence

import matplotlib
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torchvision.ops import box_convert, box_iou

from analysis.looks.canvas import cross_key, draw_box, draw_cross, legend, panels, zoom
from analysis.looks.sampling import Recording
from analysis.looks.selection import ChosenQuery, layer_scores

_COLUMNS = 4


def boxes_picture(
    picture: Image.Image, record: Recording, chosen: Sequence[ChosenQuery], names: Mapping[int, str]
) -> Figure:
    """A panel for each query: the boxes of all decoder layers, coloured by layer, in a close view.

    The text below gives each layer's score, and the IoU of its box with the last layer's.

    Args:
        picture: the recorded image, RGB.
        record: the recorded forward pass; its first image is drawn.
        chosen: the queries to draw.
        names: class names by label.
    """
    columns = min(_COLUMNS, len(chosen))
    rows, count = -(-len(chosen) // columns), len(record.decoder)
    figure, axes = panels(
        picture, rows, columns, "boxes of the decoder, layer by layer (IoU with the last)", below=count + 1
    )
    size = picture.size
    shades = matplotlib.colormaps["viridis"].resampled(count + 1)
    colours = [to_hex(shades(i + 1)) for i in range(count)]
    for panel in axes.flat[len(chosen) :]:
        panel.remove()
    for panel, query in zip(axes.flat, chosen):
        boxes = record.predictions.boxes[:, 0, query.query].float().cpu()  # [N_dec, 4]
        start = record.decoder[0].references[0, query.query].float().cpu()
        for i, box in enumerate(boxes):
            draw_box(panel, box, size, colours[i], 1.2 + 0.8 * (i == count - 1))
        if len(start) == 4:
            draw_box(panel, start, size, "white", 1.0, linestyle="--")
        draw_cross(panel, start[:2], size, "white")
        corners = box_convert(boxes, "cxcywh", "xyxy")
        zoom(panel, torch.cat([corners[:, :2], corners[:, 2:], start[None, :2]]), size)
        overlap = box_iou(corners, corners[-1:])[:, 0].tolist()
        panel.set_title(f"query {query.query}: {names.get(query.label, f'class {query.label}')}", fontsize="small")
        figures = zip(layer_scores(record.predictions, query), overlap)
        lines = [f"{i}: score {score:.2f}, IoU {iou:.2f}" for i, (score, iou) in enumerate(figures)]
        panel.set_xlabel("\n".join(lines), fontsize="x-small", family="monospace")
    keys = [Line2D([], [], color=c, linewidth=2.5, label=f"layer {i}") for i, c in enumerate(colours)]
    keys.append(cross_key("first reference", "white"))
    legend(figure, keys, columns=4)
    return figure
