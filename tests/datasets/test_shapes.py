import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from datasets import shapes as shapes_module
from datasets.defects import check_dataset
from datasets.shapes import draw_scene, generate
from util.errors import UserError


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp("shapes") / "set", train=30, val=8, size=48, seed=1)


def test_the_same_settings_write_the_same_bytes(shapes, tmp_path):
    np.random.seed(5)
    assert content(generate(tmp_path / "again", train=30, val=8, size=48, seed=1)) == content(shapes)


def test_more_images_leave_the_first_ones_as_they_are(shapes, tmp_path):
    fewer = content(generate(tmp_path / "fewer", train=4, val=2, size=48, seed=1))
    pictures = {name: data for name, data in fewer.items() if name.endswith(".png")}
    assert len(pictures) == 6
    assert pictures.items() <= content(shapes).items()


@pytest.mark.parametrize(
    ("spread", "smallest", "largest"), [(3.0, 0.12, 0.36), (1.0, 0.2078, 0.2078), (6.0, 0.0849, 0.5091)]
)
def test_spread_is_the_ratio_of_radii_around_the_same_mean(spread, smallest, largest):
    rng = np.random.default_rng(0)
    radii = []
    for _ in range(200):
        mask = shapes_module._shape(rng, 0, 200, 200, 96, 0.0, spread) > 0.5  # circles
        if not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()):
            radii.append(np.sqrt(mask.sum() / np.pi) / 96)
    assert len(radii) > 50
    assert smallest - 0.005 < min(radii) < smallest * 1.1 and largest * 0.85 < max(radii) < largest + 0.005


@pytest.mark.parametrize(("turn", "upright"), [(0.0, True), (np.pi, False)])
def test_turn_is_how_far_a_square_may_lean(turn, upright):
    rng = np.random.default_rng(0)
    filled = []
    for _ in range(60):
        rows, columns = np.nonzero(shapes_module._shape(rng, 1, 300, 300, 96, turn, 1.0) > 0.5)
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        if min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < 299:
            filled.append(len(rows) / box)  # an upright square fills its box, one on its corner half of it
    assert len(filled) > 20 and (min(filled) > 0.95 if upright else 0.48 < min(filled) < 0.6)


def test_seeds_and_splits_differ(shapes, tmp_path):
    other = generate(tmp_path / "other", train=2, val=2, size=48, seed=2)
    files = [shapes / "train2017/000000.png", shapes / "val2017/000000.png"]
    files += [other / "train2017/000000.png", other / "val2017/000000.png"]
    assert len({f.read_bytes() for f in files}) == 4


@pytest.mark.parametrize(("split", "count"), [("train", 30), ("val", 8)])
def test_the_layout_is_that_of_coco(shapes, split, count, capsys):
    file = shapes / "annotations" / f"instances_{split}2017.json"
    coco = COCO(str(file))
    assert len(coco.imgs) == count
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["circle", "square", "triangle"]
    for image in coco.imgs.values():
        assert Image.open(shapes / f"{split}2017" / image["file_name"]).size == (image["width"], image["height"])
        assert 36 <= image["width"] <= 60
        assert 36 <= image["height"] <= 60
    assert len({a["id"] for a in json.loads(file.read_text())["annotations"]}) == len(coco.anns)
    for entry in coco.anns.values():
        x, y, w, h = entry["bbox"]
        image = coco.imgs[entry["image_id"]]
        assert x >= 0 and y >= 0 and x + w <= image["width"] and y + h <= image["height"] and w > 0 and h > 0
        assert entry["area"] == w * h
        assert entry["iscrowd"] == 0
    report = check_dataset(shapes / f"{split}2017", file)
    assert report.defects == []


def test_all_classes_occur(shapes):
    annotations = json.loads((shapes / "annotations/instances_train2017.json").read_text())["annotations"]
    counts = np.bincount([a["category_id"] for a in annotations], minlength=4)
    assert counts[0] == 0
    assert (counts[1:] > len(annotations) / 6).all()


def test_boxes_bound_what_is_visible(monkeypatch):
    """Shapes are drawn here in flat greys with hard edges on black: every pixel tells whose it is."""
    from datasets import shapes

    greys: list[int] = []

    def grey(rng, background):
        greys.append(20 * (len(greys) + 1))
        return np.full(3, float(greys[-1]))

    class Noiseless:
        """A generator of the usual uniform numbers, without the noise."""

        def __init__(self, seed):
            rng = np.random.default_rng(seed)
            self.uniform, self.integers = rng.uniform, rng.integers

        def normal(self, mean, deviation, size):
            return np.full(size, float(mean))

    soft = shapes._shape
    monkeypatch.setattr(shapes, "_shape", lambda *given: (soft(*given) > 0.5).astype(np.float32))
    monkeypatch.setattr(shapes, "_colour", grey)
    monkeypatch.setattr(shapes, "_background", lambda rng, width, height: Image.new("RGB", (width, height)))
    seen = overlapped = 0
    for seed in range(20):
        greys.clear()
        picture, labels, boxes = draw_scene(Noiseless(seed), 96)
        values = np.asarray(picture)[..., 0]
        assert len(labels) == len(boxes) == len(greys)
        assert set(np.unique(values)) == {0, *greys}
        for shade, box in zip(greys, boxes):
            rows, columns = np.nonzero(values == shade)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            seen += 1
        overlapped += any(
            a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for i, a in enumerate(boxes) for b in boxes[:i]
        )
    assert seen > 20
    assert overlapped > 3


def test_the_same_set_is_not_written_again(shapes):
    file = shapes / "train2017/000000.png"
    before = file.stat().st_mtime_ns
    generate(shapes, train=30, val=8, size=48, seed=1)
    assert file.stat().st_mtime_ns == before


def test_other_settings_replace_the_set(tmp_path):
    generate(tmp_path / "set", train=5, val=2, size=40)
    generate(tmp_path / "set", train=3, val=1, size=40)
    assert sorted(p.name for p in (tmp_path / "set/train2017").iterdir()) == [f"00000{i}.png" for i in range(3)]
    assert len(json.loads((tmp_path / "set/annotations/instances_val2017.json").read_text())["images"]) == 1
    assert content(tmp_path / "set") == content(generate(tmp_path / "fresh", train=3, val=1, size=40))


def test_an_interrupted_set_is_written_again(tmp_path, monkeypatch):
    settings = {"train": 3, "val": 1, "size": 40}
    with monkeypatch.context() as patch:
        patch.setattr("datasets.shapes._shape", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path / "set", **settings)
    generate(tmp_path / "set", **settings)
    assert content(tmp_path / "set") == content(generate(tmp_path / "fresh", **settings))


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    precious = tmp_path / "coco" / "train2017" / "1.jpg"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(UserError, match="coco"):
        generate(tmp_path / "coco", train=1, val=1, size=40)
    assert precious.read_text() == "mine"
