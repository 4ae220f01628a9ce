"""The benchmark of exported files runs as a script, with every contender in its table."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.export.source import Source
from scripts.bench import export
from util.command_config import ExportConfig

ROOT = Path(__file__).parents[3]
PRESET = """
model:
  backbone: {name: test_resnet, weights: none, norm: trainable, frozen_stages: 0}
  d_model: 32
  num_levels: 2
  num_queries: 12
  num_heads: 4
  encoder_layers: 1
  decoder_layers: 1
  ffn_dim: 32
  norm_groups: 8
  refinement: true
"""


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    (tmp_path / "tiny.yaml").write_text(PRESET)
    return ["--config", str(tmp_path / "tiny.yaml"), "--size", "64", "80", "--repeats", "2"]


def rows_of(table: str) -> dict[str, list[float]]:
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    return {name.strip(): [float(cell.strip().removesuffix("x")) for cell in cells] for name, *cells in rows}


def test_files_take_turns_with_the_detector(arguments, monkeypatch, capsys):
    """With stand-ins for the files, which take minutes to write."""
    asked, ran = [], []

    def write(source: Source, options: ExportConfig, folder: Path, suffix: str) -> str:
        detections = export.ImagesToDetections(source.model, options.top_k)
        asked.append((suffix, options.fixed, source.config.d_model, detections))
        (folder / f"model{suffix}").touch()
        return f"model{suffix} is written"

    def opened(path: Path):
        (detections,) = (d for suffix, _, _, d in asked if suffix == path.suffix)
        return lambda images: ran.append((path.suffix, tuple(images.shape))) or detections(images)

    for form, suffix in (("onnx", ".onnx"), ("torch", ".pt2")):
        monkeypatch.setitem(export.FORMATS, form, lambda *given, suffix=suffix: write(*given, suffix))
    monkeypatch.setattr(export, "onnx_runner", opened)
    monkeypatch.setattr(export, "torch_runner", opened)
    assert export.main([*arguments, "--without-compile"]) == 0
    told = capsys.readouterr()
    assert [(suffix, fixed, width) for suffix, fixed, width, _ in asked] == [
        (".onnx", ["64x80"], 32),
        (".pt2", ["64x80"], 32),
    ]
    assert sorted(ran) == [(suffix, (1, 3, 64, 80)) for suffix in (".onnx", ".pt2") for _ in range(3)]  # one to warm up
    rows = rows_of(told.out)
    assert list(rows) == ["eager", "torch.export", "ONNX Runtime"] and "model.pt2 is written" in told.err
    assert rows["eager"][1] == rows["eager"][3] == 1 and all(ms > 0 for row in rows.values() for ms in row)


@pytest.mark.slow
def test_it_runs_by_its_path(arguments):
    pytest.importorskip("onnxruntime")
    command = [sys.executable, ROOT / "scripts" / "bench" / "export.py", *arguments, "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("largest difference") == 2
    assert list(rows_of(done.stdout)) == ["eager", "torch.compile", "torch.export", "ONNX Runtime"]
