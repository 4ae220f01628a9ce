"""One process, micro-batches, several processes: the same losses, the same weights, the same AP."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from datasets.shapes import generate
from tests.datasets.helpers import add_lists
from tests.processes import Launched
from tests.test_all_options import ALL
from tests.test_main import SMALL

WAYS = {"one": (1, 8), "micro-batches": (1, 2), "two processes": (2, 4), "two, micro-batches": (2, 2), "three": (3, 2)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Shapes of many sizes; every third training image without objects."""
    root = generate(tmp_path_factory.mktemp("data") / "shapes", train=40, val=7, size=64)
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] % 3]
    file.write_text(json.dumps(content))
    add_lists(file)
    return root


@pytest.fixture(scope="module")
def few(data, tmp_path_factory) -> Path:
    """The same with the first 16 training images."""
    root = shutil.copytree(data, tmp_path_factory.mktemp("data") / "few")
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["images"] = content["images"][:16]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    file.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


def options(preset: Path, data: Path, output: Path, **more: object) -> list[object]:
    settings = {
        "data.root": data,
        "train.output": output,
        "train.batch_size": 8,
        "train.epochs": 4,
        "train.eval_every": 4,
        "train.log_every": 1,
        "model.dropout": 0.0,
        "model.backbone.norm": "frozen",
        **more,
    }
    return ["train", "--config", preset, *(f"--{k}={v}" for k, v in settings.items())]


def outcome(folder: Path) -> tuple[list[float], dict[str, torch.Tensor], dict]:
    """Losses of every step, final weights, figures of the last evaluation."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    figures = {k: v for k, v in lines[-1].items() if k.startswith("A")}
    return losses, torch.load(folder / "last.pth", weights_only=True)["model"], figures


def train_every_way(preset: Path, data: Path, folder: Path, ways=WAYS, **more: object) -> dict[str, tuple]:
    outcomes = {}
    for name, (processes, micro) in ways.items():
        output = folder / name
        argv = options(preset, data, output, **more, **{"train.max_images_per_device": micro})
        launched = Launched(argv, folder / f"{name}.log", processes)
        assert launched.wait() == [0] * processes, launched.printed()
        outcomes[name] = outcome(output)
    return outcomes


def largest_difference(outcomes: dict[str, tuple], name: str) -> tuple[float, float]:
    """Of losses, relative; of weights, absolute."""
    (losses, weights, _), (exact, reference, _) = outcomes[name], outcomes["one"]
    assert len(losses) == len(exact) >= 4
    of_losses = max(abs(a / b - 1) for a, b in zip(losses, exact))
    return of_losses, max(float((weights[k].double() - reference[k].double()).abs().max()) for k in reference)


@pytest.mark.slow
@pytest.mark.parametrize("two_stage", [False, True])
def test_how_a_batch_is_spread_makes_no_difference(preset, data, tmp_path, two_stage):
    """In float64, where Adam does not blow up rounding; 20 steps. Padding, empty images, unequal shares included."""
    more = {"train.precision": "fp64", "model.two_stage": two_stage}
    outcomes = train_every_way(preset, data, tmp_path, **more)
    assert len(outcomes["one"][0]) == 20
    for name in WAYS:
        of_losses, of_weights = largest_difference(outcomes, name)
        assert of_losses < 1e-9, name
        assert of_weights < 1e-9, name
        assert outcomes[name][2] == outcomes["one"][2], name


# Alternatives to some options of `ALL`.
OTHERS = {
    "model.look_forward": 1,
    "model.distribution_boxes": True,
    "loss.distillation_weight": 1.5,
    "model.encoder": "hybrid",
    "model.query_selection": "tokens",
    "loss.classification": "ia_bce",
}


@pytest.mark.parametrize("recipe", [ALL, pytest.param(ALL | OTHERS, marks=pytest.mark.slow)], ids=["all", "others"])
def test_with_every_option_how_a_batch_is_spread_makes_no_difference(preset, few, tmp_path, recipe):
    """An epoch with strong augmentations and one without, of two steps each; padding and empty images included."""
    ways = {name: WAYS[name] for name in ("one", "micro-batches", "two processes")}
    more = {**recipe, "train.precision": "fp64", "train.epochs": 2, "train.eval_every": 2}
    outcomes = train_every_way(preset, few, tmp_path, ways, **more)
    assert len(outcomes["one"][0]) == 4
    for name in ways:
        of_losses, of_weights = largest_difference(outcomes, name)
        assert of_losses < 1e-9 and of_weights < 1e-9, name
        assert outcomes[name][2] == outcomes["one"][2], name


@pytest.mark.slow
def test_feature_mimicking_does_not_depend_on_how_a_batch_is_spread(preset, data, tmp_path):
    """Also where a process or a micro-batch has no object to crop."""
    ways = {name: WAYS[name] for name in ("one", "micro-batches", "three")}
    more = {"train.precision": "fp64", "train.epochs": 1, "train.eval_every": 1}
    more |= {"model.backbone.dcn": "v2", "loss.mimic_weight": 0.1, "loss.mimic_size": 32}
    outcomes = train_every_way(preset, data, tmp_path, ways, **more)
    for name in ways:
        of_losses, of_weights = largest_difference(outcomes, name)
        assert of_losses < 1e-9 and of_weights < 1e-9, name


@pytest.mark.slow
@pytest.mark.parametrize("source", [{"model.reference": "box"}, {"model.two_stage": True}])
def test_denoising_does_not_depend_on_how_a_batch_is_spread(preset, data, tmp_path, source):
    """What is drawn follows the image; images with fewer objects are padded."""
    ways = {name: WAYS[name] for name in ("one", "micro-batches", "three")}
    more = {"train.precision": "fp64", "train.epochs": 2, "train.eval_every": 2, "model.denoising_queries": 6}
    outcomes = train_every_way(preset, data, tmp_path, ways, **more, **source)
    for name in ways:
        of_losses, of_weights = largest_difference(outcomes, name)
        assert of_losses < 1e-9 and of_weights < 1e-9, name


@pytest.mark.slow
def test_in_single_precision_only_rounding_differs(preset, data, tmp_path):
    """The first step's loss to rounding; later ones diverge, for Adam divides small gradients by themselves."""
    ways = {name: WAYS[name] for name in ("one", "micro-batches", "two processes")}
    outcomes = train_every_way(preset, data, tmp_path, ways, **{"train.epochs": 2, "train.eval_every": 2})
    for name in ways:
        assert outcomes[name][0][0] == pytest.approx(outcomes["one"][0][0], rel=1e-6)
        assert outcomes[name][0][-1] == pytest.approx(outcomes["one"][0][-1], rel=0.05)


