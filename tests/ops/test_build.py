"""`python -m ops.build`: what it finds, what it refuses, and how it fails."""

import json
import multiprocessing
import os
import shutil
import stat
import time
import traceback
from functools import partial

import pytest
import torch

from ops import backends, build, compile_commands, compilers
from tests.ops.examples import arguments, results


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Libraries go elsewhere, and no toolkit of this machine is known."""
    monkeypatch.setattr(backends, "FOLDER", tmp_path / "lib")
    for name in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compilers, "package_folders", lambda kind: [])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return tmp_path


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def fake_nvcc(folder):
    return program(
        folder / "bin" / "nvcc",
        'case "$1" in --version) echo "Cuda compilation tools, release 13.0, V13.0.88";; '
        "--list-gpu-code) printf 'sm_75\\nsm_80\\nsm_90\\nsm_120\\n';; *) exit 1;; esac",
    )


def no_programs(monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def in_a_process_of_its_own(check):
    """Kernels of a library that is opened stay, and all later tests of this process would run them."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=tell, args=(check, sender))
    process.start()
    sender.close()
    try:
        said = receiver.recv()
    except EOFError:
        said = "it has crashed"
    process.join()
    assert not said and process.exitcode == 0, said


def tell(check, sender):
    torch.set_num_threads(1)
    try:
        check()
        sender.send("")
    except BaseException:
        sender.send(traceback.format_exc())


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_builds_loads_and_is_then_up_to_date(own_folder, monkeypatch, capsys):
    in_a_process_of_its_own(partial(builds_and_loads, own_folder, monkeypatch, capsys))


def builds_and_loads(own_folder, monkeypatch, capsys):
    # Without optimisation and vector instructions, which take most of the time: scripts/setup.sh has built all of it.
    monkeypatch.setattr(compile_commands, "X86_VARIANTS", {})
    monkeypatch.setattr(
        compile_commands, "FLAGS", ["-O0" if flag == "-O3" else flag for flag in compile_commands.FLAGS]
    )
    assert build.main(["--backend", "cpu"]) == 0
    assert "compiling with" in capsys.readouterr().out
    library = backends.FOLDER / "cpu.so"
    record = json.loads(library.with_suffix(".json").read_text())
    assert record["sources"] == backends.sources_hash("cpu") and record["machine"] == backends.this_machine()
    assert backends.load.__wrapped__("cpu").loaded
    # An optimiser moves divisions behind the branches that need them; here they are made where they stand.
    for nothing in ({"channels": 0}, {"queries": 0}, {"batch": 0}):
        assert all(not tensor.any() for tensor in results(arguments(**nothing), "cpu"))
    assert sorted(path.name for path in backends.FOLDER.iterdir()) == ["cpu.json", "cpu.so"]

    before = library.stat().st_mtime_ns
    backends.load.cache_clear()
    assert build.main(["--backend", "cpu"]) == 0
    assert capsys.readouterr().out == "cpu: up to date\n" and library.stat().st_mtime_ns == before

    # A damaged library beside a record that fits. Elsewhere, for the linker knows what it has opened by name.
    other = own_folder / "other"
    other.mkdir()
    shutil.copy(library.with_suffix(".json"), other)
    (other / "cpu.so").write_bytes(library.read_bytes()[:200_000])  # to open it would end the process
    monkeypatch.setattr(backends, "FOLDER", other)
    backends.load.cache_clear()
    assert not backends.load("cpu").loaded
    monkeypatch.setattr(build, "run_all", lambda commands, *_: shutil.copy(library, commands[-1][-1]))
    assert build.main(["--backend", "cpu"]) == 0
    assert "compiling with" in capsys.readouterr().out
    backends.load.cache_clear()
    assert backends.load("cpu").loaded


def test_no_compiler_is_one_sentence(monkeypatch, own_folder, capsys):
    no_programs(monkeypatch, own_folder)
    assert build.main([]) == 1
    error = capsys.readouterr().err
    assert "no C++ compiler" in error and "apt-get install g++" in error and "Traceback" not in error


def test_cxx_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.main(["--backend", "cpu"]) == 1
    assert "CXX names no-such-compiler, which is not on PATH" in capsys.readouterr().err


