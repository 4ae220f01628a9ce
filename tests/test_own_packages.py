"""Other people's packages under this project's names, by processes that import both."""

import subprocess
import sys
from pathlib import Path

import pytest

import own_packages
from own_packages import check_own

ROOT = Path(__file__).resolve().parents[1]
FIRST = "from main import load_predictor", "from engine.predict import load_predictor", "import models.detector"


def other_project(folder: Path, *packages: str, bare: bool = False) -> Path:
    for name in packages:
        (folder / name).mkdir(parents=True)
        if not bare:
            (folder / name / "__init__.py").write_text("mine = 1\n")
    return folder


def said_by(code: str, *path: Path) -> str:
    """The last line on stderr of a process whose sys.path begins with these folders."""
    script = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}; sys.dont_write_bytecode = True; {code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/", timeout=100)
    return (done.stderr.strip().splitlines() or ["nothing"])[-1]


@pytest.mark.parametrize("first", FIRST)
def test_a_package_that_comes_first_in_the_path_is_named_with_the_mend(tmp_path, first):
    other = other_project(tmp_path, "util")
    said = said_by(first, other, ROOT)
    assert said.startswith(f"ImportError: this project's package 'util' is hidden by {other}/util/__init__.py")
    assert f"sys.path.insert(0, '{ROOT}')" in said


def test_a_package_that_was_imported_before_is_named(tmp_path):
    other = other_project(tmp_path, "datasets")
    said = said_by("import datasets; sys.path.reverse(); from engine.predict import load_predictor", other, ROOT)
    assert f"'datasets' is hidden by {other}/datasets/__init__.py, which was imported before" in said


def test_one_that_is_not_needed_is_no_matter(tmp_path):
    other = other_project(tmp_path, "datasets")
    assert said_by("import datasets; import models; datasets.mine", other, ROOT) == "nothing"


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", ["datasets", "models", "util", "ops", "engine", "analysis"])
def test_every_name(tmp_path, monkeypatch, name, bare):
    """Also a folder without __init__.py, before which Python prefers any package that has one, wherever it lies."""
    other = other_project(tmp_path / "other", name, bare=bare)
    for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.syspath_prepend(other)
    if bare:
        check_own(name)
        monkeypatch.setattr(own_packages.sys, "path", [str(other)])
    with pytest.raises(ImportError, match=f"'{name}' is hidden by {other / name}") as raised:
        check_own(name)
    assert "\n" not in str(raised.value)


def test_modules_without_a_file_and_names_that_nobody_has():
    check_own("sys", "no_such_package_anywhere", "datasets", "models", "util", "ops", "engine", "analysis", "ablation")