@pytest.mark.slow
def test_padding_by_micro_batch_is_not_exact(preset, data, tmp_path):
    """What train.padding is for: without it, norms and convolutions see where a micro-batch ends."""
    ways = {name: WAYS[name] for name in ("one", "micro-batches")}
    more = {"train.precision": "fp64", "train.padding": "micro_batch", "train.epochs": 1, "train.eval_every": 1}
    assert largest_difference(train_every_way(preset, data, tmp_path, ways, **more), "micro-batches")[0] > 1e-6


def test_trained_batch_norms_take_the_statistics_of_all_processes(preset, data, tmp_path):
    ways = {name: WAYS[name] for name in ("one", "two processes")}
    more = {"model.backbone.norm": "trainable", "train.precision": "fp64", "train.epochs": 1, "train.eval_every": 1}
    of_losses, of_weights = largest_difference(train_every_way(preset, data, tmp_path, ways, **more), "two processes")
    assert of_losses < 1e-9 and of_weights < 1e-9


def test_the_average_of_weights_is_the_same_in_every_process(preset, data, tmp_path):
    """Also with frozen parts, for which no process waits, and where all end early."""
    more = {"train.ema_decay": 0.5, "train.precision": "fp64", "train.epochs": 3, "train.eval_every": 1}
    more |= {"train.freeze": "[encoder,queries]", "train.early_stop": 1, "train.best_metric": "AP75"}
    train_every_way(preset, data, tmp_path, {n: WAYS[n] for n in ("one", "two processes")}, **more)
    one, two = (torch.load(tmp_path / n / "best.pth", weights_only=True) for n in ("one", "two processes"))
    for key, tensor in one["ema"].items():
        torch.testing.assert_close(two["ema"][key], tensor, rtol=1e-9, atol=1e-9)
    assert any(not torch.equal(one["ema"][key], one["model"][key]) for key in one["ema"])
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    assert kinds[-2:] == ["eval", "eval_ema"]


def test_evaluation_by_several_processes_is_identical(preset, data, tmp_path):
    """Seven images do not divide by two or three."""
    argv = options(preset, data, tmp_path / "run", **{"train.epochs": 8, "train.eval_every": 8, "train.lr": 0.003})
    launched = Launched(argv, tmp_path / "train.log")
    assert launched.wait() == [0], launched.printed()
    results = []
    for processes in (1, 2, 3):
        output = tmp_path / f"eval{processes}"
        argv = ["eval", "--checkpoint", tmp_path / "run", "--output", output, "--batch_size", 2, "--device", "cpu"]
        launched = Launched(argv, tmp_path / "eval.log", processes)
        assert launched.wait() == [0] * processes, launched.printed()
        results.append((json.loads((output / "results.json").read_text()), (output / "detections.json").read_text()))
    assert results[0] == results[1] == results[2]
    assert results[0][0]["figures"]["AR_100"] > 0


def break_an_image(data: Path, rank: int) -> None:
    """Only this process finds a picture truncated."""
    if rank == 1:
        import datasets.image_folder
        from util.errors import UserError

        def fail(path, **options):
            raise UserError(f"image '{path.name}' cannot be read")

        datasets.image_folder.read_image = fail


def test_an_error_in_one_process_ends_all_with_its_message(preset, data, tmp_path):
    argv = options(preset, data, tmp_path / "run", **{"data.workers": 0})
    launched = Launched(argv, tmp_path / "log", 2, partial(break_an_image, data))
    codes = launched.wait(60)
    assert codes[1] == 2 and codes[0] == 3
    errors = [line for line in launched.printed().splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "process 1 of 2: image" in errors[0], launched.printed()
    assert "Traceback" not in launched.printed()


def test_an_error_of_all_is_said_once(preset, tmp_path):
    argv = options(preset, tmp_path / "nowhere", tmp_path / "run")
    launched = Launched(argv, tmp_path / "log", 2)
    assert set(launched.wait(60)) <= {2, 3}
    assert launched.printed().count("error:") == 1, launched.printed()


@pytest.mark.parametrize(
    ("batch", "norm", "says"),
    [(2, "frozen", "cannot be shared by 3 processes"), (8, "trainable", "no multiple of 3 processes")],
)
def test_batches_that_cannot_be_shared_are_refused(preset, data, tmp_path, batch, norm, says):
    more = {"train.batch_size": batch, "model.backbone.norm": norm}
    launched = Launched(options(preset, data, tmp_path / "run", **more), tmp_path / "log", 3)
    assert set(launched.wait(60)) <= {2, 3}
    assert says in launched.printed()


def test_commands_for_one_process_refuse_several(tmp_path):
    launched = Launched(["predict", "--checkpoint", "x", "--input", "y"], tmp_path / "log", 2)
    assert set(launched.wait(60)) <= {2, 3}
    assert "predict is for a single process" in launched.printed()
