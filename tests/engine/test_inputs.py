"""What predictors take, and what they say of the rest."""

import io
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.functional import pil_to_tensor, to_tensor

from engine import inputs, predict
from engine.predict import load_model, load_predictor
from engine.predictor import Predictor
from models.postprocess import Detections
from util.config import TTAConfig
from util.devices import pick_device
from util.errors import UserError

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def seen(pictures, **options):
    """The RGB pixels that reach a model, of one picture or of each of several."""
    reached = []

    def batch_of(several):
        reached.extend(np.asarray(p) for p in several)
        return SimpleNamespace(images=several, padding_mask=None)

    def one_box(predictions, sizes, top_k):
        return [Detections(torch.zeros(1, 4), torch.ones(1), torch.zeros(1)) for _ in sizes]

    def prepare(picture):
        return picture.convert("RGB")

    predictor = Predictor(torch.nn.Identity(), prepare, batch_of, one_box, {})
    predictor.model.forward = lambda images, mask: images
    found = predictor(pictures, **options)
    return reached[0] if isinstance(found, Detections) else reached


def png(path: Path) -> Path:
    Image.fromarray(PIXELS).save(path)
    return path


def test_a_path_a_picture_and_an_array_are_the_same(tmp_path, monkeypatch):
    path = png(tmp_path / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, ::2] = PIXELS
    bgr = np.ascontiguousarray(PIXELS[..., ::-1])
    for given in (path, str(path), "~/a.png", Image.open(path), PIXELS, wide[:, ::2], bgr[..., ::-1]):
        assert np.array_equal(seen(given), PIXELS)
    several = seen([str(path), Image.fromarray(PIXELS), PIXELS])
    assert len(several) == 3 and all(np.array_equal(p, PIXELS) for p in several)
    assert len(seen((PIXELS,))) == 1


def test_a_tensor_is_the_same_picture():
    """As bytes, and as the floats that torchvision's ToTensor makes of them."""
    tensor = pil_to_tensor(Image.fromarray(PIXELS))
    for given in (tensor, to_tensor(Image.fromarray(PIXELS)), to_tensor(PIXELS).double(), tv_tensors.Image(tensor)):
        assert np.array_equal(seen(given), PIXELS)
    assert np.array_equal(seen(tensor[:1]), np.repeat(PIXELS[..., :1], 3, axis=2))
    assert np.array_equal(seen(tensor[0]), np.repeat(PIXELS[..., :1], 3, axis=2))


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 3)])
def test_grey_arrays_are_repeated_over_the_channels(shape):
    grey = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.array_equal(seen(grey), np.stack([grey.reshape(shape[:2])] * 3, -1))


