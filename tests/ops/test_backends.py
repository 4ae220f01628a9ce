"""Which backend runs, what is said when one is missing, and libraries that do not fit."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import ops
from ops import backends, functional
from tests.ops.examples import arguments

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch):
    monkeypatch.delenv("MS_DEFORM_ATTN_BACKEND", raising=False)


def run_python(folder, code, **environment):
    """A fresh interpreter on a copy of `ops`."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A copy of the built CPU library and its record, to be spoiled; `load` reads it anew."""
    for suffix in (".so", ".json"):
        shutil.copy(backends.FOLDER / f"cpu{suffix}", tmp_path)
    monkeypatch.setattr(backends, "FOLDER", tmp_path)
    return tmp_path / "cpu.so"


def load():
    return backends.load.__wrapped__("cpu")


def change_record(library, **changes):
    record = json.loads(library.with_suffix(".json").read_text())
    library.with_suffix(".json").write_text(json.dumps({**record, **changes}))


def test_the_built_library_is_chosen_on_a_cpu():
    assert ops.selected_backend("cpu") == "cpu"
    info = ops.backend_info()
    assert set(info) == {"cuda", "cpu", "reference", "selected"}
    assert any(word in info["cpu"] for word in ("avx512", "avx2", "baseline"))


def test_other_devices_take_the_reference_without_a_word(recwarn):
    assert ops.selected_backend("mps") == ops.selected_backend("xpu") == "reference"
    value, shapes, locations, weights, points = arguments()
    on_meta = [t.to("meta") for t in (value, locations, weights)]
    out = ops.ms_deform_attn(on_meta[0], shapes, on_meta[1], on_meta[2], points)
    assert out.shape == (2, 11, 16) and not recwarn.list


def test_backend_by_name(monkeypatch):
    given_arguments = arguments()
    for name in ("abacus", "CPU"):
        with pytest.raises(RuntimeError, match=f"no backend '{name}'; there are: cuda, cpu, reference"):
            ops.ms_deform_attn(*given_arguments, backend=name)
        monkeypatch.setenv("MS_DEFORM_ATTN_BACKEND", name)
        for ask in (lambda: ops.ms_deform_attn(*given_arguments), ops.backend_info):
            with pytest.raises(RuntimeError, match=f"no backend '{name}'"):
                ask()
    monkeypatch.setenv("MS_DEFORM_ATTN_BACKEND", "reference")
    assert ops.selected_backend("cpu") == "reference"
    assert ops.selected_backend("cpu", "cpu") == "cpu"  # the argument comes first


def test_a_backend_of_another_device_is_refused(monkeypatch):
    value, shapes, locations, weights, points = arguments()
    on_meta = [t.to("meta") for t in (value, locations, weights)]
    with pytest.raises(RuntimeError, match="'cpu' is asked for, but the tensors are on meta"):
        ops.ms_deform_attn(on_meta[0], shapes, on_meta[1], on_meta[2], points, backend="cpu")


def test_a_missing_build_warns_once_and_falls_back(monkeypatch):
    missing = backends.Backend("cpu", False, "ops/lib/cpu.so is not built: run `python -m ops.build`")
    monkeypatch.setitem(functional._COMPILED, "cpu", missing)
    monkeypatch.setattr(functional, "_warned", set())
    given_arguments = arguments()
    expected = ops.ms_deform_attn(*given_arguments, backend="reference")
    with pytest.warns(RuntimeWarning, match=r"slow reference on cpu tensors: .* run `python -m ops.build`") as caught:
        torch.testing.assert_close(ops.ms_deform_attn(*given_arguments), expected, atol=0, rtol=0)
    assert caught[0].filename == __file__  # the caller's line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.ms_deform_attn(*given_arguments)
    with pytest.raises(RuntimeError, match=r"'cpu' is not available: .* not built"):
        ops.ms_deform_attn(*given_arguments, backend="cpu")


def test_fitting_library_loads(library):
    assert load().loaded


def test_library_without_a_record(library):
    library.with_suffix(".json").unlink()
    assert "no record of what it was built from: run `python -m ops.build`" in load().detail
    library.with_suffix(".json").write_text("[")
    assert not load().loaded


def test_library_of_another_machine(library):
    change_record(library, machine="linux-aarch64")
    assert load().detail.endswith(f"is built for linux-aarch64, this is {backends.this_machine()}: {backends.REBUILD}")


def test_library_of_other_sources(library):
    change_record(library, sources="0123456789abcdef")
    assert "built from other sources" in load().detail


