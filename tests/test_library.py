"""`deformable_detr`, the name by which other programs import this project beside their own `datasets` and `models`."""

import ast
import importlib
import os
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

import deformable_detr
from deformable_detr.imports import OWN, PACKAGES, PREFIX, Prefixed, WithPrefix
from tests.test_own_packages import ROOT, other_project

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = sorted(file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))


def run_python(code: str, folder: Path, *path: Path, python: str = sys.executable) -> str:
    """What a script prints that runs in a folder, with these at the front of sys.path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(tree: ast.AST) -> list[str]:
    """The modules that are imported, wherever in a file."""
    nodes = list(ast.walk(tree))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return sorted(names + [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names])


def test_every_import_of_every_file_gets_the_prefix():
    """Only it: the others are as they were."""
    turned = 0
    for file in FILES:
        tree = ast.parse(file.read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level], file
        expected = sorted(f"{PREFIX}.{n}" if n.partition(".")[0] in OWN else n for n in imported(tree))
        assert imported(WithPrefix().visit(tree)) == expected, file
        turned += sum(name.startswith(f"{PREFIX}.") for name in expected)
    assert turned > 500


@pytest.mark.parametrize(
    ("statement", "bound"),
    [
        ("import util", {"util": "util"}),
        ("import util.errors", {"util": "util"}),
        ("import util.errors as e", {"e": "util.errors"}),
        ("from util import errors", {"errors": "util.errors"}),
        ("import json, util.errors as e, util", {"json": None, "e": "util.errors", "util": "util"}),
        ("import utility_of_others as u", {"u": None}),
    ],
)
def test_forms_of_imports_bind_what_they_say(tmp_path, monkeypatch, statement, bound):
    monkeypatch.setitem(sys.modules, "utility_of_others", SimpleNamespace())
    (tmp_path / "a.py").write_text(f"def late():\n    {statement}\n    return locals()\n\n\n{statement}\n")
    names: dict = {}
    exec(Prefixed("a", str(tmp_path / "a.py")).get_code("a"), names)
    for scope in (names, names["late"]()):
        for name, module in bound.items():
            assert name in scope and (module is None or scope[name] is sys.modules[f"{PREFIX}.{module}"])
    assert names["late"].__code__.co_firstlineno == 1


CHECK = """
import sys
before = {before}
path = list(sys.path)
import deformable_detr
from deformable_detr import TTAConfig, UserError
import deformable_detr.datasets.coco, deformable_detr.models.limits
import datasets, models, util
assert datasets.mine and models.mine and util.mine and sys.path == path
names = {{n for n in sys.modules if n.partition(".")[0] in {own}}}
assert names == {{"datasets", "models", "util"}}, names
assert TTAConfig.__module__ == "deformable_detr.util.config" and "torch" not in sys.modules
assert deformable_detr.datasets.coco.UserError is UserError is deformable_detr.util.errors.UserError
sys.path.insert(0, {root!r})
del sys.modules["util"], sys.modules["models"], sys.modules["datasets"]
try:
    import datasets
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("before", ["__import__('datasets'), __import__('models'), __import__('util')", "()"])
def test_packages_of_the_same_names_are_left_alone(tmp_path, before):
    """Imported before or after; then this project by its plain names, which would be there twice, is refused."""
    other = other_project(tmp_path / "other", "datasets", "models", "util")
    code = CHECK.format(before=before, own=OWN, root=str(ROOT))
    # Installed, the package is found behind the program's own folders.
    said = run_python(code, tmp_path, other, ROOT)
    assert "imported as deformable_detr already" in said and "deformable_detr.util for util" in said


def test_where_the_project_runs_from_its_folder_its_modules_are_the_same():
    """As here, or in a notebook that began with `from main import load_predictor`."""
    import engine.predict
    import util.errors

    assert deformable_detr.load_predictor is engine.predict.load_predictor
    assert importlib.import_module("deformable_detr.util.errors") is util.errors
    assert util.errors.__spec__.name == util.errors.__name__ == "util.errors"
    for name in deformable_detr.__all__:
        assert name in dir(deformable_detr) and getattr(deformable_detr, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'load_predicter'"):
        _ = deformable_detr.load_predicter
    with pytest.raises(ImportError, match=r"deformable_detr\.gone"):
        importlib.import_module("deformable_detr.gone")


def test_all_packages_and_what_lies_in_them_is_installed():
    setup = PROJECT["tool"]["setuptools"]
    folders = {file.parent.relative_to(ROOT) for file in FILES}
    assert set(setup["packages"]) == {PREFIX} | {".".join([PREFIX, *folder.parts]) for folder in folders}
    assert setup["package-dir"] == {f"{PREFIX}.{name}": name for name in PACKAGES}
    data = {file for f in folders for p in setup["package-data"]["*"] for file in (ROOT / f).glob(p)}
    files = {file for name in PACKAGES for file in (ROOT / name).rglob("*.*") if file.suffix not in (".py", ".pyc")}
    assert not {file for file in files - data if file.parent.name != "lib"}  # which is what was built here


@pytest.mark.slow
@pytest.mark.parametrize("editable", [True, False], ids=["editable", "copied"])
def test_an_installed_package_detects_from_any_folder(tmp_path, editable):
    """`pip install`, in an environment of its own that sees the dependencies of this one."""
    venv.create(tmp_path / "env")
    python = str(tmp_path / "env" / "bin" / "python")
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    here = next(p for p in sys.path if p.endswith("site-packages"))
    (site / "shared.pth").write_text(here)
    source = ROOT
    if not editable:  # a build leaves files beside what it builds
        subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
        source = tmp_path / "clone"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, *(["-e"] if editable else []), source], check=True, timeout=300)
    other = other_project(tmp_path / "other", "datasets", "models")
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import datasets, deformable_detr, torch\n"
        "from deformable_detr.engine.predict import untrained_predictor\n"
        "from deformable_detr.util.config import BackboneConfig, ModelConfig\n"
        "model = ModelConfig(BackboneConfig('test_resnet', weights='none'), d_model=32, norm_groups=8, num_queries=9)\n"
        "print(untrained_predictor(model, 3, 'cpu', 48)(torch.rand(3, 40, 60), top_k=4).names)\n"
        "import models\n"
        "print(models.mine, datasets.mine, deformable_detr.__version__, deformable_detr.__file__)\n"
    )
    printed = run_python(code, tmp_path / "elsewhere", other, python=python).splitlines()
    assert printed[0].count("class ") == 4
    assert printed[1] == f"1 1 {deformable_detr.__version__} " + str(
        Path(source if editable else site, "deformable_detr", "__init__.py")
    )
