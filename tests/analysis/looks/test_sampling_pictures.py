"""What is drawn is what was recorded: points, colours, crosses and boxes read back from the figures."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from analysis.looks.box_pictures import boxes_picture
from analysis.looks.canvas import save
from analysis.looks.effective import trace
from analysis.looks.map_pictures import _smooth, locations_picture, saliency_picture
from analysis.looks.saliency import SaliencyRegion
from analysis.looks.sampling import record_sampling
from analysis.looks.sampling_pictures import decoder_picture, encoder_picture, heads_picture
from analysis.looks.selection import ChosenQuery, tokens_at
from tests.analysis.looks.tiny import VARIANTS, tiny, two_images

SIZE = (48, 32)  # of the picture that stands for the 96 x 64 image
NAMES = {0: "star", 1: "moon"}
CHOSEN = [ChosenQuery(4, 1, 0.5), ChosenQuery(0, 0, 0.25)]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE[::-1], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(1, 90), (90, 1), (2, 300), (1, 1)])
def test_heat_of_a_picture_that_is_a_strip(size):
    """It is smoothed as far as the strip goes; a field of one value stays as it is."""
    smooth = _smooth(torch.full(size, 0.25))
    assert smooth.shape == size and torch.allclose(smooth, torch.tensor(0.25))


def recorded(variant: str):
    return record_sampling(tiny(**VARIANTS[variant]), *(t[:1] for t in two_images()))


def drawn(panel) -> np.ndarray:
    """Points of a panel, (x, y, weight) by row, in one order."""
    rows = [np.column_stack([c.get_offsets(), c.get_array()]) for c in panel.collections]
    return np.array(sorted(np.concatenate(rows).tolist()))


def expected(sampling, query: int) -> np.ndarray:
    points = sampling.locations[0, query].flatten(0, 1) * torch.tensor(SIZE)
    rows = torch.cat([points, sampling.weights[0, query].flatten()[:, None]], -1)
    return np.array(sorted(rows.tolist()))


def rectangles(panel) -> list[tuple[float, float, float, float]]:
    return [(*p.get_xy(), p.get_width(), p.get_height()) for p in panel.patches]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_point_of_every_query_and_layer_is_drawn(variant, picture):
    record = recorded(variant)
    figure = decoder_picture(picture, record, CHOSEN, [0, 2], NAMES)
    panels = figure.axes[:6]  # two queries; two layers and both together; then the colour bar
    for row, query in enumerate(CHOSEN):
        alone = [expected(record.decoder[i], query.query) for i in (0, 2)]
        for column, layer in enumerate((0, 2)):
            panel = panels[3 * row + column]
            np.testing.assert_allclose(drawn(panel), alone[column], atol=1e-3)
            cx, cy, w, h = (record.predictions.boxes[layer, 0, query.query] * torch.tensor(SIZE * 2)).tolist()
            assert rectangles(panel)[-1] == pytest.approx((cx - w / 2, cy - h / 2, w, h), abs=1e-3)
            reference = record.decoder[layer].references[0, query.query, :2] * torch.tensor(SIZE)
            assert panel.lines[-1].get_xydata()[0].tolist() == pytest.approx(reference.tolist(), abs=1e-3)
        assert len(drawn(panels[3 * row + 2])) == sum(map(len, alone))
    assert panels[0].get_ylabel() == "query 4\nmoon 0.50"
    scores = record.predictions.logits[:, 0, 4, 1].sigmoid()
    assert panels[1].get_title() == f"layer 2, score {scores[2]:.2f}"


def test_strong_points_have_the_bars_other_end(picture):
    record = recorded("plain")
    panel = decoder_picture(picture, record, CHOSEN[:1], [1], NAMES).axes[0]
    largest = float(record.decoder[1].weights[0, 4].max())
    for points in panel.collections:
        assert points.norm.vmin == 0 and points.norm.vmax == pytest.approx(largest)


def test_heads_and_levels_have_a_panel_each(picture):
    record = recorded("points by level")
    figure = heads_picture(picture, record, CHOSEN[0], 1, NAMES)
    sampling = record.decoder[1]
    for level, points in ((0, slice(0, 1)), (1, slice(1, 4))):
        for head in range(4):
            panel = figure.axes[4 * level + head]
            where = sampling.locations[0, 4, head, points] * torch.tensor(SIZE)
            np.testing.assert_allclose(drawn(panel)[:, :2], sorted(where.tolist()), atol=1e-3)
            assert panel.get_title() == f"head {head}: {float(sampling.weights[0, 4, head, points].sum()):.0%}"


def test_the_encoders_panels_are_the_tokens_at_the_point(picture):
    record = recorded("plain")
    tokens = tokens_at((0.3, 0.8), record.spatial_shapes, record.valid_ratios[0])
    figure = encoder_picture(picture, record, tokens, (0.3, 0.8))
    for level, token in enumerate(tokens):
        for layer in (0, 1):
            panel = figure.axes[2 * level + layer]
            np.testing.assert_allclose(drawn(panel), expected(record.encoder[layer], token), atol=1e-3)
            x, y, width, height = rectangles(panel)[-1]  # the token's cell holds the point
            assert x <= 0.3 * SIZE[0] <= x + width and y <= 0.8 * SIZE[1] <= y + height


@pytest.mark.parametrize("variant", ["plain", "two stages"])
def test_boxes_are_those_of_each_layer(variant, picture):
    record = recorded(variant)
    figure = boxes_picture(picture, record, CHOSEN, NAMES)
    for panel, query in zip(figure.axes, CHOSEN):
        found = rectangles(panel)[1::2]  # each lies on its outline
        layers = [*record.predictions.boxes[:, 0, query.query]]
        if variant == "two stages":
            layers.append(record.decoder[0].references[0, query.query])
        for shown, box in zip(found, layers, strict=True):
            cx, cy, w, h = (box * torch.tensor(SIZE * 2)).tolist()
            assert shown == pytest.approx((cx - w / 2, cy - h / 2, w, h), abs=1e-3)


def test_the_strongest_locations_and_the_kept_region_are_drawn(picture, tmp_path):
    record = recorded("plain")
    traced = [(q, trace(record, q.query, strongest=50)) for q in CHOSEN]
    figure = locations_picture(picture, record, traced, NAMES)
    points = drawn(figure.axes[0])
    where = (traced[0][1].points * torch.tensor(SIZE)).numpy()
    np.testing.assert_allclose(points[:, :2], sorted(where.tolist()), atol=1e-3)
    assert points[:, 2].sum() == pytest.approx(float(traced[0][1].mass.sum()))

    keep = torch.zeros(4, 6, dtype=torch.bool)
    keep[1, 2:5] = True
    figure = saliency_picture(picture, record, [(CHOSEN[0], SaliencyRegion(keep, 0.05, 30))], 0.1, NAMES)
    shown = figure.axes[0].images[-1].get_array()
    assert shown.shape == (32, 48, 4) and (shown[8:16, 16:40, 3] == 255).all()
    assert (shown[..., 3] > 0).sum() == 8 * 24
    save(figure, tmp_path / "saliency.png")
    with Image.open(tmp_path / "saliency.png") as written:
        assert written.format == "PNG" and written.width > 500


def test_a_figure_of_hundreds_of_rows_can_be_written(tmp_path):
    """At the usual resolution it would exceed what the canvas can hold."""
    save(Figure(figsize=(2, 1000)), tmp_path / "long.png")
    with Image.open(tmp_path / "long.png") as written:
        assert written.size == (40, 20_000)
