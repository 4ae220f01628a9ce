"""Every file of configs/, run by every command that takes it.

A run is made small by `SMALL`. Whatever else a preset says must reach the model that is built and the run's own
config.yaml, and what tells presets apart (two-stage, refinement, levels, strides, deformable convolutions, norms) must
be there among the weights.
"""

import itertools
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure

from ablation import charts, processes
from ablation.grid import variants_of
from analysis.looks import look
from datasets.shapes import generate
from engine.predict import load_model
from main import COMMANDS, main
from models import from_config
from models.hybrid_encoder import CrossScaleFusion, IntraScaleLayer
from ops import DeformConv2d, ModulatedDeformConv2d
from tests.processes import Forked
from util.config import Config, LossConfig, ModelConfig

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
SMALL = {
    "model.backbone.name": "test_resnet",
    "model.backbone.weights": "none",
    "model.d_model": 32,
    "model.num_heads": 2,
    "model.norm_groups": 8,
    "model.num_queries": 10,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.ffn_dim": 32,
}
# Of the small backbone; a run writes down what its images were normalised by.
NORMALISED = {"model.backbone.mean": [0.5, 0.5, 0.5], "model.backbone.std": [0.5, 0.5, 0.5]}
SMALL_DATA = {
    "data.train_sizes": [48],
    "data.eval_size": 48,
    "data.max_size": 64,
    "data.crop_sizes": [48],
    "data.crop_range": [32, 48],
    "data.workers": 0,
    "loss.mimic_size": 32,
    "train.batch_size": 2,
    "train.epochs": 1,
    "train.device": "cpu",
}


def sections_of(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def commands_for(file: Path) -> list[str]:
    """Commands that have, or pass over, every section of a file."""

    def known(command) -> set[str]:
        return {f.name for f in fields(command.options)} | set(command.passed_over)

    return [name for name, command in COMMANDS.items() if set(sections_of(file)) <= known(command)]


def name_of(file: Path) -> str:
    return file.relative_to(ROOT / "configs").with_suffix("").as_posix()


SWEEPS = [f for f in FILES if {"grid", "variants"} & set(sections_of(f))]
PRESETS = [f for f in FILES if f not in SWEEPS]
TAKEN = [pytest.param(f, c, id=f"{c}-{name_of(f)}") for f in PRESETS for c in commands_for(f)]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp("data") / "shapes", train=4, val=2, size=48)


@pytest.fixture
def built(monkeypatch) -> list[ModelConfig]:
    """The configuration of every model that a command builds."""
    found, check = [], from_config.check_model

    def noted(config: ModelConfig, loss: LossConfig) -> None:
        found.append(config)
        check(config, loss)

    monkeypatch.setattr(from_config, "check_model", noted)
    return found


def run(*argv: object) -> None:
    assert main([str(a) for a in argv]) == 0


def arguments(values: dict[str, Any]) -> list[str]:
    return [f"--{key}={json.dumps(v) if isinstance(v, list) else v}" for key, v in values.items()]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries by dotted key."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def expected(*files: Path, **more: Any) -> dict[str, Any]:
    """Every option of a run: the defaults, what the files say, what makes it small, and `more`, with `__` for dots."""
    options = flat(asdict(Config()))
    for file in files:
        options |= flat({k: v for k, v in sections_of(file).items() if k in ("model", "loss", "data", "train")})
    return options | SMALL | SMALL_DATA | {key.replace("__", "."): value for key, value in more.items()}


def model_part(options: dict[str, Any]) -> dict[str, Any]:
    return {k.removeprefix("model."): v for k, v in options.items() if k.startswith("model.")}


def check_weights(checkpoint: Path, options: dict[str, Any]) -> None:
    """What tells presets apart is in the model that was trained."""
    model, state = load_model(str(checkpoint))[0], torch.load(checkpoint / "last.pth", weights_only=True)["model"]
    parts = {type(m) for m in model.backbone.modules()}
    kinds = {"none": set(), "v1": {DeformConv2d}, "v2": {ModulatedDeformConv2d}}
    assert parts & {DeformConv2d, ModulatedDeformConv2d} == kinds[options["model.backbone.dcn"]]
    assert any(k.startswith("queries.head.") for k in state) == options["model.two_stage"]
    layers = options["model.decoder_layers"]
    assert len(model.heads) == (layers if options["model.refinement"] or options["model.two_stage"] else 1)
    assert len(model.neck.levels) == options["model.num_levels"] == len(model.position.level_embed)
    assert model.backbone.strides[-1] == (options["model.backbone.output_stride"] or 32)
    trained = [k for k in state if k.startswith("backbone.") and k.endswith("num_batches_tracked")]
    assert bool(trained) == (options["model.backbone.norm"] == "trainable")
    encoder = list(model.transformer.encoder)
    if options["model.encoder"] == "hybrid":  # the fusion comes last
        assert [type(layer) for layer in encoder[:-1]] == [IntraScaleLayer] * options["model.encoder_layers"]
        assert type(encoder[-1]) is CrossScaleFusion
        return
    for layer in encoder:
        assert layer.cross_level == options["model.cross_level"]
        assert layer.self_attn.num_heads == options["model.num_heads"]
        assert set(layer.self_attn.num_points) == {options["model.num_points"]}
    assert len(encoder) == options["model.encoder_layers"]


