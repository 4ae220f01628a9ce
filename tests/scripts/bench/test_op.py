"""The operator's benchmark runs, writes what it says, and refuses wrong results and options."""

import json
import re

import pytest
import torch
from PIL import Image

import ops
from scripts.bench import op, op_contenders, op_measure

QUICK = ["--quick", "--repeats", "2", "--seconds", "0.05"]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield before
    assert torch.get_num_threads() == before


def test_quick_run_writes_table_numbers_and_picture(tmp_path, capsys, threads):
    files = ["--json", str(tmp_path / "op.json"), "--plot", str(tmp_path / "op.png")]
    assert op.main([*QUICK, "--threads", "1", "--dtype", "float32", "bfloat16", *files]) == 0
    out = capsys.readouterr().out
    names, _ = op.available(torch.device("cpu"))
    assert "reference" in names
    rows = [line for line in out.splitlines() if line.startswith(("| encoder", "| decoder", "| overhead"))]
    assert len(rows) == len(names) * 2 * (3 + 3 + 1)  # dtypes; times, traffic and overhead
    for table in re.findall(r"(?:^\|.*\n)+", out, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "1 CPU threads" in out and f"torch {torch.__version__}" in out

    report = json.loads((tmp_path / "op.json").read_text())
    assert report["settings"]["repeats"] == 2
    assert len(report["cases"]) == 8
    for case in report["cases"]:
        by_name = {row["contender"]: row for row in case["contenders"]}
        assert set(by_name) == set(names)
        exact = by_name["reference"]["forward"]["seconds"]
        for row in by_name.values():
            assert row["failure"] == "" and row["turns"] == 2
            assert row["largest_error"] < (1e-2 if case["dtype"] == "bfloat16" else 1e-4)
            assert row["forward"]["seconds"] > 0
            assert row["forward"]["reference_ratio"] == pytest.approx(exact / row["forward"]["seconds"])
            if case["case"] != "overhead":
                forward = row["forward"]
                assert forward["bytes_per_second"] == pytest.approx(forward["bytes"] / forward["seconds"])
                assert forward["of_floor"] == pytest.approx(forward["bytes_per_second"] / case["copy_bytes_per_second"])
    with Image.open(tmp_path / "op.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(2**24)) > 50


@pytest.mark.parametrize("wrong", ["output", "gradient"])
def test_wrong_results_end_the_run(monkeypatch, capsys, wrong):
    right = ops.ms_deform_attn

    def call(value, shapes, locations, weights, points, backend):
        if value.dtype is torch.float32:  # the yardstick is fp64
            changed = weights * 1.01
            weights = changed if wrong == "output" else weights + (changed - changed.detach())
        return right(value, shapes, locations, weights, points, backend=backend)

    monkeypatch.setattr(ops, "ms_deform_attn", call)
    assert op.main([*QUICK, "--cases", "decoder", "--backends", "reference"]) == 1
    captured = capsys.readouterr()
    assert "|" not in captured.out
    place = "output" if wrong == "output" else "gradient of the weights"
    assert f"reference disagrees with the reference: its {place} is off" in captured.err


def test_running_out_of_memory_is_reported_and_others_go_on(monkeypatch, capsys, tmp_path):
    make = op_measure.make_contender

    def starved(name, inputs):
        made = make("reference", inputs)
        made.name = name
        if name == "cpu":
            made.call = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
        if name == "package":
            made.both = lambda: (_ for _ in ()).throw(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        return made

    monkeypatch.setattr(op_measure, "make_contender", starved)
    monkeypatch.setattr(op, "available", lambda *_: (["cpu", "reference", "package"], {}))
    monkeypatch.setattr(op_contenders.importlib.metadata, "version", lambda _: "0")
    plot = tmp_path / "op.png"
    assert op.main([*QUICK, "--cases", "decoder", "--plot", str(plot)]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[c.strip() for c in line.split("|")[3:]] for line in lines if line.startswith("| decoder")]
    cpu, reference, package = cells[:3]
    assert cpu[0] == "ours, cpu (out of memory)" and cpu[1:3] == ["-", "-"]
    assert reference[0] == "reference" and float(reference[1]) > 0
    assert package[0].endswith("(backward out of memory)") and float(package[1]) > 0 and package[2] == "-"
    assert plot.exists()


def test_a_batch_larger_than_memory_is_not_tried(capsys):
    assert op.main([*QUICK, "--cases", "decoder", "--batch", "1000000000"]) == 0
    assert "out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "tpu9"], "cuda:N"),
        (["--device", "cuda:99"], "CUDA devices"),
        (["--backends", "cuda"], "--backends cuda"),
        (["--plot", "op.pdf"], ".png"),
        (["--json", "/no/such/folder/op.json"], "no folder"),
        (["--json", "."], "is a folder"),
        (["--dtype", "int8"], "int8"),
        (["--cases", "middle"], "middle"),
        (["--repeats", "0"], "--repeats"),
        (["--batch", "-1"], "--batch"),
        (["--seconds", "nan"], "--seconds"),
        (["--threads", "two"], "--threads"),
    ],
)
def test_bad_options_are_one_sentence(capsys, options, said):
    try:
        code = op.main(["--quick", *options])
    except SystemExit as stop:  # argparse's way
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert said in captured.err and captured.err.count("\n") == 1 and captured.err.startswith("bench/op.py: ")
