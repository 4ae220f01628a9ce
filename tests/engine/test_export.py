"""`export`: what is written gives what the detector gives, in ONNX Runtime and in PyTorch, or is not kept."""

import io
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.shapes import generate
from engine.export import compare
from engine.export.compare import difference
from engine.export.onnx_format import _translate, is_whole
from engine.export.program_file import checked
from engine.export.refuse import check_onnx_can_say, exporter_errors
from engine.exported import DATA_ALONE, ExportedDetector, torch_runner
from engine.predict import _exported_predictor, load_predictor
from main import main
from models.from_config import build_model
from models.nms import distinct_first
from ops import DeformConv2d
from util.checkpoint_write import save_checkpoint
from util.config import Config, TTAConfig
from util.errors import UserError
from util.exported import Exported, read_exported
from util.options import from_dict

ROOT = Path(__file__).resolve().parents[2]
onnxruntime = pytest.importorskip("onnxruntime")
TINY = {
    "backbone": {"name": "test_resnet", "weights": "none", "norm": "trainable", "frozen_stages": 0},
    "d_model": 32,
    "num_levels": 2,
    "num_queries": 12,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "ffn_dim": 32,
    "norm_groups": 8,
    "refinement": True,
}
NAMES = ("circle", "square", "triangle")


def save(path: Path, size: int = 64, **model) -> Path:
    """A checkpoint of a tiny detector whose layers that start at zero do not, for images of this shorter side."""
    config = from_dict(Config, {"model": TINY | model, "data": {"eval_size": size, "max_size": size * 3 // 2}})
    torch.manual_seed(0)
    detector = build_model(config.model, len(NAMES), backbone_weights="none")
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if re.search(r"sampling_offsets\.weight|attention_weights|regress|classify\.weight", name):
                parameter += 0.2 * torch.randn_like(parameter)
    categories = [{"label": i, "id": 10 * i + 1, "name": name} for i, name in enumerate(NAMES)]
    save_checkpoint(
        path, {"model": detector.state_dict(), "config": asdict(config), "categories": categories, "epoch": 1}
    )
    return path


def exported(checkpoint: Path, *options: str) -> int:
    return main(["export", "--checkpoint", str(checkpoint), "--output", str(checkpoint.parent), *options])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("export") / "tiny.pth")


@pytest.fixture(scope="module")
def onnx_file(checkpoint) -> Path:
    """Of one size of images, which takes a fraction of the time."""
    assert exported(checkpoint, "--fixed", "[64x80]") == 0
    return checkpoint.parent / "model_64x80.onnx"


@pytest.fixture(scope="module")
def open_file(checkpoint) -> Path:
    """Of images of any size."""
    assert exported(checkpoint) == 0
    return checkpoint.parent / "model.onnx"


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Of three shapes, none of them a multiple of the backbone's stride, and one twice."""
    rng = np.random.default_rng(0)
    sizes = ((70, 101, 3), (131, 87, 3), (64, 64, 3))
    drawn = [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for size in sizes]
    return [*drawn, drawn[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)]


def assert_alike(one, other):
    found = [[(d.boxes, d.scores, d.labels) for d in detections] for detections in (one, other)]
    apart = [difference(a, b) for a, b in zip(*found)]
    assert all(d.is_small for d in apart), apart
    assert len(found[0]) == len(found[1]) and all(len(boxes) == 36 for boxes, _, _ in found[0])


@pytest.mark.slow
def test_onnx_gives_what_the_checkpoint_gives(onnx_file, checkpoint):
    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)) for _ in range(3)]
    ours, theirs = load_predictor(checkpoint, "cpu"), load_predictor(onnx_file)
    assert_alike(ours(pictures), theirs(pictures))
    assert_alike([ours(pictures[0])], [theirs(pictures[0])])
    assert ours.names == theirs.names
    assert ours(pictures[0]).scores.std() > 1e-3  # the weights say something


@pytest.mark.slow
def test_onnx_gives_what_the_checkpoint_gives_at_any_size_and_number(open_file, checkpoint, pictures):
    ours, theirs = load_predictor(checkpoint, "cpu"), load_predictor(open_file)
    for several in (pictures, [pictures[0]] * 3):  # three at once
        assert_alike(ours(several), theirs(several))


@pytest.mark.slow
def test_onnx_runs_without_this_project_as_the_page_says(onnx_file, checkpoint, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    assert len(block.strip().splitlines()) <= 12 and not re.search(r"import (torch|engine|main)", block)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8))  # no resizing
    picture.save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    block = block.replace("runs/export/model.onnx", str(onnx_file)).replace("photo.jpg", "photo.png")
    scope: dict = {}
    exec(block, scope)
    expected = load_predictor(checkpoint, "cpu")(picture)
    found = (torch.as_tensor(scope[name]) for name in ("boxes", "scores", "labels"))
    apart = difference(tuple(found), (expected.boxes, expected.scores, expected.labels))
    assert apart.is_small, apart