def test_a_failing_compiler_shows_command_and_output_and_keeps_what_was_there(monkeypatch, own_folder, capsys):
    backends.FOLDER.mkdir()
    (backends.FOLDER / "cpu.so").write_text("earlier")
    program(
        own_folder / "bin" / "c++", 'test "$1" = --version && echo fake 1.0 && exit 0; echo "line of output"; exit 1'
    )
    monkeypatch.setenv("PATH", str(own_folder / "bin"))
    assert build.main(["--backend", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "this command failed" in error and "kernels.cpp" in error and "line of output" in error
    assert (backends.FOLDER / "cpu.so").read_text() == "earlier"
    assert [path.name for path in backends.FOLDER.iterdir()] == ["cpu.so"]


def test_no_nvcc_is_said_and_no_failure(monkeypatch, own_folder, capsys):
    no_programs(monkeypatch, own_folder)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert build.main(["--backend", "cuda"]) == 0
    assert "cuda: skipped, no nvcc" in capsys.readouterr().out
    assert build.main(["--backend", "cuda", "--arch", "90"]) == 1  # asked for by name
    assert "nvidia-cuda-nvcc==13.0" in capsys.readouterr().err


def test_the_packages_that_setup_installs(monkeypatch, own_folder):
    no_programs(monkeypatch, own_folder)
    whole = ["nvidia-cuda-nvcc==13.2.*", "nvidia-nvvm==13.2.*", "nvidia-cuda-crt==13.2.*"]
    for cards, cuda, expected in ((1, "13.2", whole), (0, "13.2", []), (1, "12.8", [])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda cards=cards: cards)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert compilers.missing_packages() == expected
    assert build.main(["--backend", "cuda"]) == 1  # a card, and nothing to compile with
    monkeypatch.setattr(torch.version, "cuda", None)
    assert compilers.missing_packages() == []


def test_torch_without_cuda_skips_cuda(monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert build.main(["--backend", "cuda"]) == 0
    assert "is built without CUDA" in capsys.readouterr().out


def test_no_card_and_no_list_is_said(monkeypatch, own_folder, capsys):
    monkeypatch.setenv("PATH", str(fake_nvcc(own_folder).parent), prepend=os.pathsep)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert build.main(["--backend", "cuda"]) == 0
    assert "there is no GPU here" in capsys.readouterr().out


def test_nvcc_is_looked_for_in_cuda_home_then_path_then_packages(monkeypatch, own_folder):
    no_programs(monkeypatch, own_folder)
    assert compilers.find_nvcc() is None
    package = fake_nvcc(own_folder / "package")
    monkeypatch.setattr(compilers, "package_folders", lambda kind: [package.parent] if kind == "bin" else [])
    assert compilers.find_nvcc().path == package
    on_path = fake_nvcc(own_folder / "toolkit")
    monkeypatch.setenv("PATH", f"{on_path.parent}")
    assert compilers.find_nvcc().path == on_path
    home = fake_nvcc(own_folder / "home")
    monkeypatch.setenv("CUDA_HOME", str(own_folder / "home"))
    found = compilers.find_nvcc()
    assert found.path == home and found.version == "13.0" and found.supported == ["75", "80", "90", "120"]
    monkeypatch.setenv("CUDA_HOME", str(own_folder / "nowhere"))
    with pytest.raises(compilers.BuildError, match="has no bin/nvcc"):
        compilers.find_nvcc()


def test_what_a_library_serves():
    assert backends.serves(["sm_80", "sm_90", "PTX 90"], (9, 0))
    assert backends.serves(["sm_80", "PTX 80"], (8, 9)) and backends.serves(["sm_80", "PTX 80"], (12, 0))
    assert not backends.serves(["sm_90", "PTX 90"], (8, 0)) and not backends.serves(["sm_90"], (10, 0))


def test_a_folder_that_cannot_be_written(own_folder, capsys):
    backends.FOLDER.write_text("a file where the folder should be")
    assert build.main(["--backend", "cpu"]) == 1
    assert f"cannot write {backends.FOLDER}" in capsys.readouterr().err


def test_no_jobs(capsys):
    with pytest.raises(SystemExit) as stop:
        build.main(["--jobs", "0"])
    assert stop.value.code == 2 and "--jobs: must be 1 or more" in capsys.readouterr().err


def test_a_compiler_of_several_words(monkeypatch):
    monkeypatch.setenv("CXX", "env c++")
    assert compilers.find_cxx() == ["env", "c++"]


def test_sources_decide_what_is_up_to_date(monkeypatch, own_folder):
    shutil.copytree(backends.SOURCES, own_folder / "csrc")
    before = {name: backends.sources_hash(name) for name in ("cpu", "cuda")}
    monkeypatch.setattr(backends, "SOURCES", own_folder / "csrc")
    assert {name: backends.sources_hash(name) for name in ("cpu", "cuda")} == before
    with (own_folder / "csrc" / "cpu" / "kernels.cpp").open("a") as file:
        file.write("// changed\n")
    assert backends.sources_hash("cpu") != before["cpu"] and backends.sources_hash("cuda") == before["cuda"]
    with (own_folder / "csrc" / "problem.h").open("a") as file:
        file.write(f"// {time.time()}\n")
    assert backends.sources_hash("cuda") != before["cuda"]
