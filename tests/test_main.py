"""The commands end to end on a handful of generated shapes: train, resume, fine-tune, evaluate, predict, check."""

import json
import re
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image

import engine.run
from datasets.shapes import generate
from datasets.video import opened_video
from engine.curves import plot_run
from engine.predict import load_model
from main import load_predictor, main
from util.video import VideoWriter

ROOT = Path(__file__).resolve().parents[1]
SMALL = """
model:
  backbone: {name: test_resnet, weights: none, norm: trainable, frozen_stages: 0}
  d_model: 32
  num_levels: 2
  num_queries: 20
  num_heads: 4
  num_points: 2
  encoder_layers: 1
  decoder_layers: 2
  ffn_dim: 32
  norm_groups: 8
  refinement: true
data: {train_sizes: [48, 64], eval_size: 64, max_size: 96, crop_sizes: [64], crop_range: [32, 64], workers: 0}
train: {batch_size: 4, epochs: 2, lr: 0.001, lr_backbone: 0.001, clip_norm: 1.0, device: cpu}
"""


def small_place(folder: Path, train: int, val: int) -> Path:
    """A folder with `shapes`, so many images to train and to score, and `small.yaml`."""
    generate(folder / "shapes", train=train, val=val, size=64)
    (folder / "small.yaml").write_text(SMALL)
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp("data") / "shapes", train=12, val=7, size=64)


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


def run(*argv) -> int:
    return main([str(a) for a in argv])


@pytest.fixture(scope="module")
def trained(shapes, preset, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "full"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.run, "plot_run", plot_run)  # as outside of tests
        assert run("train", "--config", preset, "--data.root", shapes, "--train.output", output) == 0
    return output


def test_a_run_leaves_everything_behind(trained, shapes):
    checkpoint = torch.load(trained / "last.pth", weights_only=True)
    assert checkpoint["epoch"] == 2 and checkpoint["schedule"]["step"] == 6
    assert [c["name"] for c in checkpoint["categories"]] == ["circle", "square", "triangle"]
    assert checkpoint["config"]["data"]["root"] == str(shapes) and checkpoint["code_version"]
    assert (trained / "best.pth").is_file() and list(trained.glob("events.out.tfevents*"))
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in lines] == [("train", 3), ("eval", 3), ("train", 6), ("eval", 6)]
    parts = sum(v for k, v in lines[0].items() if "/" in k)
    assert lines[0]["loss"] == pytest.approx(parts)
    assert yaml.safe_load((trained / "config.yaml").read_text())["model"]["d_model"] == 32
    assert not list(trained.glob("*.tmp"))
    with Image.open(trained / "curves.png") as curves:
        assert curves.width > 500


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_after_an_epoch_equals_an_uninterrupted_run(shapes, preset, tmp_path, workers):
    """Dropout, order and augmentation included; on the CPU to the last bit."""
    common = ("train", "--config", preset, "--data.root", shapes, "--data.workers", workers, "--model.dropout", 0.2)
    assert run(*common, "--train.output", tmp_path / "whole", "--train.epochs", 2) == 0
    whole = torch.load(tmp_path / "whole" / "last.pth", weights_only=True)["model"]
    # The step schedule does not depend on the number of epochs: one epoch is the first half of two.
    assert run(*common, "--train.output", tmp_path / "r", "--train.epochs", 1) == 0
    assert run("train", "--train.resume", tmp_path / "r", "--train.epochs", 2) == 0
    resumed = torch.load(tmp_path / "r" / "last.pth", weights_only=True)
    assert resumed["epoch"] == 2
    for key, tensor in whole.items():
        assert torch.equal(tensor, resumed["model"][key]), key
    steps = [json.loads(line)["step"] for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 3, 6, 6]


def test_resuming_a_finished_run_says_so(trained, capsys):
    assert run("train", "--train.resume", trained / "last.pth") == 0
    assert re.search(r"has finished its 2 epochs.*--train.epochs", capsys.readouterr().out)


def test_init_from_takes_weights_and_lists_what_it_left_out(trained, shapes, preset, tmp_path, capsys):
    annotations = json.loads((shapes / "annotations" / "instances_train2017.json").read_text())
    annotations["categories"].append({"id": 9, "name": "star"})
    (tmp_path / "four.json").write_text(json.dumps(annotations))
    options = (
        "--data.train_images", shapes / "train2017", "--data.train_annotations", tmp_path / "four.json",
        "--data.val_images", shapes / "train2017", "--data.val_annotations", tmp_path / "four.json",
    )  # fmt: skip
    argv = ("train", "--config", preset, *options, "--train.fast_dev_run", "--train.output", tmp_path / "tuned")
    assert run(*argv, "--model.init_from", trained / "best.pth") == 0
    printed = capsys.readouterr().out
    assert "class rows copied by name: 3 (circle, square, triangle)" in printed
    assert "class rows that start anew: 1 (star)" in printed and "not loaded: 0" in printed