@pytest.mark.slow
def test_the_file_says_what_belongs_to_it(onnx_file):
    metadata = onnxruntime.InferenceSession(str(onnx_file)).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["names"]) == {"0": "circle", "1": "square", "2": "triangle"}
    assert [c["id"] for c in json.loads(metadata["categories"])] == [1, 11, 21]
    assert (metadata["size"], metadata["max_size"], metadata["threshold"]) == ("64", "96", "0.5")
    assert read_exported(onnx_file).top_k == 100
    assert not list(onnx_file.parent.glob("unchecked*")) and not list(onnx_file.parent.glob("*.data"))


@pytest.mark.slow
def test_the_operator_is_grid_sample_and_nothing_foreign(onnx_file):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(onnx_file)
    operators = {node.op_type for node in model.graph.node}
    assert "GridSample" in operators and {o.domain for o in model.opset_import} <= {"", "ai.onnx"}
    assert next(o.version for o in model.opset_import) >= 18


class ClippedTwice(torch.nn.Module):
    """As a reference that two layers share."""

    def forward(self, images):
        x = images * 2.0
        return x.clamp(0, 1).exp(), x.clamp(0, 1).sin(), x.clamp(0, 1).cos()


@pytest.mark.slow
def test_a_graph_that_simplification_would_break_is_written_without_it(tmp_path, monkeypatch):
    x, tried = torch.linspace(-1, 2, 6), []
    real = torch.onnx.export

    def export(program, **options):
        written = real(program, **options)
        tried.append((options["optimize"], is_whole(written.model.graph)))
        return written

    monkeypatch.setattr(torch.onnx, "export", export)
    written = _translate(torch.export.export(ClippedTwice(), (x,), strict=False))
    assert tried == [(True, False), (False, True)]  # another first pair: onnxscript was mended, and the retry can go
    written.save(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    expected = (2 * x).clamp(0, 1).double().numpy()
    for found, function in zip(session.run(None, {"images": x.numpy()}), (np.exp, np.sin, np.cos), strict=True):
        np.testing.assert_allclose(found, function(expected), atol=1e-6)


class DistinctFirst(torch.nn.Module):
    def forward(self, images):
        return distinct_first(images, 0.5)


@pytest.mark.slow
def test_suppression_has_a_form_in_onnx(tmp_path):
    """No operator for a stable sort is needed, which torch's exporter does not know."""
    boxes = 0.2 + 0.3 * torch.rand(2, 150, 4, generator=torch.Generator().manual_seed(0))
    _translate(torch.export.export(DistinctFirst(), (boxes,), strict=False)).save(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    order = torch.arange(150)
    for few in (boxes, boxes.flip(1)):
        expected = distinct_first(few, 0.5)
        assert not torch.equal(expected[0], order)  # some are suppressed
        (found,) = session.run(None, {"images": few.numpy()})
        np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.slow
def test_eval_takes_the_file(open_file, checkpoint, tmp_path):
    data = ["--data.root", str(generate(tmp_path / "shapes", train=1, val=12)), "--data.workers", "0"]
    for name, file in (("a", checkpoint), ("b", open_file)):
        assert main(["eval", "--checkpoint", str(file), *data, "--output", str(tmp_path / name)]) == 0
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("a", "b"))
    assert one["figures"] == pytest.approx(other["figures"], abs=1e-6)
    found = [json.loads((tmp_path / name / "detections.json").read_text()) for name in ("a", "b")]
    assert len(found[0]) == len(found[1]) == 12 * 36


@pytest.mark.slow
def test_a_program_of_fixed_size(checkpoint, capsys):
    size = "64x80"
    assert exported(checkpoint, "--format", "torch", "--operator", "reference", "--fixed", f"[{size}]") == 0
    assert re.search(r"1x64x80, 1x64x80, 1x64x80, 2x64x80", capsys.readouterr().out)
    file = checkpoint.parent / "model_64x80.pt2"
    assert read_exported(file).fixed == (64, 80) and read_exported(file).operator == "reference"
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8))
    assert_alike([load_predictor(checkpoint, "cpu")(picture)], [load_predictor(file)(picture)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tta": TTAConfig(flip=True)}, "--tta needs the checkpoint"),
        ({"weights": "ema"}, "leave --weights out"),
        ({"device": "cuda"}, "leave --device out"),
    ],
)
def test_options_that_a_file_has_no_answer_to(onnx_file, options, said):
    with pytest.raises(UserError, match=said):
        load_predictor(onnx_file, **options)


