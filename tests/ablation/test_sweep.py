"""`main.py ablate` from beginning to end, on a handful of generated shapes."""

import csv
import json
import re
from dataclasses import asdict

import pytest

from ablation import processes
from ablation.grid import cells_of, variants_of
from datasets.shapes import generate
from main import main
from models.limits import check_model
from tests.processes import Forked
from tests.test_main import ROOT, SMALL
from util import cli
from util.command_config import AblateConfig
from util.config import Config
from util.options import from_dict


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    generate(folder / "shapes", train=8, val=4, size=64)
    (folder / "base.yaml").write_text(SMALL)
    options = ["--config", folder / "base.yaml", "--data.root", folder / "shapes", "--train.epochs", 1, "--repeats", 2]
    return folder, [str(o) for o in options]


def run(*argv) -> int:
    return main([str(a) for a in argv])


@pytest.fixture(scope="module")
def swept(base):
    """K of 1 and 2; three heads do not divide the width."""
    folder, options = base
    grid = ("--grid", "model.num_points=1,2", "--grid=model.num_heads=4,3")
    argv = ("ablate", *options, *grid, "--output", folder / "out", "--jobs", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes.subprocess, "Popen", Forked)
        return argv, run(*argv), folder / "out"


def test_a_sweep_leaves_table_csv_and_plots_and_names_what_failed(swept):
    _, code, output = swept
    assert code == 1
    lines = list(csv.DictReader((output / "results.csv").read_text().splitlines()))
    assert [(x["model.num_points"], x["model.num_heads"], x["status"]) for x in lines] == [
        ("1", "4", "done"), ("1", "3", "failed"), ("2", "4", "done"), ("2", "3", "failed"),
    ]  # fmt: skip
    assert "does not divide model.d_model 32" in lines[1]["error"]
    table = (output / "table.md").read_text()
    assert "num_points" in table and "does not divide" in table
    for name in ("scores.png", "curves.png", "sweep.yaml"):
        assert (output / name).stat().st_size > 100
    for x in (lines[0], lines[2]):  # an ordinary run, whose last evaluation is what stands in the table
        logged = [json.loads(t) for t in (output / x["folder"] / "metrics.jsonl").read_text().splitlines()]
        assert float(x["AP"]) == logged[-1]["AP"] and (output / x["folder"] / "best.pth").is_file()
        assert float(x["latency_s"]) > 0 and int(x["peak_bytes"]) > 0
    assert int(lines[0]["parameters"]) < int(lines[2]["parameters"])
    assert float(lines[0]["flops"]) < float(lines[2]["flops"])


def test_called_again_it_trains_nothing(swept, capsys):
    argv, _, output = swept
    before = {p: p.stat().st_mtime_ns for p in output.glob("*/*/*")}
    assert run(*argv) == 1
    assert {p: p.stat().st_mtime_ns for p in output.glob("*/*/*")} == before
    printed = capsys.readouterr().out
    assert "0 of 4 runs to do" in printed and "2 of 4 runs failed" in printed


def test_the_plan_alone_writes_nothing(base, capsys):
    folder, options = base
    argv = (
        "ablate",
        *options,
        "--grid",
        "model.num_points=1,2",
        "--seeds",
        3,
        "--output",
        folder / "none",
        "--dry-run",
    )
    assert run(*argv) == 0 and not (folder / "none").exists()
    assert re.search(r"6 of 6 runs to do, on cpu, operator \w+: about .* by a few timed steps", capsys.readouterr().out)


def test_a_file_brings_variants_and_the_line_adds_a_grid(base, capsys):
    folder, options = base
    (folder / "ablation.yaml").write_text(
        "variants:\n  plain: {}\n  own: {model.cross_level: false}\ngrid:\n  loss.auxiliary: [true]\n"
    )
    more = ("--config", folder / "ablation.yaml", "--grid", "model.num_points=1,2", "--output", folder / "none")
    assert run("ablate", *options, *more, "--dry-run") == 0
    printed = capsys.readouterr().out
    for name in ("plain,auxiliary=true,num_points=1", "own,auxiliary=true,num_points=2"):
        assert name in printed