def train(file: Path, folder: Path, shapes: Path, built: list[ModelConfig]) -> None:
    """Train for two steps; what was trained is evaluated and predicts."""
    picture = shapes / "val2017" / "000000.png"
    paths = {"data.root": str(shapes), "train.output": str(folder / "run")}
    run("train", "--config", file, *arguments(SMALL | SMALL_DATA | paths), "--train.fast_dev_run")
    options = (
        expected(file, train__fast_dev_run=True, **{k.replace(".", "__"): v for k, v in paths.items()}) | NORMALISED
    )
    trained = folder / "run" / "fast_dev_run"
    assert flat(yaml.safe_load((trained / "config.yaml").read_text())) == options
    assert [flat(asdict(config)) for config in built] == [model_part(options)]
    check_weights(trained, options)
    run("eval", "--checkpoint", trained, "--output", folder / "eval", "--device", "cpu")
    run("predict", "--checkpoint", trained, "--input", picture, "--output", folder / "drawn", "--device", "cpu")
    assert "AP" in json.loads((folder / "eval" / "results.json").read_text())["figures"]
    assert len(json.loads((folder / "drawn" / "predictions.json").read_text())) == 1


def profile(file: Path, folder: Path, shapes: Path, built: list[ModelConfig]) -> None:
    run("profile", "--config", file, *arguments(SMALL), "--sizes", '["48x64"]', "--repeats", 1, "--device", "cpu")
    assert [flat(asdict(config)) for config in built] == [model_part(expected(file))]


def visualize(file: Path, folder: Path, shapes: Path, built: list[ModelConfig]) -> None:
    options = ["--input", shapes / "val2017" / "000000.png", "--output", folder, "--size", 48, "--device", "cpu"]
    # Every map of one preset, and one of each other: what they show is in tests/analysis/looks.
    number = PRESETS.index(file)
    maps = [*look.MAPS][number % len(look.MAPS) :][:1] if number else [*look.MAPS]
    options += ["--num_classes", 3, "--top_k", 1, "--layers", "[0]", "--cells", 2, "--maps", json.dumps(maps)]
    run("visualize", "--config", file, *arguments(SMALL), *options)
    assert [flat(asdict(config)) for config in built] == [model_part(expected(file))]
    assert {p.stem for p in folder.glob("*.png")} == set(maps)


def sketch(figure: Figure, path: Path, dpi: float = 20) -> None:
    """Save a figure in few pixels and without a layout, which take the most time."""
    figure.set_layout_engine("none")
    figure.savefig(path, dpi=20)


def plan(file: Path, folder: Path, shapes: Path, built: list[ModelConfig]) -> None:
    """Plan a sweep over a tiny grid."""
    options = arguments(SMALL | SMALL_DATA | {"data.root": str(shapes)})
    run("ablate", "--config", file, *options, "--grid", "model.num_points=1,2", "--output", folder / "x", "--dry_run")
    models = [model_part(expected(file, model__num_points=k)) for k in (1, 2)]
    assert [flat(asdict(config)) for config in built] == models


RUNS: dict[str, Callable] = {"train": train, "profile": profile, "visualize": visualize, "ablate": plan}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_file_is_taken_by_a_command(file):
    assert commands_for(file), f"no command has all sections of {file.name}: {', '.join(sections_of(file))}"
    assert set(commands_for(file)) <= set(RUNS), "write down above how this command is run with a preset"


@pytest.mark.parametrize(("file", "command"), TAKEN)
def test_a_preset_runs(file, command, tmp_path, shapes, built, monkeypatch):
    monkeypatch.setattr(look, "save", sketch)
    RUNS[command](file, tmp_path, shapes, built)