def test_images_that_are_too_small_for_a_file():
    said = Exported([{"label": 0, "id": 1, "name": "a"}], 320, 500, 7, 0.25, smallest_side=33)
    detector = ExportedDetector("model.onnx", said, lambda images: (images, images, images))
    mask = torch.zeros(1, 33, 40, dtype=torch.bool)
    assert detector(torch.zeros(1, 3, 33, 40, dtype=torch.uint8), mask).size == (33, 40)
    with pytest.raises(UserError, match=r"an image is 40 x 32 pixels.*takes sides from 33 on"):
        detector(torch.zeros(1, 3, 32, 40, dtype=torch.uint8), mask[:, :32])


def test_a_file_names_classes_by_the_ids_of_the_data():
    """So that coco_results.json of a file and of its checkpoint are of the same classes."""
    said = Exported([{"label": 0, "id": 7, "name": "a"}, {"label": 1, "id": 90, "name": "b"}], 320, 500, 7, 0.25)
    detector = ExportedDetector("model.onnx", said, lambda images: (images, images, images))
    assert _exported_predictor(detector, None, None).category_of == {0: 7, 1: 90}


@pytest.mark.parametrize("command", ["visualize", "profile"])
def test_other_commands_want_the_checkpoint(command, capsys, tmp_path):
    onnx_file = tmp_path / "model.onnx"
    onnx_file.touch()
    Image.new("RGB", (64, 64)).save(tmp_path / "p.png")
    more = ["--input", str(tmp_path / "p.png"), "--output", str(tmp_path)] if command == "visualize" else []
    assert main([command, "--checkpoint", str(onnx_file), *more]) == 2
    assert "for eval and predict alone; give the checkpoint of it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_a_file_of_another_kind_is_refused(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"\x00not a model")
    assert main(["eval", "--checkpoint", str(tmp_path / name)]) == 2
    assert "is no file that `main.py export` wrote" in capsys.readouterr().err


def test_a_program_runs_no_pickles(tmp_path, monkeypatch):
    """torch.export.load asks torch.load for objects of any kind where a file says so."""
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    stored = io.BytesIO()
    torch.save(Evil(), stored)
    monkeypatch.setattr(
        torch.export, "load", lambda path: torch.load(io.BytesIO(stored.getvalue()), weights_only=False)
    )
    with pytest.raises(UserError, match="is no program that torch"):
        torch_runner(tmp_path / "model.pt2")
    assert not marker.exists() and DATA_ALONE not in os.environ


def test_convolutions_that_onnx_has_no_form_for():
    with pytest.raises(UserError, match=r"model\.backbone\.dcn cannot be exported to ONNX"):
        check_onnx_can_say(torch.nn.Sequential(DeformConv2d(4, 4, 3)))


def test_what_the_exporter_cannot_say_is_named():
    wanted = r"cannot write this detector as ONNX: no function for aten\.sort\.stable$"
    with pytest.raises(UserError, match=wanted), exporter_errors("ONNX"):
        try:
            try:
                raise KeyError from ValueError("no function for aten.sort.stable\nand more lines")
            except KeyError as error:
                raise RuntimeError("error when translating a node; see the stack trace") from error
        except RuntimeError as error:
            raise torch.onnx.OnnxExporterError("failed to convert") from error


def listed(boxes, scores, labels):
    return torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels)


def test_ties_in_another_order_are_no_difference():
    boxes = [[0.0, 0, 10, 20], [5.0, 5, 9, 9], [1.0, 1, 3, 3]]
    one = listed(boxes, [0.9, 0.5, 0.5], [1, 2, 0])
    other = listed([boxes[0], boxes[2], boxes[1]], [0.9, 0.5, 0.5], [1, 0, 2])
    assert difference(one, other) == compare.Difference(0.0, 0.0)


def test_differences_by_hand():
    one = listed([[0.0, 0, 10, 20], [30.0, 30, 34, 32]], [0.9, 0.2], [1, 1])
    moved = listed([[0.0, 0, 10, 22], [30.0, 30, 34, 32]], [0.9, 0.19995], [1, 1])
    apart = difference(one, moved)
    assert apart.boxes == pytest.approx(2 / 20) and apart.scores == pytest.approx(5e-5, rel=1e-2)
    assert not apart.is_small
    relabelled = listed([[0.0, 0, 10, 20], [30.0, 30, 34, 32]], [0.9, 0.2], [2, 1])
    assert difference(one, relabelled).boxes == float("inf")
    nothing = listed([[0.0, 0, 10, 20], [30.0, 30, 34, 32]], [0.9, float("nan")], [1, 1])
    assert difference(one, nothing).scores == float("inf")


