"""Test-time augmentation end to end: which views there are, where their boxes lie, what it costs, what is refused."""

import json
import re
import shutil
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datasets.batch import Batch
from datasets.device import ToDevice
from datasets.transforms import eval_transform, to_image
from engine.merge import merge_views
from engine.predict import load_model, load_predictor, make_predictor
from engine.predictor import Predictor
from engine.tta import MultiView, View, sizes_of, views_of
from main import main
from models.postprocess import postprocess
from models.predictions import PredictionGroup, Predictions
from tests.datasets.helpers import write_coco
from tests.processes import Launched
from tests.test_main import SMALL
from util.config import IMAGENET_MEAN, IMAGENET_STD, TTAConfig
from util.errors import UserError

SIZES = ((64, 48), (48, 64), (90, 45), (64, 48), (64, 48))  # width, height


def run(*argv) -> int:
    return main([str(a) for a in argv])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A data set of noise with an object in each picture, and a detector after two steps."""
    folder = tmp_path_factory.mktemp("tta")
    objects = [
        {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [5, 6, 20, 30]} for i in range(1, len(SIZES) + 1)
    ]
    for split in ("train", "val"):
        write_coco(folder / "coco", objects, SIZES, split=split)
    (folder / "small.yaml").write_text(SMALL)
    argv = ("--config", folder / "small.yaml", "--data.root", folder / "coco", "--train.output", folder / "run")
    assert run("train", *argv, "--train.fast_dev_run") == 0
    checkpoint = torch.load(folder / "run" / "fast_dev_run" / "last.pth", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in checkpoint["model"].items():  # boxes that differ, and depend on the picture
        if re.search(r"regress\.layers\.\d+\.weight", name):
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
    torch.save(checkpoint, folder / "model.pth")
    return folder


def evaluate(place: Path, output: Path, *argv) -> tuple[dict, list[dict]]:
    common = ("--data.root", place / "coco", "--data.workers", 0, "--device", "cpu", "--output", output)
    assert run("eval", "--checkpoint", place / "model.pth", *common, *argv) == 0
    return tuple(json.loads((output / name).read_text()) for name in ("results.json", "detections.json"))


class Finder(nn.Module):
    """Stands for a detector: finds the box around what is not black, one for every picture, and logs what it sees."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images, padding_mask) -> Predictions:
        self.seen.append(tuple(images.shape))
        boxes = []
        for image in images:
            bright = image.mean(0) > (image.mean(0).min() + image.mean(0).max()) / 2
            y, x = (torch.arange(n)[bright.any(1 - d)] for d, n in enumerate(image.shape[1:]))
            x0, x1, y0, y1 = x.min(), x.max() + 1, y.min(), y.max() + 1
            height, width = image.shape[1:]
            boxes.append([(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height])
        found = torch.tensor(boxes)[None, :, None]  # [1, B, 1, 4]
        return Predictions([PredictionGroup("decoder", torch.full((1, len(images), 1, 1), 2.0), found)])


def finder(tta: TTAConfig, size: int, max_size: int) -> Predictor:
    views, to_device = views_of(tta, size, max_size), ToDevice(torch.device("cpu"), IMAGENET_MEAN, IMAGENET_STD)
    model = MultiView(Finder(), views, to_device, postprocess, merge_views, tta)
    resizes = [eval_transform(*s) for s in sizes_of(views)]

    def batch_of(pictures):
        images = [[resize(to_image(p)) for p in pictures] for resize in resizes]
        return model.prepare(
            [Batch(torch.stack(i), torch.zeros(len(i), *i[0].shape[1:]).bool(), [], []) for i in images]
        )

    return Predictor(model, lambda p: p, batch_of, model.postprocess, {})


def scene(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("rule", ["top_k", "wbf", "wbf_set"])
def test_boxes_of_every_view_come_back_to_the_picture(rule):
    """A block far from the middle, in pictures of two widths; half the size and twice are exact."""
    tta = TTAConfig(flip=True, sizes=[40, 80, 160], merge=rule)
    predictor = finder(tta, 80, 1000)
    for width in (200, 120):
        pictures = [scene(width, 80, (8, 16, 40, 24)), scene(width, 80, (60, 40, 64, 76))]
        for found, box in zip(predictor(pictures), ((8, 16, 40, 24), (60, 40, 64, 76))):
            assert len(found.scores) == (6 if rule == "top_k" else 1)
            assert (found.boxes - torch.tensor(box)).abs().max() < 1e-3
            assert found.scores[0] == pytest.approx(torch.tensor(2.0).sigmoid().item())
    odd = finder(TTAConfig(flip=True, merge="top_k"), 80, 1000)(scene(201, 80, (8, 16, 41, 24)))
    assert odd.boxes.round(decimals=3).tolist() == [[8, 16, 41, 24]] * 2


def test_sizes_reach_the_model_and_their_bound_grows_with_them():
    """A picture three times as wide as high: its sizes are those the bound allows, at each size in proportion."""
    predictor = finder(TTAConfig(flip=True, sizes=[40, 80, 120]), 80, 160)
    predictor([scene(300, 100, (0, 0, 50, 50)), scene(300, 100, (0, 0, 50, 50))])
    wide = [(2, 3, 27, 81), (2, 3, 53, 159), (2, 3, 80, 240)]  # thirds of 80, 160 and 240, rounded, and thrice that
    assert predictor.model.model.seen == [shape for shape in wide for _ in range(2)]


def test_the_views():
    plain = View(192, 256, False, True)
    assert views_of(TTAConfig(), 192, 256) == [plain]
    assert views_of(TTAConfig(flip=True), 192, 256) == [plain, View(192, 256, True, False)]
    assert views_of(TTAConfig(sizes=[144, 192]), 192, 256) == [View(144, 192, False, False), plain]
    assert views_of(TTAConfig(sizes=[144]), 192, 256) == [View(144, 192, False, False)]
    assert sizes_of(views_of(TTAConfig(flip=True, sizes=[144, 192]), 192, 256)) == [(144, 192), (192, 256)]
    with pytest.raises(UserError, match="144 more than once"):
        views_of(TTAConfig(sizes=[144, 192, 144]), 192, 256)


def test_padding_is_refused():
    """A mirrored image has it on the left, where the model does not expect it."""
    predictor = finder(TTAConfig(flip=True), 80, 160)
    images, mask = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :, 7] = True
    with pytest.raises(ValueError, match="padding"):
        predictor.model.prepare([Batch(images, mask, [], [])])


def test_the_views_of_a_real_detector_are_those_it_has_alone(place):
    """Each view by hand with another predictor: the picture mirrored by PIL, boxes mirrored back."""
    picture = Image.open(place / "coco" / "val2017" / "3.png").convert("RGB")  # 90 x 45
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    path = str(place / "model.pth")
    expected = []
    for size in (48, 64):
        model, categories, data = load_model(path)
        data.eval_size, data.max_size = size, 96 * size // 64
        alone = make_predictor(model, categories, data, "cpu", None)
        expected.append(alone(picture, top_k=40))
        found = alone(mirrored, top_k=40)
        found.boxes = torch.stack(
            [90 - found.boxes[:, 2], found.boxes[:, 1], 90 - found.boxes[:, 0], found.boxes[:, 3]], -1
        )
        expected.append(found)
    assert (expected[0].boxes - expected[1].boxes).abs().max() > 0.5  # the views do not agree
    predictor = load_predictor(path, "cpu", tta=TTAConfig(flip=True, sizes=[48, 64], merge="top_k"))
    found = predictor(picture, top_k=160)
    order = torch.cat([e.scores for e in expected]).argsort(descending=True, stable=True)
    # torchvision and PIL mirror alike, but resizing sums pixels in another order.
    assert torch.allclose(found.scores, torch.cat([e.scores for e in expected])[order], atol=2e-3)


def test_what_is_found_does_not_depend_on_how_many_are_asked_for(place):
    predictor = load_predictor(str(place / "model.pth"), "cpu", tta=TTAConfig(flip=True))
    picture = Image.open(place / "coco" / "val2017" / "1.png")
    few, many = predictor(picture, top_k=3), predictor(picture, top_k=60)
    assert len(few.scores) == 3
    assert torch.equal(few.boxes, many.boxes[:3]) and torch.equal(few.scores, many.scores[:3])


def test_a_symmetric_picture_is_found_alike_in_both_views(place):
    """Of a picture that is its own mirror image, one view is the other: only the boxes are mirrored."""
    half = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(np.concatenate([half, half[:, ::-1]], 1))
    path = str(place / "model.pth")
    plain = load_predictor(path, "cpu")(picture, top_k=40)
    both = load_predictor(path, "cpu", tta=TTAConfig(flip=True, merge="top_k"))(picture, top_k=80)
    assert torch.equal(both.scores[0::2], both.scores[1::2]) and torch.equal(both.scores[0::2], plain.scores)
    assert torch.equal(both.boxes[:2], torch.stack([plain.boxes[0], both.boxes[1]]))
    assert torch.allclose(both.boxes[1, [0, 2]], 64 - plain.boxes[0, [2, 0]])


def test_a_single_view_is_the_ordinary_path(place, tmp_path, capsys):
    """No flip and one size: the same files to the byte, nothing said, no wrapper; another size is --data.eval_size."""
    plain = evaluate(place, tmp_path / "plain")
    listed = evaluate(place, tmp_path / "listed", "--tta.sizes", "[64]")
    smaller = evaluate(place, tmp_path / "a", "--tta.sizes", "[48]")
    by_option = evaluate(place, tmp_path / "b", "--data.eval_size", 48, "--data.max_size", 72)
    assert plain == listed != smaller == by_option
    assert set(plain[0]) == {"figures", "per_class"} and "augmentation" not in capsys.readouterr().out
    assert not isinstance(load_predictor(str(place / "model.pth"), "cpu", tta=TTAConfig()).model, MultiView)


def test_eval_says_and_writes_what_it_costs(place, tmp_path, capsys):
    argv = ("--tta.flip", "--tta.sizes", "[48,64,80]", "--tta.merge", "wbf", "--batch_size", 2)
    results, found = evaluate(place, tmp_path / "eval", *argv)
    printed = capsys.readouterr().out
    assert "test-time augmentation: 6 views an image (3 sizes x 2, merged by wbf)" in printed
    line = re.search(r"6 views take (\S+) s an image, (\S+) times the \S+ s of the plain view alone; merging", printed)
    tta = results["tta"]
    assert [(v["size"], v["max_size"], v["flip"]) for v in tta["views"]] == [
        (s, m, f) for s, m in ((48, 72), (64, 96), (80, 120)) for f in (False, True)
    ]
    assert [v["plain"] for v in tta["views"]] == [False, False, True, False, False, False]
    assert tta["merge"] == "wbf" and tta["iou"] == 0.55
    assert 0 < tta["plain_seconds_per_image"] < tta["seconds_per_image"] and tta["merge_seconds_per_image"] > 0
    assert tta["ratio"] == pytest.approx(tta["seconds_per_image"] / tta["plain_seconds_per_image"])
    assert float(line[1]) == pytest.approx(tta["seconds_per_image"], abs=1e-4)
    assert float(line[2]) == pytest.approx(tta["ratio"], abs=0.06)
    assert {r["image_id"] for r in found} == {1, 2, 3, 4, 5}
    # The saved detections score the same without views.
    truth = place / "coco" / "annotations" / "instances_val2017.json"
    saved = ("--detections", tmp_path / "eval" / "detections.json", "--data.val_annotations", truth)
    assert run("eval", *saved, "--output", tmp_path / "again") == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again == {k: v for k, v in results.items() if k != "tta"}


def test_without_the_plain_view_there_is_no_ratio(place, tmp_path, capsys):
    results, _ = evaluate(place, tmp_path / "eval", "--tta.sizes", "[48,80]")
    assert results["tta"]["ratio"] is None and results["tta"]["plain_seconds_per_image"] is None
    printed = capsys.readouterr().out
    assert "2 views an image (2 sizes, merged by wbf_set)" in printed and "times" not in printed


def test_the_first_batch_is_not_counted_and_none_costs_nothing(monkeypatch):
    views = views_of(TTAConfig(flip=True), 64, 96)
    model = MultiView(Finder(), views, copy, postprocess, merge_views, TTAConfig(flip=True))
    assert model.cost()["seconds_per_image"] == 0 and model.cost()["ratio"] is None and model.cost_line()
    clock = iter([0, 9, 20, 29, 30, 31, 32, 34, 40, 42, 50, 54])  # before and after each view of three batches
    monkeypatch.setattr("engine.tta._now", lambda device: next(clock))
    merging = iter([0, 7, 10, 10.5, 20, 20.1])
    monkeypatch.setattr("engine.tta.time.perf_counter", lambda: next(merging))
    for images in (4, 4, 2):
        pictures = torch.rand(images, 3, 64, 64)
        predictions = model([pictures], [torch.zeros(images, 64, 64, dtype=torch.bool)])
        model.postprocess(predictions, [(64, 64)] * images)
    cost = model.cost()
    assert cost == pytest.approx(
        {
            "seconds_per_image": 1.5,
            "plain_seconds_per_image": 0.5,
            "ratio": 3.0,
            "merge_seconds_per_image": 0.1,
        }
    )


def test_several_processes_find_the_same(place, tmp_path):
    """Five images of three sizes, so that shares are uneven."""
    options = ("--batch_size", 2, "--tta.flip", "--tta.sizes", "[48,64]")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes, whose sums are then rounded alike
    alone, found = evaluate(place, tmp_path / "alone", *options)
    torch.set_num_threads(threads)
    output = tmp_path / "two"
    argv = ["eval", "--checkpoint", place / "model.pth", "--data.root", place / "coco", "--output", output]
    launched = Launched([*argv, "--device", "cpu", "--data.workers", 1, *options], tmp_path / "eval.log", 2)
    assert launched.wait() == [0, 0], launched.printed()
    together = json.loads((output / "results.json").read_text())
    assert together["figures"] == alone["figures"] and together["tta"]["views"] == alone["tta"]["views"]
    assert json.loads((output / "detections.json").read_text()) == found
    assert launched.printed().count("views take") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_read_is_named(place, tmp_path, capsys, workers):
    shutil.copytree(place / "coco", tmp_path / "coco")
    (tmp_path / "coco" / "val2017" / "3.png").write_bytes(b"no picture")
    argv = ("--checkpoint", place / "model.pth", "--data.root", tmp_path / "coco", "--data.workers", workers)
    assert run("eval", *argv, "--output", tmp_path / "out", "--tta.sizes", "[48,64]") == 2
    error = capsys.readouterr().err
    assert "3.png" in error and len(error.splitlines()) == 1


def test_predict(place, tmp_path, capsys):
    argv = ("predict", "--checkpoint", place / "model.pth", "--input", place / "coco" / "val2017", "--device", "cpu")
    assert run(*argv, "--output", tmp_path / "out", "--threshold", 0, "--tta.flip", "--tta.merge", "top_k") == 0
    printed = capsys.readouterr().out
    assert re.search(r"2 views take [\d.]+ s an image, [\d.]+ times", printed.splitlines()[-1])
    listed = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [len(entry["detections"]) for entry in listed] == [80] * 5  # 20 queries x 2 classes x 2 views


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--detections", "found.json", "--tta.flip"), "--tta.flip and all of --tta need a --checkpoint"),
        (("--detections", "found.json", "--tta.sizes", "[48,64]"), "saved detections have no views"),
        (("--checkpoint", "model.pth", "--tta.sizes", "[48,48]"), "tta.sizes gives 48 more than once"),
        (("--checkpoint", "model.pth", "--tta.merge", "nms"), "merge several views; add --tta.flip true"),
        (("--checkpoint", "model.pth", "--tta.sizes", "[48]", "--tta.iou", "0.7"), "merge several views"),
        (("--detections", "found.json", "--tta.merge", "nms"), "saved detections have no views"),
        (("--checkpoint", "model.pth", "--tta.sizes", "[0]"), "tta.sizes is [0]; it must be at least 1"),
        (("--checkpoint", "model.pth", "--tta.sizes", "big"), "tta.sizes is 'big', but must be a list of int"),
        (("--checkpoint", "model.pth", "--tta.merge", "mean"), "tta.merge is 'mean', but must be one of 'top_k'"),
        (("--checkpoint", "model.pth", "--tta.iou", "1.5"), "tta.iou is 1.5; it must be between 0 and 1"),
        (("--checkpoint", "model.pth", "--tta.sigma", "0"), "tta.sigma is 0.0; it must be at least 0.01"),
        (("--checkpoint", "model.pth", "--tta.flipped"), "unknown option '--tta.flipped'"),
    ],
)
def test_what_is_refused(place, tmp_path, monkeypatch, capsys, argv, says):
    monkeypatch.chdir(place)
    assert run("eval", *argv, "--data.root", "coco", "--output", tmp_path) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
