"""The training step's benchmark runs, and it refuses wrong losses and bad options."""

import json
import re

import pytest
import torch

from scripts.bench import naive_step, train
from scripts.bench.train_clock import PARTS

SMALL = ["--size", "64", "96", "--batch", "1", "--repeats", "1"]
TINY = ["--model.backbone.name", "resnet10t", "--model.d_model", "32", "--model.encoder_layers", "1"]
TINY += ["--model.decoder_layers", "2", "--model.num_queries", "12", "--model.dropout", "0"]


def test_quick_run_writes_tables_and_numbers(tmp_path, capsys):
    file = tmp_path / "train.json"
    options = ["--naive", "--ema", "--checkpoint-activations", "--backend", "reference", "--precision", "fp32", "bf16"]
    assert train.main([*SMALL, *options, "--json", str(file), "--", *TINY]) == 0
    out = capsys.readouterr().out
    tables = re.findall(r"(?:^\|.*\n)+", out, re.MULTILINE)
    assert len(tables) == 2 and all(len({row.count("|") for row in t.splitlines()}) == 1 for t in tables)
    assert re.search(r"naive losses of the same predictions: \S+e[+-]\d\d of ours", out)
    assert "models/matcher.py" in out and "engine/step.py" in out

    report = json.loads(file.read_text())
    ours, half, naive = report["contenders"]
    assert [c["name"] for c in (ours, half, naive)] == [
        "ours, fp32, reference",
        "ours, bf16, reference",
        "naive, fp32, reference",
    ]
    assert naive["loss"] == pytest.approx(ours["loss"], rel=1e-4)
    assert sum(ours["syncs"].values()) == 2
    assert sum(naive["syncs"].values()) == 2 + 6 + 1  # two layers' costs, six losses, and whether they are finite
    for c in (ours, half, naive):
        parts = sum(ms for (ms,) in c["parts"].values())
        assert set(c["parts"]) == set(PARTS) - {"mimicking"} and all(ms >= 0 for (ms,) in c["parts"].values())
        assert 0.5 * 1e3 * c["step_s"][0] < parts <= 1e3 * c["step_s"][0]
        assert c["peak_bytes"] > 10 * 2**20 and not c["failure"]  # weights, gradients and moments of 5 million numbers


@pytest.mark.slow
def test_mimicking_is_a_part_and_costs_no_sync(tmp_path):
    file = tmp_path / "train.json"
    mimic = [
        "--model.backbone.dcn=v2",
        "--model.backbone.dcn_stages=[5]",
        "--loss.mimic_weight=0.1",
        "--loss.mimic_size=64",
    ]
    assert train.main([*SMALL, "--backend", "reference", "--json", str(file), "--", *TINY, *mimic]) == 0
    (ours,) = json.loads(file.read_text())["contenders"]
    parts = {name: ms for name, (ms,) in ours["parts"].items()}
    assert set(parts) == set(PARTS) - {"EMA"} and all(ms >= 0 for ms in parts.values())
    assert 0.5 * 1e3 * ours["step_s"][0] < sum(parts.values()) <= 1e3 * ours["step_s"][0]
    # The operator asks for the RoIs of its arguments on CPUs alone, where nothing waits.
    waits = {place: n for place, n in ours["syncs"].items() if not place.startswith("ops/roi_pool.py")}
    assert parts["mimicking"] > 0 and sum(waits.values()) == 2


def test_wrong_losses_end_the_run(monkeypatch, capsys):
    right = naive_step.losses_of
    monkeypatch.setattr(naive_step, "losses_of", lambda *a: {k: v * 1.001 for k, v in right(*a).items()})
    assert train.main([*SMALL, "--naive", "--", *TINY]) == 1
    captured = capsys.readouterr()
    assert "|" not in captured.out and "the naive losses are not ours" in captured.err


def test_who_runs_out_of_memory_leaves(monkeypatch, capsys):
    make = train.make_contender

    def starved(kind, precision, backend, *rest):
        made = make(kind, precision, backend, *rest)
        if precision == "bf16":
            made.run = lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
        return made

    monkeypatch.setattr(train, "make_contender", starved)
    options = ["--backend", "reference", "--precision", "fp32", "bf16"]
    assert train.main([*SMALL, *options, "--", *TINY]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ours, ")]
    assert float(rows[0].split("|")[2]) > 0 and "out of memory" in rows[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cuda:99"], "cuda:99"),
        (["--backend", "cuda"], "cuda"),
        (["--precision", "fp16"], "fp16"),
        (["--config", "no.yaml"], "no.yaml"),
        (["--batch", "0"], "--batch"),
        (["--", "--model.d_modle", "3"], "d_model"),
        (["--naive", "--", "--loss.mimic_weight", "0.1"], "--naive has no feature mimicking"),
        (["--naive", "--", "--loss.classification", "mal"], "--naive has the focal loss alone"),
        (["--", "--loss.federated", "true"], "nobody looked for classes in made-up images"),
    ],
)
def test_bad_options_are_one_sentence(capsys, options, said):
    with pytest.raises(SystemExit) as stop:
        train.main(options)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert said in captured.err.splitlines()[-1]
