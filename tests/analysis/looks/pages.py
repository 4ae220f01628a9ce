"""Explorer pages of tiny detectors whose attention is not as at the start, and what is in them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.looks import visualize
from analysis.looks.explorer.packing import unpack
from datasets.categories import Category
from engine.predict import make_predictor
from engine.predictor import Predictor
from main import main
from tests.analysis.looks.tiny import tiny
from util.config import EvalDataConfig

EVIL = "</script><img src=x onerror=alert(1)>"
SIZE = (96, 64)


def predictor(seed: int = 0, **options) -> Predictor:
    names = [Category(i, i, name) for i, name in enumerate((EVIL, "$x & <b>", "plain"))]
    data = EvalDataConfig(eval_size=64, max_size=96)
    return make_predictor(tiny(seed, num_heads=8, num_points=[1, 3], **options), names, data, "cpu", None)


def make_page(folder: Path, *argv: str, **options) -> tuple[str, dict, dict[str, np.ndarray]]:
    """The page that the command writes, the data in it, and the numbers of `sampling.npz`."""
    # What compresses well and is in colour, so that sizes are those of a picture.
    pixels = np.add.outer(np.arange(SIZE[1]), np.arange(SIZE[0]))[..., None] * [1, 2, 3] % 256
    source = folder / "a<b>&$picture.png"
    Image.fromarray(pixels.astype(np.uint8)).save(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visualize, "untrained_predictor", lambda *_: predictor(**options))
        patch.setattr(visualize, "load_predictor", lambda *_, **__: predictor(seed=1, **options))
        common = (
            "--input",
            str(source),
            "--output",
            str(folder),
            "--device",
            "cpu",
            "--maps",
            "[boxes]",
            "--top_k",
            "1",
        )
        assert main(["visualize", "--explore", "true", *common, *argv]) == 0
    page = (folder / "explorer.html").read_text(encoding="utf-8")
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    with np.load(folder / "sampling.npz") as numbers:
        return page, json.loads(text), dict(numbers)


def offsets_in(numbers: dict[str, np.ndarray], kind: str, layer: int) -> np.ndarray:
    """Offsets `[Q, M*P, 2]` in pixels from the reference, of the numbers in `sampling.npz`."""
    locations = numbers[f"{kind}.{layer}.locations"].astype(float)
    moved = locations - numbers[f"{kind}.{layer}.references"].astype(float)[:, None, None, :2]
    return (moved * SIZE).reshape(len(moved), -1, 2)


def unpacked(stack: dict, name: str) -> np.ndarray:
    return unpack(stack[name])