def test_what_lost_the_last_place_to_its_equal_needs_no_counterpart():
    one = listed([[0.0, 0, 10, 20], [30.0, 30, 34, 32]], [0.9, 0.2], [1, 1])
    other = listed([[0.0, 0, 10, 20], [70.0, 30, 74, 32]], [0.9, 0.2], [1, 2])
    assert difference(one, other) == compare.Difference(0.0, 0.0)


def test_a_file_that_differs_is_not_kept(tmp_path):
    (tmp_path / "model.onnx").write_text("of before, which was right")
    boxes, scores, labels = listed([[[0.0, 0, 10, 20]]], [[0.9]], [[1]])
    batches = [torch.zeros(1, 3, 4, 4, dtype=torch.uint8)]

    def write(path: str) -> None:
        Path(path).write_text("another")

    def open_it(path: Path):
        assert path.read_text() == "another"
        return lambda images: (boxes + 0.1, scores, labels)

    detector = lambda images: (boxes, scores, labels)  # noqa: E731
    said = Exported([], 4, 4, 1, 0.5)
    with pytest.raises(UserError, match=r"differs from the checkpoint, and is not kept.*5\.0e-03 of a box"):
        checked(tmp_path / "model.onnx", write, open_it, detector, batches, said)
    assert (tmp_path / "model.onnx").read_text() == "of before, which was right"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("failing", ["other scores", "a refusal"])
def test_the_smallest_side_is_tried(failing, tmp_path):
    """A file with a condition on width times height, which no bound of a side says."""
    saved, batches = [], [torch.zeros(1, 3, 40, 60, dtype=torch.uint8)]
    said = Exported([], 40, 60, 1, 0.5, smallest_side=9)

    def detector(images):
        return torch.tensor([[[0.0, 0, 10, 20]]]), torch.tensor([[0.9]]), torch.tensor([[1]])

    def file(images):
        boxes, scores, labels = detector(images)
        if images.shape[-1] * images.shape[-2] >= 600:
            return boxes, scores, labels
        if failing == "a refusal":
            raise UserError("too few tokens")
        return boxes, scores / 2, labels

    def save(path: str) -> None:
        Path(path).write_text(str(said.smallest_side))
        saved.append(said.smallest_side)

    checked(tmp_path / "model.onnx", save, lambda path: file, detector, batches, said)
    assert saved == [9, 25] and (tmp_path / "model.onnx").read_text() == "25"  # 24 x 24 is less than 600
    checked(tmp_path / "model.onnx", save, lambda path: file, detector, batches, said)
    assert saved == [9, 25, 25]


def test_what_a_file_says_comes_back():
    said = Exported([{"label": 0, "id": "a", "name": ""}], 320, 500, 7, 0.25, 33, (320, 480), "reference")
    assert Exported.from_strings(said.to_strings()) == said
    assert json.loads(said.to_strings()["names"]) == {"0": "a"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"two_stage": True},
        {
            "two_stage": True,
            "query_selection": "tokens",
            "proposal_head": "class",
            "proposal_nms": 0.5,
            "decoder_layers": 2,
        },
        {"ignore_padding": True, "num_levels": 4},
        {"encoder": "hybrid", "num_levels": 3},
        {"distribution_boxes": True, "decoder_layers": 2},
        {"reference": "box", "decoder_layers": 2, "decoder_norm": True},
        {"decoder_query_position": "sine", "query_scale": True, "decoder_layers": 2, "memory_fusion": True},
        {"cross_level": False, "encoder_points": 3, "num_points": [4, 2]},
        {"backbone": TINY["backbone"] | {"name": "tf_efficientnet_lite0"}},
    ],
    ids=lambda model: "-".join(map(str, model)),
)
def test_options_of_the_model(model, tmp_path, pictures):
    # A program has what held for the images that were traced: maps of several pixels, more tokens than are compared.
    checkpoint = save(tmp_path / "tiny.pth", size=128, **model)
    for form, file in (("onnx", "model.onnx"), ("torch", "model.pt2")):
        assert exported(checkpoint, "--format", form) == 0
        assert_alike(load_predictor(checkpoint, "cpu")(pictures), load_predictor(tmp_path / file)(pictures))


@pytest.mark.slow
def test_relation_is_written_as_a_program_alone(tmp_path, pictures, capsys):
    checkpoint = save(tmp_path / "tiny.pth", size=128, relation=True, decoder_layers=3)
    assert exported(checkpoint, "--format", "onnx") == 2
    assert "model.relation cannot be exported to ONNX" in capsys.readouterr().err
    assert exported(checkpoint, "--format", "torch") == 0
    assert_alike(load_predictor(checkpoint, "cpu")(pictures), load_predictor(tmp_path / "model.pt2")(pictures))