def test_a_file_is_turned_once(tmp_path):
    """Orientation 6: the first row is on the right, so the file is shown turned clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    predictor = predict.Predictor.__new__(Predictor)
    predictor.prepare = lambda p: predict.to_rgb(predict.upright(p))
    expected = np.rot90(PIXELS, -1)
    for given in (tmp_path / "a.png", Image.open(tmp_path / "a.png"), inputs.read_image(tmp_path / "a.png")):
        assert np.array_equal(np.asarray(predictor._upright(given, "picture")), expected)


def closed() -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    picture = Image.open(file)
    picture.close()
    return picture


def truncated() -> Image.Image:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:1000]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "picture is None; it must be a path, a PIL image, or a uint8 array"),
        (3, "picture is 3"),
        (Image, "picture is a module"),
        ({"a": PIXELS}, "picture is a dict"),
        ([], "empty list"),
        ((), "empty tuple"),
        ((PIXELS for _ in "a"), r"generator.*list\(pictures\)"),
        (map(str, "ab"), r"map.*list\(pictures\)"),
        ({"a.png", "b.png"}, r"set.*list\(pictures\)"),
        (b"\x89PNG", "BytesIO"),
        (io.BytesIO(b""), r"Image\.open\(file\)"),
        (PIXELS.astype(np.float32), "float32.*uint8"),
        (PIXELS.astype(np.uint16), "uint16.*uint8"),
        (PIXELS > 3, "bool.*uint8"),
        (PIXELS.transpose(2, 0, 1), r"\[3, 4, 6\].*transpose\(1, 2, 0\)"),
        (PIXELS[None, :, :, 0], r"\[1, 4, 6\].*transpose\(1, 2, 0\)"),
        (np.zeros((4, 6, 4), np.uint8), r"\[4, 6, 4\].*\[\.\.\., :3\]"),
        (np.zeros((4, 6, 2), np.uint8), r"\[4, 6, 2\].*\[H, W, 3\]"),
        (PIXELS[None], r"\[1, 4, 6, 3\].*list\(array\)"),
        (PIXELS[0, 0], r"\[3\].*\[H, W, 3\]"),
        (np.array(3, np.uint8), r"\[\].*\[H, W, 3\]"),
        (PIXELS[:0], "must have pixels"),
        (np.array(["a.png"]), r"\[1\]"),
        (torch.zeros(4, 6, 3, dtype=torch.uint8), r"tensor \[4, 6, 3\].*permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 4, 6), r"tensor \[2, 3, 4, 6\].*list\(tensor\)"),
        (torch.zeros(4, 4, 6), r"tensor \[4, 4, 6\].*\[3, H, W\]"),
        (torch.zeros(3, 4, 6, dtype=torch.int64), "int64.*uint8"),
        (torch.full((3, 4, 6), 1.5), r"outside of \[0, 1\].*normalised"),
        (torch.full((3, 4, 6), math.nan), r"outside of \[0, 1\]"),
        (torch.zeros(3, 0, 6), "must have pixels"),
        (Image.new("RGB", (0, 3)), "0 x 3"),
        (closed(), "closed"),
        (truncated(), "truncated"),
        ("gone.png", r"'gone\.png'"),
        (Path("gone.png"), r"'gone\.png'"),
        ("photos/*.jpg", r"list_pictures\('photos/\*\.jpg'\)"),
        (".", "folder"),
    ],
)
def test_everything_else_is_told_in_a_sentence(given, said):
    with pytest.raises(UserError, match=said) as raised:
        seen(given)
    assert "\n" not in str(raised.value)
    if not isinstance(given, list | tuple | set) and not hasattr(given, "__next__"):
        with pytest.raises(UserError, match=r"pictures\[1\]|gone"):
            seen([PIXELS, given])


@pytest.mark.parametrize("threshold", [-0.1, 1.5, 50, math.nan, math.inf, True, "0.5", None, [0.5]])
def test_thresholds(threshold):
    with pytest.raises(UserError, match=r"threshold.*between 0 and 1"):
        seen(PIXELS, threshold=threshold)


@pytest.mark.parametrize("top_k", [0, -1, 1.0, 1.5, True, None, "3", math.nan, [3]])
def test_most_detections(top_k):
    with pytest.raises(UserError, match=r"top_k.*at least 1"):
        seen(PIXELS, top_k=top_k)


def test_numbers_of_numpy_are_numbers():
    assert np.array_equal(seen(PIXELS, top_k=np.int64(3), threshold=np.float32(0.5)), PIXELS)
    assert inputs.check_size(np.int32(480)) == 480 and inputs.check_threshold(1) == 1.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(({"size": size}, f"size is {re.escape(repr(size))}.*shorter side") for size in ((480, 640), 0, -5, 480.0)),
        *(({"size": size}, f"size is {re.escape(repr(size))}.*shorter side") for size in (True, "480", [480])),
        ({"tta": True}, r"tta is True.*TTAConfig\(flip=True\)"),
        ({"tta": {"flip": True}}, r"tta is a dict.*TTAConfig\(flip=True\)"),
        ({"tta": TTAConfig}, r"tta is a type.*TTAConfig\(flip=True\)"),
        ({"tta": TTAConfig(merge="all")}, r"tta\.merge.*'all'.*'nms'"),
        ({"tta": TTAConfig(flip=True, sizes=480)}, r"tta\.sizes"),
        ({"tta": TTAConfig(flip=True, sizes=[0])}, r"tta\.sizes.*at least 1"),
        ({"tta": TTAConfig(flip=True, iou=3.0)}, r"tta\.iou"),
        ({"weights": "best"}, r"weights is 'best'.*'auto', 'model', 'ema'.*best\.pth"),
        ({"weights": None}, "weights is None.*'auto', 'model', 'ema'"),
        ({"weights": ["ema"]}, "weights is .*'auto', 'model', 'ema'"),
        ({"device": 0}, "device is 0.*'cuda:1'"),
        ({"device": None}, "device is None"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"device": "cuda:99"}, "device 'cuda:99'"),
        ({"device": torch.device("cuda:99")}, "device 'cuda:99'"),
        ({"classes": ["cat", "dog"]}, r"classes is \['cat', 'dog'\]; it must be the path of an annotation file"),
        ({"classes": {0: "cat"}}, "classes is a dict; it must be the path"),
        ({"checkpoint": None}, "checkpoint is None; it must be a path"),
        ({"checkpoint": {"model": {}}}, "checkpoint is a dict; it must be a path"),
        ({"checkpoint": torch.nn.Identity()}, "checkpoint is a Identity; it must be a path"),
        ({"checkpoint": b"a.pth"}, "checkpoint is a bytes; it must be a path"),
        ({"checkpoint": "~/gone.pth"}, "no checkpoint '/.*gone.pth'"),
        ({"checkpoint": Path("gone.pth")}, "no checkpoint 'gone.pth'"),
    ],
)
def test_arguments_of_load_predictor(options, said):
    with pytest.raises(UserError, match=said) as raised:
        load_predictor(**{"checkpoint": "gone.pth", "device": "cpu"} | options)
    assert "\n" not in str(raised.value)


def test_every_loader_of_a_model_names_the_weights_there_are():
    with pytest.raises(UserError, match="'auto', 'model', 'ema'"):
        load_model("gone.pth", "last")


def test_a_device_may_be_an_object():
    assert pick_device(torch.device("cpu")) == torch.device("cpu")


def test_views_keep_their_values():
    tta = TTAConfig(flip=True, sizes=[480, 512], merge="nms", iou=0.4, sigma=0.3)
    assert inputs.check_tta(tta) == tta and inputs.check_tta(None) == TTAConfig()


@pytest.mark.parametrize("detections", [[], None, {"boxes": []}, [Detections(None, None, None)]])
def test_only_detections_are_drawn_and_described(detections):
    predictor = Predictor(torch.nn.Identity(), lambda p: p, None, None, {})
    for call in (predictor.describe, lambda found: predictor.draw(PIXELS, found)):
        with pytest.raises(UserError, match="detections is "):
            call(detections)


def test_a_predictor_and_what_it_returns_show_what_they_are():
    def postprocess(predictions, sizes, top_k):
        boxes = torch.arange(48.0).reshape(12, 4)
        return [Detections(boxes, torch.linspace(0.9, 0.35, 12), torch.arange(12) % 3)]

    batch = SimpleNamespace(images=torch.zeros(1, 2), padding_mask=None)
    model = torch.nn.Linear(2, 2)
    model.forward = lambda images, mask: images
    predictor = Predictor(model, lambda p: p.convert("RGB"), lambda several: batch, postprocess, {0: "cat", 1: "dog"})
    assert repr(predictor).startswith("Predictor(Linear, 0.0 M parameters, 2 classes: cat, dog);")
    found = predictor(PIXELS)
    assert len(found) == 12 and found.names[:4] == ["cat", "dog", "2", "cat"]
    lines = repr(found).splitlines()
    assert lines[0] == "12 detections, (x0, y0, x1, y1) in pixels:"
    assert lines[2] == "  0.85 dog at (4.0, 5.0, 6.0, 7.0)" and lines[-1] == "  and 2 more" and len(lines) == 12
    best = predictor(PIXELS, threshold=0.82)
    assert best.names == found.above(0.82).names == ["cat", "dog"] and repr(found.above(1)) == "0 detections"
    assert [d["name"] for d in predictor.describe(best)] == best.names


def test_detections_are_drawn_on_what_is_taken():
    found = Detections(torch.tensor([[1.0, 1, 3, 3]]), torch.ones(1), torch.zeros(1, dtype=torch.long))
    predictor = Predictor(torch.nn.Identity(), lambda p: p.convert("RGB"), None, None, {0: "a"})
    assert predictor.draw(PIXELS, found).tobytes() == predictor.draw(Image.fromarray(PIXELS), found).tobytes()