def test_a_run_names_the_weights_that_timm_loaded(shapes, preset, tmp_path, capsys, monkeypatch):
    """Nothing is downloaded: timm is asked for the weights, and makes random ones."""
    asked, create = [], timm.create_model

    def stand_in(name: str, pretrained: bool, **options):
        asked.append((name, pretrained))
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", stand_in)
    argv = ("train", "--config", preset, "--data.root", shapes, "--train.fast_dev_run")
    assert run(*argv, "--train.output", tmp_path / "a", "--model.backbone.weights", "timm") == 0
    assert asked == [("test_resnet.r160_in1k", True)]
    assert "test_resnet.r160_in1k (weights: timm)" in capsys.readouterr().out
    folder = tmp_path / "a" / "fast_dev_run"
    # Started from that checkpoint, a backbone of the same architecture takes nothing from timm, and keeps the name.
    from_it = ("--model.init_from", folder / "last.pth", "--model.backbone.weights", "timm")
    assert run(*argv, "--train.output", tmp_path / "b", *from_it) == 0
    assert not any(pretrained for _, pretrained in asked[1:])
    for run_folder in (folder, tmp_path / "b" / "fast_dev_run"):
        written = yaml.safe_load((run_folder / "config.yaml").read_text())["model"]["backbone"]
        saved = torch.load(run_folder / "last.pth", weights_only=True)["config"]["model"]["backbone"]
        assert written["name"] == saved["name"] == "test_resnet.r160_in1k" and saved["weights"] == "timm"


@pytest.mark.parametrize("two_stage", ["false", "true"])
def test_bf16_trains(shapes, preset, tmp_path, two_stage):
    argv = ("--config", preset, "--data.root", shapes, "--train.output", tmp_path / "b", "--train.precision", "bf16")
    assert run("train", *argv, "--train.fast_dev_run", "--model.two_stage", two_stage) == 0
    figures = json.loads((tmp_path / "b" / "fast_dev_run" / "metrics.jsonl").read_text().splitlines()[0])
    assert figures["loss"] > 0 and figures["grad_norm"] > 0


def test_a_run_is_not_overwritten(trained, shapes, preset, capsys):
    before = (trained / "last.pth").stat().st_mtime_ns
    assert run("train", "--config", preset, "--data.root", shapes, "--train.output", trained) == 2
    assert "--train.resume" in capsys.readouterr().err and (trained / "last.pth").stat().st_mtime_ns == before


def test_evaluation_of_a_checkpoint_and_of_its_saved_detections_agree(trained, shapes, tmp_path, capsys):
    assert run("eval", "--checkpoint", trained / "best.pth", "--output", tmp_path / "a", "--data.workers", 0) == 0
    printed = capsys.readouterr().out
    assert "triangle" in printed and "AR_100" in printed
    truth = shapes / "annotations" / "instances_val2017.json"
    saved = ("--detections", tmp_path / "a" / "detections.json", "--data.val_annotations", truth)
    assert run("eval", *saved, "--output", tmp_path / "b") == 0
    first, second = (json.loads((tmp_path / d / "results.json").read_text()) for d in "ab")
    assert set(first["per_class"]) == {"circle", "square", "triangle"} and len(first["figures"]) == 12
    assert first == second


def test_evaluation_does_not_depend_on_the_batch(trained, shapes, tmp_path):
    """Images of unequal sizes, several of each; 1, 2 and 8 at once find the same boxes with the same scores."""
    annotations = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    first = len(annotations["images"])
    for image in annotations["images"][:first]:  # the same pictures once more, for sizes to occur twice
        annotations["images"].append(image | {"id": image["id"] + 100})
    (tmp_path / "twice.json").write_text(json.dumps(annotations))
    data = ("--data.val_images", shapes / "val2017", "--data.val_annotations", tmp_path / "twice.json")
    found = {}
    for size in (1, 2, 8):
        argv = ("--checkpoint", trained / "best.pth", "--output", tmp_path / str(size), "--data.workers", 0, *data)
        assert run("eval", *argv, "--batch_size", size) == 0
        results = json.loads((tmp_path / str(size) / "detections.json").read_text())
        found[size] = sorted((r["image_id"], -r["score"], r["category_id"], *r["bbox"]) for r in results)
    assert len({row[0] for row in found[1]}) == 2 * first
    for size in (2, 8):
        assert [row[0] for row in found[size]] == [row[0] for row in found[1]]
        for alone, together in zip(found[1], found[size]):
            assert together[1] == pytest.approx(alone[1], abs=1e-4)