def test_no_library(library):
    library.unlink()
    assert load().detail == f"{library} is not built: run `python -m ops.build`"


def test_torch_too_old(library, monkeypatch):
    monkeypatch.setattr(backends, "torch_version", lambda: (2, 9))
    assert "older than 2.10" in load().detail


def test_torch_without_cuda_never_opens_the_cuda_library(library, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    shutil.copy(library, library.with_name("cuda.so"))
    assert "built without CUDA" in backends.load.__wrapped__("cuda").detail


def test_truncated_library_is_not_opened(library):
    library.write_bytes(library.read_bytes()[:200_000])
    assert "is damaged, it has 200000 bytes" in load().detail


def test_what_is_no_library(library):
    library.write_bytes(b"not a library")
    change_record(library, bytes=13)
    backend = load()
    assert not backend.loaded and "cannot be loaded" in backend.detail and backends.REBUILD in backend.detail


def test_record_that_lacks_something(library):
    record = json.loads(library.with_suffix(".json").read_text())
    for key in ("compiler", "torch", "machine", "sources", "bytes", "targets"):
        library.with_suffix(".json").write_text(json.dumps({k: v for k, v in record.items() if k != key}))
        assert "no record" in load().detail


def test_other_files_among_the_sources_do_not_matter(tmp_path, monkeypatch):
    shutil.copytree(backends.SOURCES, tmp_path / "csrc")
    before = backends.sources_hash("cpu")
    monkeypatch.setattr(backends, "SOURCES", tmp_path / "csrc")
    (tmp_path / "csrc" / "cpu" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "csrc" / "cpu" / ".DS_Store").write_text("x")
    assert backends.sources_hash("cpu") == before


def test_cuda_library_for_other_cards_is_named(monkeypatch):
    built = backends.Backend("cuda", True, "", ["sm_90", "PTX 90"])
    monkeypatch.setitem(functional._COMPILED, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A100")
    for capability, expected in (((8, 0), "reference"), ((9, 0), "cuda")):
        functional._unfit_card.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, c=capability: c)
        assert ops.selected_backend("cuda") == expected
        if expected == "reference":
            with pytest.raises(RuntimeError, match="built for sm_90, PTX 90, and A100 is sm_80: run"):
                ops.selected_backend("cuda", "cuda")
    functional._unfit_card.cache_clear()


def test_compiling_without_a_build_does_not_break_the_graph(monkeypatch):
    monkeypatch.setitem(functional._COMPILED, "cpu", backends.Backend("cpu", False, "not built"))
    monkeypatch.setattr(functional, "_warned", set())
    given_arguments = arguments()
    compiled = torch.compile(ops.ms_deform_attn, fullgraph=True, backend="eager")
    expected = ops.ms_deform_attn(*given_arguments, backend="reference")
    torch.testing.assert_close(compiled(*given_arguments), expected)


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_library_that_needs_a_symbol_this_torch_does_not_have(library):
    """What an extension of another torch looks like to the linker."""
    source = library.with_name("other.c")
    source.write_text("extern int symbol_of_another_torch(void); int use(void) { return symbol_of_another_torch(); }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    change_record(library, bytes=library.stat().st_size)
    assert "symbol_of_another_torch" in load().detail


def test_fresh_checkout_runs_on_the_reference_and_says_so(tmp_path):
    shutil.copytree(ROOT / "ops", tmp_path / "ops", ignore=shutil.ignore_patterns("lib", "__pycache__"))
    code = (
        "import torch, ops; torch.manual_seed(0)\n"
        "for _ in range(2): out = ops.ms_deform_attn(torch.ones(1, 4, 1, 2), [(2, 2)], torch.full((1, 1, 1, 1, 2), .5),"
        " torch.ones(1, 1, 1, 1), [1])\n"
        "print(out.tolist(), ops.backend_info()['selected'])"
    )
    code_of, output = run_python(tmp_path, code)
    assert code_of == 0 and "[[[1.0, 1.0]]] reference" in output
    assert output.count("RuntimeWarning") == 1 and "run `python -m ops.build`" in output
    assert not (tmp_path / "ops" / "lib").exists()  # importing builds nothing


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_gives_the_same(capability):
    """torch's own variable lowers the choice; `ops.check` compares with the reference."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.check"],
        cwd=ROOT,
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "the operator is in order" in done.stdout
    words = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    expected = "avx2" if capability == "avx2" and {"avx2", "fma"} <= words else "baseline"
    assert f"running {expected}" in done.stdout and "WRONG" not in done.stdout
