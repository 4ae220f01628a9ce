"""Names in alphabets that common fonts lack, with a small font made here that has two Chinese characters."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from util import fonts
from util.drawing import draw_detections
from util.fonts import can_draw, drawable, fit_fonts, legend_of, pillow_font, save_figure

CELL, BLOOD = "细胞", "血"  # the font has the former


def block_font(path: Path, characters: str) -> Path:
    """A font of characters that are filled squares, and of spaces."""

    def glyph(side: int):
        pen = TTGlyphPen(None)
        if side:
            pen.moveTo((0, 0))
            for corner in ((0, side), (side, side), (side, 0)):
                pen.lineTo(corner)
            pen.closePath()
        return pen.glyph()

    names = {c: f"g{i}" for i, c in enumerate(characters)} | {" ": "space"}
    order = [".notdef", *names.values()]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({ord(c): name for c, name in names.items()})
    builder.setupGlyf({name: glyph(0 if name in (".notdef", "space") else 900) for name in order})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes these files the fonts of this machine."""

    def install(*files: Path) -> None:
        for found in (fonts.font_file, fonts._files, fonts._families, fonts._characters_of):
            found.cache_clear()
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(f) for f in files])

    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    yield install
    install()


def test_a_font_is_taken_by_its_characters(tmp_path, installed):
    broken = tmp_path / "a.ttf"
    broken.write_bytes(b"no font")
    digits = block_font(tmp_path / "b.ttf", "0123456789.")
    installed(
        broken, digits, block_font(tmp_path / "Bold.ttf", CELL + "0."), block_font(tmp_path / "z.ttf", CELL + "0.")
    )
    assert Path(pillow_font(f"{CELL} 0.00", 20).path).name == "z.ttf"  # before the bold one
    assert can_draw(CELL) and not can_draw(BLOOD) and not can_draw(CELL + BLOOD)
    assert pillow_font("cell 0.95", 20).getname()[0] == "Aileron"  # Pillow's own, as it was
    assert pillow_font("Schlüssel żółć Ключ κλειδί", 20).getname()[0] == "DejaVu Sans"
    assert can_draw(CELL + "\ufe0f\u200d\n\u3000")  # what leaves no mark needs no font


def test_without_a_font_names_become_numbers_and_a_legend(installed):
    installed()
    names = {0: "cell", 3: CELL, 7: BLOOD, 8: "ключ"}
    assert drawable(names) == {0: "cell", 3: "3", 7: "7", 8: "ключ"}
    assert f"3 {CELL}, 7 {BLOOD}" in legend_of(names) and "ключ" not in legend_of(names)
    assert legend_of({0: "cell"}) == "" == legend_of({})


def test_fonts_that_box_everything_do_not_count(tmp_path, installed):
    installed(block_font(tmp_path / "LastResort.otf", CELL))
    assert not can_draw(CELL)


def drawn(names: dict[int, str]) -> np.ndarray:
    picture = Image.new("RGB", (400, 300))
    return np.asarray(draw_detections(picture, [[20, 100, 300, 250]], [3], [0.5], names))


def test_names_are_drawn_with_the_font_that_has_them(tmp_path, installed):
    installed(block_font(tmp_path / "block.ttf", CELL + "0123456789."))
    found = drawn({3: CELL})
    installed()
    assert np.array_equal(drawn({3: CELL}), drawn({3: "3"}))
    assert not np.array_equal(found, drawn({3: "3"}))
    # Two filled squares of 0.9 em, by the font's own numbers: far more ink than a digit has.
    canvas = Image.new("L", (100, 100))
    installed(tmp_path / "block.ttf")
    ImageDraw.Draw(canvas).text((0, 0), CELL, fill=255, font=pillow_font(CELL, 20))
    assert (np.asarray(canvas) > 128).sum() == pytest.approx(2 * 18 * 18, abs=40)


def chart(text: str) -> Figure:
    figure = Figure(figsize=(3, 2))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], label=text)
    axes.set_yticks([0, 1], [text, "one"])
    axes.set(title=text, xlabel="step")
    figure.legend()
    return figure


def test_charts_take_further_fonts_where_theirs_lacks_characters(tmp_path, installed):
    installed(block_font(tmp_path / "one.ttf", CELL[0]), block_font(tmp_path / "two.ttf", CELL[1]))
    figure = chart(f"AP of {CELL}")
    fit_fonts(figure)
    assert figure.axes[0].title.get_fontfamily() == ["DejaVu Sans", "one", "two"]
    assert figure.axes[0].get_yticklabels()[0].get_fontfamily() == ["DejaVu Sans", "one", "two"]
    assert figure.axes[0].xaxis.label.get_fontfamily() == ["sans-serif"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "a.png", 50)


def test_charts_warn_of_nothing_where_there_is_no_font(tmp_path, installed):
    installed()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(chart(CELL), tmp_path / "a.png", 50)


def test_variants_of_a_sweep_without_a_font_are_rows(installed):
    from ablation.charts import _readable

    installed()
    assert _readable(["base", CELL]) == ["base", "row 2"]


def test_errors_are_drawn_by_number(installed, monkeypatch):
    """The number is the class's, not that of the box among those drawn."""
    from analysis.errors import error_pictures
    from analysis.errors.scenes import Scene
    from analysis.errors.tide import Verdict

    installed()
    shown = []
    monkeypatch.setattr(error_pictures, "_draw", lambda picture, boxes, texts, *rest: (shown.append(texts), picture)[1])
    scene = Scene.__new__(Scene)
    box, one = np.array([[1.0, 1, 5, 5]]), np.array([1])
    for name, value in {
        "truth_classes": one, "truth_boxes": box, "crowd_classes": one[:0], "crowd_boxes": box[:0], "classes": one,
        "boxes": box, "scores": np.array([0.9]), "found": lambda threshold: np.array([False]),
    }.items():  # fmt: skip
        object.__setattr__(scene, name, value)
    verdict = Verdict.__new__(Verdict)
    object.__setattr__(verdict, "kinds", np.array(["background"]))
    error_pictures.draw_errors(Image.new("RGB", (20, 20)), scene, verdict, ["cell", CELL], 0.5)
    assert shown == [["missed: 1"], ["1"]]


def test_predictions_name_what_the_pictures_number(tmp_path, installed, capsys):
    import torch

    from engine.predict_pictures import predict_pictures
    from engine.predictor import Predictor
    from models.postprocess import Detections

    installed()
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    found = Detections(torch.tensor([[1.0, 1, 9, 9]]), torch.ones(1), torch.tensor([1]))
    predictor = Predictor(torch.nn.Identity(), lambda p: p, None, None, {0: BLOOD, 1: CELL})
    predictor._detect = lambda *given: [found]
    listed = predict_pictures(predictor, [tmp_path / "a.png"], tmp_path / "out", 0.5, 100)
    assert listed[0]["detections"][0]["name"] == CELL
    said = capsys.readouterr().err
    assert f"1 {CELL}" in said and BLOOD not in said and said.count("\n") == 1
    assert json.dumps(listed)