def test_padded_evaluation_depends_on_the_batch_and_says_so(trained, shapes, tmp_path, capsys):
    found = {}
    for name, argv in {"plain": (), "one": ("--padding", "batch"), "two": ("--padding", "batch")}.items():
        size = 2 if name == "two" else 1
        common = ("--checkpoint", trained / "best.pth", "--data.root", shapes, "--data.workers", 0)
        assert run("eval", *common, "--output", tmp_path / name, "--batch_size", size, *argv) == 0
        found[name] = (tmp_path / name / "detections.json").read_text()
    assert found["plain"] == found["one"] != found["two"]
    assert json.loads((tmp_path / "two" / "results.json").read_text())["padding"].startswith(
        "to the largest of 2 images"
    )
    assert "padding" not in json.loads((tmp_path / "plain" / "results.json").read_text())
    assert "padded in batches of 2" in capsys.readouterr().out

    assert run("eval", *common, "--padding", "batch", "--tta.flip", "true") == 2
    assert "mirrored views" in capsys.readouterr().err
    truth = ("--data.val_annotations", shapes / "annotations" / "instances_val2017.json")
    assert run("eval", "--detections", tmp_path / "one" / "detections.json", *truth, "--padding", "batch") == 2
    assert "--padding batch needs a --checkpoint" in capsys.readouterr().err


def test_prediction_of_a_folder_a_file_and_a_pattern(trained, shapes, tmp_path):
    folder = shapes / "val2017"
    for source, count in ((folder, 7), (folder / "000003.png", 1), (f"{folder}/00000[12].png", 2)):
        output = tmp_path / str(count)
        argv = ("predict", "--checkpoint", trained, "--input", source, "--output", output, "--threshold", 0.0)
        assert run(*argv) == 0
        listed = json.loads((output / "predictions.json").read_text())
        assert len(listed) == count == len(list(output.glob("*.png")))
        for entry in listed:
            with Image.open(output / entry["drawn"]) as drawn:
                factor = drawn.width // entry["width"]  # small pictures are drawn larger
                assert drawn.size == (factor * entry["width"], factor * entry["height"])
            assert {d["name"] for d in entry["detections"]} <= {"circle", "square", "triangle"}
            assert len(entry["detections"]) == 60  # 20 queries x 3 classes, all above 0


def test_prediction_of_a_folder_with_pictures_and_videos(trained, shapes, tmp_path, capsys):
    """The frames of a clip are detected in as pictures are; a broken clip is left out."""
    folder, output = tmp_path / "mixed", tmp_path / "out"
    folder.mkdir()
    shutil.copy(shapes / "val2017" / "000000.png", folder)
    (folder / "broken.mp4").write_bytes(b"nothing")
    with VideoWriter(folder / "clip.mp4", Fraction(5), Fraction(1, 5)) as writer:
        for i in range(3):
            writer.write(Image.open(shapes / "val2017" / f"00000{i}.png").resize((64, 48)), i)
    argv = (
        "predict",
        "--checkpoint",
        trained,
        "--output",
        output,
        "--threshold",
        0.01,
        "--top_k",
        5,
        "--device",
        "cpu",
    )
    assert run(*argv, "--input", folder, "--batch_size", 2) == 1
    captured = capsys.readouterr()
    assert "broken.mp4' cannot be read" in captured.err and "on 1 pictures" in captured.out
    assert len(json.loads((output / "predictions.json").read_text())) == 1
    predictor = load_predictor(trained, "cpu")
    lines = [json.loads(line) for line in (output / "clip.jsonl").read_text().splitlines()]
    with opened_video(folder / "clip.mp4") as video:
        for line, (_, picture) in zip(lines, video.frames(), strict=True):
            exact = predictor.describe(predictor(picture, 0.01, 5))
            assert [d["label"] for d in line["detections"]] == [d["label"] for d in exact]
            for found, expected in zip(line["detections"], exact):
                assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
                assert found["box_xyxy"] == pytest.approx(expected["box_xyxy"], abs=1e-2)
    assert [line["time"] for line in lines] == [0, 0.2, 0.4]
    assert run(*argv, "--input", folder / "clip.mp4", "--tta.flip", "true", "--size", 48) == 0
    assert "of '" in capsys.readouterr().out and len((output / "clip.jsonl").read_text().splitlines()) == 3
    assert run(*argv, "--input", folder / "broken.mp4") == 2
    assert run("visualize", "--checkpoint", trained, "--input", folder / "clip.mp4") == 2
    assert "clip.mp4' is a video" in capsys.readouterr().err


