"""The rooms of the package: the contract that `make lint` holds them to, and that it can fail."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dit_lens

PACKAGE = Path(str(dit_lens.__file__)).parent
ROOT = Path(__file__).parent.parent


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("importlinter", reason="the contract is checked by import-linter, of the extra 'lint'")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The modules of the package and the contract, to be changed."""
    shutil.copytree(PACKAGE, tmp_path / "dit_lens", ignore=lambda d, names: [n for n in names if _is_no_source(d, n)])
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def _is_no_source(folder: str, name: str) -> bool:
    return name == "__pycache__" or not (Path(folder, name).is_dir() or name.endswith(".py"))


def plant(folder: Path, module: str, line: str) -> None:
    with (folder / "dit_lens" / module).open("a") as file:
        file.write(f"\n{line}\n")


def test_the_package_keeps_the_contract(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout


def test_an_import_of_a_room_above_breaks_it(copy: Path) -> None:
    plant(copy, "sites/site.py", "from dit_lens.model import VideoDiT")
    done = lint(copy)
    assert done.returncode == 1
    assert "dit_lens.sites.site -> dit_lens.model" in done.stdout


@pytest.mark.parametrize(
    ("module", "line", "circle"),
    [
        ("lens/preview.py", "import dit_lens.lens.steps", "dit_lens.lens"),
        ("probing/fit/moments.py", "import dit_lens.probing.fit.discriminant", "dit_lens.probing.fit"),
        ("sites/tokens.py", "import dit_lens.sites.sites", "dit_lens.sites"),
    ],
)
def test_a_circle_within_a_room_breaks_it(copy: Path, module: str, line: str, circle: str) -> None:
    plant(copy, module, line)
    done = lint(copy)
    assert done.returncode == 1
    assert f"No cycles are allowed in {circle}" in done.stdout, done.stdout


def test_a_room_that_the_contract_does_not_name_breaks_it(copy: Path) -> None:
    (copy / "dit_lens" / "attic").mkdir()
    plant(copy, "attic/__init__.py", "")
    done = lint(copy)
    assert done.returncode == 1
    assert "attic" in done.stdout


def imports(path: Path) -> list[str]:
    """Modules that a file imports from at run time."""
    tree = ast.parse(path.read_text())
    typed = {id(n) for node in ast.walk(tree) if isinstance(node, ast.If) and _is_typing(node) for n in ast.walk(node)}
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) and id(n) not in typed]
    named = [a.name for n in found if isinstance(n, ast.Import) for a in n.names]
    return named + [str(n.module) for n in found if isinstance(n, ast.ImportFrom) and not _only_of_modules(n)]


def _only_of_modules(node: ast.ImportFrom) -> bool:
    """Whether ``from package import module`` takes nothing but modules, and none of the package's own names."""
    folder = PACKAGE.parent.joinpath(*str(node.module).split("."))
    return all((folder / f"{a.name}.py").exists() or (folder / a.name).is_dir() for a in node.names)


def _is_typing(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def above(path: Path) -> set[str]:
    """The packages that hold a module; for the ``__init__`` of a package, those that hold the package."""
    parts = ("dit_lens", *path.relative_to(PACKAGE).parts[: -2 if path.name == "__init__.py" else -1])
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_imports_the_package_that_holds_it(path: Path) -> None:
    assert not above(path) & set(imports(path))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_imports_by_a_text(path: Path) -> None:
    """The contract cannot see such an import; that of a package of others is none of its business."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    texts = [a.value for c in calls if "import" in ast.unparse(c.func) for a in c.args if isinstance(a, ast.Constant)]
    assert not [text for text in texts if str(text).startswith("dit_lens")]


def test_every_folder_of_modules_is_a_room() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_nothing_else_lies_loose() -> None:
    loose = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert loose == {"__init__.py", "__main__.py", "errors.py", "model.py", "py.typed"}


@pytest.mark.parametrize("room", sorted(p for p in PACKAGE.rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_every_room_says_what_it_is_for(room: Path) -> None:
    assert ast.get_docstring(ast.parse(room.read_text()))