@pytest.mark.parametrize("file", PRESETS, ids=name_of)
def test_a_preset_can_be_built_as_it_is_and_has_the_parameters_that_it_names(file):
    """Nothing made smaller: on torch's meta device a model takes no memory, and no time."""
    text = file.read_text(encoding="utf-8")
    options = COMMANDS["train"].parse("train", ["--config", str(file)])
    with torch.device("meta"):
        model = from_config.build_model(options.model, 91, backbone_weights="none")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    named = re.search(r"^# Costs:.* (\d+) M parameters", text, re.MULTILINE)
    assert named is None or round(millions) == int(named[1])
    assert named is not None or "COCO 2017" not in text


def documented(file: Path) -> list[Path]:
    """The files that the head of a sweep's file says to run it with."""
    head = " ".join(line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    words = shlex.split(head[head.index("python main.py ablate") :].replace("\\", " "))
    return [ROOT / words[i + 1] for i, word in enumerate(words) if word == "--config"]


def changes_of(sections: dict[str, Any]) -> list[dict[str, Any]]:
    """What each variant of a sweep changes, by dotted option."""
    grid = sections.get("grid", {})
    combined = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    return [changes | more for changes in sections.get("variants", {"": {}}).values() for more in combined]


@pytest.mark.parametrize("file", SWEEPS, ids=name_of)
def test_a_sweep_is_planned(file, shapes, built, capsys, tmp_path):
    """Every variant is built, and a step of its training is timed."""
    base, itself = documented(file)
    assert itself == file
    options = arguments(SMALL | SMALL_DATA | {"data.root": str(shapes)})
    run("ablate", "--config", base, "--config", file, *options, "--output", tmp_path / "x", "--dry_run")
    printed, changes = capsys.readouterr().out, changes_of(sections_of(file))
    assert [flat(asdict(config)) for config in built] == [model_part(expected(base) | c) for c in changes]
    assert f"{len(changes)} of {len(changes)} runs to do" in printed and "cannot be built" not in printed


@pytest.mark.parametrize("file", SWEEPS, ids=name_of)
def test_the_first_and_the_last_variant_of_a_sweep_run(file, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(processes.subprocess, "Popen", Forked)  # programs: tests/ablation/test_processes.py
    monkeypatch.setattr(charts, "save_figure", sketch)
    (base, _), sections, output = documented(file), sections_of(file), tmp_path / "sweep"
    grid, variants = sections.get("grid", {}), sections.get("variants", {})
    ends = [*variants][:: max(1, len(variants) - 1)]
    two = {"variants": {name: variants[name] for name in ends}} if variants else {}
    # Of a grid, the first and last value of its first option, with the last of the others.
    few = {key: values[-1:] if i else values[:: len(values) - 1] for i, (key, values) in enumerate(grid.items())}
    options = arguments(SMALL | SMALL_DATA | {"data.root": str(shapes)})
    options += [f"--{key}={json.dumps(value)}" for key, value in two.items()]
    options += [f"--grid={key}={','.join(map(json.dumps, values))}" for key, values in few.items()]
    run("ablate", "--config", base, "--config", file, *options, "--output", output, "--repeats", 1, "--jobs", 2)
    changes = changes_of({"grid": few, "variants": two.get("variants", {"": {}})})
    assert len(changes) == 2
    for variant, values in zip(variants_of(few, two.get("variants", {})), changes):
        folder = output / variant.folder / "seed42"
        wanted = expected(base, data__root=str(shapes), train__output=str(folder)) | NORMALISED | values
        assert flat(yaml.safe_load((folder / "config.yaml").read_text())) == wanted
        check_weights(folder, wanted)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert any("mimic" in key for key in lines[0]) == bool(wanted["loss.mimic_weight"])
        assert "AP" in lines[-1]
    assert "failed" not in (output / "table.md").read_text()


@pytest.mark.parametrize("file", PRESETS, ids=name_of)
def test_presets_with_published_figures_pad_pairs(file):
    """As the original, whose batch is two images on each GPU, whatever the model."""
    text = file.read_text(encoding="utf-8")
    train = sections_of(file)["train"]
    padding = (train.get("padding"), train.get("max_images_per_device"))
    expected = [("micro_batch", 2)] if "not reproduced here" in text else [(None, None), ("micro_batch", 2)]
    assert padding in expected
    if "not reproduced here" in text:  # 50 epochs and batches of 32 are the paper's; later detectors say theirs
        assert ("batch_size" in train) == ("epochs" in train)
