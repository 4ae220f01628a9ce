"""The benchmark of a sweep's variants: ratios to the first one, and which variants have a step of their own."""

import json

import pytest

from scripts.bench import variants

SMALL = ["--size", "64", "96", "--repeats", "1"]
TINY = ["--model.backbone.name", "test_resnet", "--model.d_model", "32", "--model.encoder_layers", "1"]
TINY += ["--model.decoder_layers", "2", "--model.num_queries", "12", "--model.norm_groups", "8"]


def test_each_variant_is_measured_beside_the_first(tmp_path, capsys):
    file = tmp_path / "variants.json"
    only = ["--only", "baseline", "hybrid", "mosaic", "mal"]
    assert variants.main([*SMALL, *only, "--json", str(file), "--", *TINY]) == 0
    found = json.loads(file.read_text())
    assert list(found["ratios"]) == ["hybrid", "mal"]  # mosaic changes the data alone
    assert all(ratio > 0 for pair in found["ratios"].values() for ratio in pair)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["baseline", "hybrid", "mal"]
    assert all(row[4] == "2" for row in found["rows"])  # host syncs
    memory = {row[0]: float(row[3]) for row in found["rows"]}
    assert memory["hybrid"] > memory["baseline"] > 10
    weights = {row[0]: row[1] for row in found["rows"]}
    assert weights["baseline"] == weights["mal"]


def test_presets_are_measured_in_the_place_of_a_sweep(capsys):
    presets = [str(variants.PRESETS / name) for name in ("two_stage.yaml", "denoising.yaml")]
    small = [*TINY, "--model.ffn_dim", "32"]
    assert variants.main([*SMALL, "--presets", *presets, "--", *small]) == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["two_stage", "denoising"]


def test_unknown_variants_and_sweeps_are_refused(tmp_path, capsys):
    for argv, message in (
        (["--only", "nothing"], "the sweep has no variant 'nothing'; there are baseline, mixed"),
        (["--sweep", str(tmp_path / "none.yaml")], "none.yaml"),
        (["--repeats", "0"], "must be at least 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            variants.main(argv)
        assert stopped.value.code == 2 and message in capsys.readouterr().err