def test_python_interface(trained, shapes):
    predictor = load_predictor(str(trained / "best.pth"), device="cpu")
    with Image.open(shapes / "val2017" / "000000.png") as picture:
        picture.load()
    found = predictor(picture, threshold=0.0, top_k=5)
    assert len(found.scores) == 5 and found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    large = picture.resize((500, 400))
    assert predictor.draw(large, found).size == large.size
    both = predictor([picture, picture.convert("L")], top_k=5)
    assert len(both) == 2 and len(both[1].scores) == 5


def test_check_data_exits_with_the_state_of_the_data(shapes, tmp_path, capsys):
    assert run("check-data", "--data.root", shapes, "--output", tmp_path / "report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["train"]["images"] == 12 and report["val"]["images"] == 7 and report["val"]["defects"] == []
    annotations = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    annotations["annotations"][0]["bbox"][2] = -5
    (tmp_path / "bad.json").write_text(json.dumps(annotations))
    argv = ("check-data", "--data.val_images", shapes / "val2017", "--data.val_annotations", tmp_path / "bad.json")
    assert run(*argv) == 1
    assert "negative box (1)" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "configs").glob("*.yaml")))
def test_presets_open_with_what_they_train_cost_reach_and_the_command(name):
    lines = (ROOT / "configs" / name).read_text().splitlines()
    assert [line.split()[1] for line in lines[:4]] == ["Trains:", "Costs:", "Reaches:", "Run:"]


def test_the_average_of_weights_is_what_is_used_unless_asked_otherwise(shapes, preset, tmp_path, capsys):
    argv = ("--config", preset, "--data.root", shapes, "--train.output", tmp_path / "run", "--data.workers", 0)
    more = ("--train.ema_decay", 0.5, "--train.epochs", 3, "--train.eval_every", 3, "--data.group_by_aspect", "true")
    assert run("train", *argv, *more) == 0
    assert "EMA 0.5" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {line["kind"]: line for line in lines if line["kind"] != "train"}
    found = {}
    for weights in ("auto", "model", "ema"):
        argv = (
            "--checkpoint",
            tmp_path / "run",
            "--output",
            tmp_path / weights,
            "--weights",
            weights,
            "--device",
            "cpu",
        )
        assert run("eval", *argv) == 0
        found[weights] = json.loads((tmp_path / weights / "detections.json").read_text())
        figures = json.loads((tmp_path / weights / "results.json").read_text())["figures"]
        expected = logged["eval" if weights == "model" else "eval_ema"]
        assert figures == {name: expected[name] for name in figures}
    assert found["auto"] == found["ema"] != found["model"]


def test_an_average_that_is_not_there(trained, capsys):
    assert run("eval", "--checkpoint", trained, "--weights", "ema") == 2
    assert "no moving average" in capsys.readouterr().err


def test_moments_that_lie_otherwise_in_memory_are_laid_as_the_parameters(trained, shapes, preset, tmp_path):
    """Older checkpoints hold contiguous moments, which fused AdamW would mix up with channels_last weights."""
    common = ("train", "--train.epochs", 3, "--data.workers", 0)
    resumed = []
    for name in ("as saved", "contiguous"):
        folder = tmp_path / name
        shutil.copytree(trained, folder)
        content = torch.load(folder / "last.pth", weights_only=True)
        if name == "contiguous":
            for moments in content["optimizer"]["state"].values():
                moments.update({k: v.contiguous() for k, v in moments.items()})
        torch.save(content, folder / "last.pth")
        assert run(*common, "--train.resume", folder, "--train.output", folder) == 0
        resumed.append(torch.load(folder / "last.pth", weights_only=True)["model"])
    for key, tensor in resumed[0].items():
        assert torch.equal(tensor, resumed[1][key]), key


def test_the_header_says_what_will_run(shapes, preset, tmp_path, capsys):
    argv = ("--config", preset, "--data.root", shapes, "--train.output", tmp_path, "--train.fast_dev_run")
    more = ("--train.max_images_per_device", 2, "--train.checkpoint_activations", "--train.precision", "bf16")
    assert run("train", *argv, *more) == 0
    header = capsys.readouterr().out
    for said in ("4 images a step, micro-batches of 2", "bf16", "activations checkpointed", "operator", "3: circle"):
        assert said in header


def test_profile_of_a_preset_and_of_a_checkpoint(trained, preset, capsys):
    for source in (("--config", preset), ("--checkpoint", trained)):
        assert (
            run("profile", *source, "--sizes", '["64x96"]', "--repeats", 1, "--num_classes", 3, "--device", "cpu") == 0
        )
        printed = capsys.readouterr().out
        assert "1 x 64x96" in printed
        parameters = int(re.search(r"^all +([\d,]+)", printed, re.MULTILINE)[1].replace(",", ""))
        model = load_model(str(trained / "best.pth"))[0]
        assert parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert run("profile", "--config", preset, "--sizes", '["64"]') == 2
    assert "480x640" in capsys.readouterr().err