def test_a_checkpoint_with_less_at_inference(swept, base, tmp_path, capsys):
    _, _, output = swept
    checkpoint = output / "num_points=2,num_heads=4" / "seed42" / "best.pth"
    common = ("--checkpoint", checkpoint, "--data.workers", 0)
    grid = ("--grid", "model.num_points=2,1", "--grid", "model.decoder_layers=2,1")
    argv = ("ablate", "--eval-only", *common, *grid, "--output", tmp_path / "less", "--repeats", 2)
    assert run(*argv, "--train.device", "cpu") == 0
    assert run("eval", *common, "--output", tmp_path / "whole") == 0
    whole = json.loads((tmp_path / "whole" / "results.json").read_text())["figures"]
    lines = list(csv.DictReader((tmp_path / "less" / "results.csv").read_text().splitlines()))
    assert len(lines) == 4 and all(x["status"] == "done" for x in lines)
    assert float(lines[0]["AP"]) == whole["AP"] and float(lines[0]["AR_100"]) == whole["AR_100"]
    flops = [float(x["flops"]) for x in lines]
    assert flops[0] > flops[1] > flops[3] and flops[0] > flops[2] > flops[3]
    assert run("ablate", *base[1], "--grid", "model.num_points=2,1", "--output", tmp_path / "less") == 2
    assert "another --output" in capsys.readouterr().err
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "less").glob("*/*/cell.json")}
    assert run(*argv, "--train.device", "cpu") == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "less").glob("*/*/cell.json")} == before


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--grid", "model.num_pionts=1,2"], "did you mean 'model.num_points'"),
        (["--grid", "model.num_points"], "write an option and its values"),
        (["--checkpoint", "x.pth"], "no checkpoint, folder or pattern 'x.pth'"),
        (["--eval-only"], "--checkpoint is missing"),
        (["--train.fast_dev_run"], "train.fast_dev_run cannot be used in a sweep"),
        (["--grid", "model.num_points=2024-01-01"], "model.num_points is '2024-01-01', but must be"),
        (["--jobs", "0"], "jobs is 0; it must be at least 1"),
        (["--variants", "3"], "variants is '3', but must be a mapping"),
    ],
)
def test_bad_sweeps_are_one_sentence(base, argv, said, capsys):
    folder, options = base
    assert run("ablate", *options, *argv, "--output", folder / "none") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (folder / "none").exists()


@pytest.mark.parametrize(
    "grid, said",
    [
        ("model.d_model=16", "model.d_model cannot change without training"),
        ("model.encoder_points=0", "model.encoder_points is 0"),
        ("model.decoder_points=0", "model.decoder_points is 0"),
        ("model.num_points=3", "model.num_points is 3; the checkpoint was trained with 2"),
        ("model.decoder_layers=0", "model.decoder_layers is 0; the checkpoint has 2"),
        ("model.num_queries=5", "learned queries have no order"),
        ("model.encoder_points=[1,1,1]", "the checkpoint was trained with [2, 2]"),
    ],
)
def test_less_than_a_checkpoint_can_do(swept, tmp_path, grid, said, capsys):
    _, _, output = swept
    checkpoint = output / "num_points=2,num_heads=4" / "seed42" / "best.pth"
    argv = ("--eval-only", "--checkpoint", checkpoint, "--grid", grid, "--output", tmp_path / "x")
    assert run("ablate", *argv) == 2 and said in capsys.readouterr().err


def test_eval_only_takes_no_other_options_of_the_model_and_no_folder_of_trained_runs(swept, tmp_path, capsys):
    _, _, output = swept
    argv = ("ablate", "--eval-only", "--checkpoint", output / "num_points=2,num_heads=4" / "seed42")
    assert run(*argv, "--model.num_points", 1, "--output", tmp_path / "x") == 2
    assert "no other options of model or loss" in capsys.readouterr().err
    before = (output / "table.md").read_bytes()
    assert run(*argv, "--grid", "model.num_points=1", "--output", output) == 2
    assert "holds a sweep of trained runs; choose another --output" in capsys.readouterr().err
    assert (output / "table.md").read_bytes() == before


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "ablations").glob("*.yaml")), ids=lambda f: f.stem)
def test_presets_of_ablations_are_possible_and_say_what_they_do(file):
    lines = file.read_text().splitlines()
    assert [line.split()[1] for line in lines[:4]] == ["Trains:", "Costs:", "Reaches:", "Run:"]
    for base in ("finetune_small",) if file.stem == "architecture" else ("base", "quickstart"):
        argv = ["--config", str(ROOT / "configs" / f"{base}.yaml"), "--config", str(file)]
        config = cli.parse(AblateConfig, argv, "main.py ablate")
        assert config.grid or config.variants
        for cell in cells_of(from_dict(Config, asdict(config)), variants_of(config.grid, config.variants), 1):
            check_model(cell.config.model, cell.config.loss)
