"""This project's packages under `deformable_detr.`, for programs that have other packages of the same names.

Inside of the project modules import each other as `models.detector` or `util.config`, for it runs from its folder. A
program that uses it cannot have that: `datasets` is Hugging Face's, and many have a `models` or a `util`. Here a finder
of imports reads the same files as `deformable_detr.models.detector` and so on; while one is compiled, its imports of
this project are turned to the same prefix. `sys.path` stays as it is, and nothing of the plain names is taken or given.

If the project runs from its folder already (as in its tests), those modules are the ones that are handed out: there
must be one operator and one class of each name in a process.
"""

import ast
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

PACKAGES = ("ablation", "analysis", "datasets", "engine", "models", "ops", "util")
OWN = (*PACKAGES, "own_packages")
PREFIX = __name__.partition(".")[0]
HERE = Path(__file__).resolve().parent
HOME = HERE if (HERE / "models").is_dir() else HERE.parent  # installed as a copy; or a checkout


def serve() -> None:
    """Let `import deformable_detr.models` and its like find this project's files."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


class Finder(MetaPathFinder):
    """Finds the modules of this project's packages under the prefix."""

    def __init__(self) -> None:
        self._plain: bool | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As Python's import system asks; None for everything else."""
        prefix, _, plain = fullname.partition(".")
        package, _, inner = plain.partition(".")
        if prefix != PREFIX or package not in PACKAGES:
            return None
        if self._plain is None:  # which is decided by the first module that is asked for
            self._plain = any(_is_ours(sys.modules.get(name)) for name in PACKAGES)
        if self._plain:
            return ModuleSpec(fullname, Same(plain), is_package=not inner)
        spec = PathFinder.find_spec(fullname, path if inner else [str(HOME)])
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Prefixed(fullname, spec.loader.path)
        return spec


class Same(Loader):
    """Hands out a module that is there under its plain name."""

    def __init__(self, plain: str):
        self._plain = plain

    def create_module(self, spec: ModuleSpec) -> None:
        """None: the usual empty one, which is not used."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the plain name in the place of the empty one."""
        sys.modules[module.__name__] = importlib.import_module(self._plain)


class Prefixed(SourceFileLoader):
    """Compiles a file with the prefix before every import of this project. Bytecode is not kept."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the file, whose lines stay where they are."""
        tree = ast.parse(self.get_data(self.path), self.path)
        return compile(WithPrefix().visit(tree), self.path, "exec", dont_inherit=True)


class WithPrefix(ast.NodeTransformer):
    """Turns the imports of a module, wherever they stand in it."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        """Put the prefix before `from models.x import y`."""
        if not node.level and _is_own(node.module or ""):
            node.module = f"{PREFIX}.{node.module}"
        return node

    def visit_Import(self, node: ast.Import) -> ast.Import:
        """Of `import util.cli`, which binds `util`, make two imports; with `as`, it binds the module itself."""
        names: list[ast.alias] = []
        for name in node.names:
            if not _is_own(name.name):
                names.append(name)
                continue
            if not name.asname and "." in name.name:
                names.append(ast.alias(f"{PREFIX}.{name.name}"))
            bound = name.name if name.asname else name.name.partition(".")[0]
            names.append(ast.alias(f"{PREFIX}.{bound}", asname=name.asname or bound))
        return ast.fix_missing_locations(ast.copy_location(ast.Import(names), node))


def _is_own(name: str) -> bool:
    return name.partition(".")[0] in OWN


def _is_ours(module: ModuleType | None) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(HOME)
