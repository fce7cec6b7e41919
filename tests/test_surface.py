"""What is public: the names of `dit_lens.__all__`, documented, each imported when it is asked for."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import dit_lens
from tests.pages import ROOT, private_names

MODULES = {name: found for name in dit_lens.__all__ if isinstance(found := getattr(dit_lens, name), types.ModuleType)}


def typed_exports() -> dict[str, str]:
    """Name and module of what `dit_lens/__init__.py` imports for type checkers."""
    tree = ast.parse(Path(str(dit_lens.__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {a.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}


def test_type_checkers_see_what_is_there() -> None:
    of_modules = {name: path.rpartition(".")[0] for name, path in dit_lens._MODULES.items()}
    assert sorted(typed_exports()) == sorted(dit_lens.__all__)
    assert typed_exports() == dit_lens._WHERE | of_modules


def test_no_name_is_listed_twice() -> None:
    assert len(set(dit_lens.__all__)) == len(dit_lens.__all__)
    assert set(dir(dit_lens)) == {*dit_lens.__all__, "__version__"}


@pytest.mark.parametrize("name", dit_lens.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(getattr(dit_lens, name))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_public_modules_say_what_is_in_them(name: str) -> None:
    module = MODULES[name]
    for member in getattr(module, "__all__", ()):
        assert getattr(module, member).__doc__, f"dl.{name}.{member}"


def test_no_public_name_is_shadowed_by_a_module() -> None:
    for parent in (dit_lens, *(m for m in MODULES.values() if hasattr(m, "__path__"))):
        below = {info.name for info in pkgutil.iter_modules(parent.__path__)}
        shadowed = {n for n in below & set(parent.__all__) if not isinstance(getattr(parent, n), types.ModuleType)}
        assert not shadowed, f"{parent.__name__}: {shadowed}"


def public_functions() -> dict[str, types.FunctionType]:
    """Every public function, and every public method of a public class, by name."""
    found = {name: getattr(dit_lens, name) for name in dit_lens.__all__}
    for name, module in MODULES.items():
        found |= {f"{name}.{member}": getattr(module, member) for member in getattr(module, "__all__", ())}
    for name, kind in [(n, x) for n, x in found.items() if inspect.isclass(x)]:
        methods = {member: getattr(method, "__func__", method) for member, method in vars(kind).items()}
        found |= {f"{name}.{member}": method for member, method in methods.items() if not member.startswith("_")}
    return {name: x for name, x in found.items() if inspect.isfunction(x)}


def test_no_signature_is_long_but_that_of_a_run() -> None:
    names = {}
    for name, function in public_functions().items():
        given = inspect.signature(function).parameters.values()
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        names[name] = [p.name for p in given if p.kind not in kinds and p.name not in ("self", "cls")]
    assert len(names) > 100
    assert {name: given for name, given in names.items() if len(given) > 8} == {"VideoDiT.run": names["VideoDiT.run"]}


def test_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(AttributeError, match="'dit_lens' has no attribute 'reasoning'"):
        dit_lens.reasoning  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    assert dit_lens.__version__ == importlib.metadata.version("dit-lens")


SCRIPTS = sorted([*ROOT.glob("examples/*.py"), *ROOT.glob("probes/*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_examples_and_scripts_use_public_names_alone(script: Path) -> None:
    assert private_names(script.read_text()) == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("dl.Sites('resid'); dl.tasks.Maze(5)", "Success"),
        ("dl.Sitez('resid')", 'Module has no attribute "Sitez"'),
        ("dl.lens.steps", 'Module has no attribute "lens"'),
    ],
)
def test_type_checkers_refuse_a_name_that_is_not_public(code: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(f"import dit_lens as dl\n\n{code}\n")
    options = ["--strict", "--ignore-missing-imports", "--cache-dir", str(tmp_path)]
    command = [sys.executable, "-m", "mypy", *options, str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said in done.stdout, done.stdout


def test_docstrings_name_what_is_there() -> None:
    sources = [*Path(str(dit_lens.__file__)).parent.rglob("*.py"), *ROOT.glob("docs/**/*.md")]
    named = {name for path in sources for name in re.findall(r"`(dit_lens(?:\.\w+)+)`", path.read_text())}
    assert len(named) > 5
    assert [name for name in sorted(named) if not _is_there(name)] == []


def _is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_importing_the_package_imports_no_other() -> None:
    code = "import sys, dit_lens; print({'torch', 'numpy', 'pandas', 'diffusers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "set()"


def test_every_error_is_of_one_tree_and_drawn_in_its_docstring() -> None:
    errors = [e for e in vars(dit_lens.errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert all(issubclass(error, dit_lens.DitLensError) for error in errors)
    assert all(error.__name__ in str(dit_lens.errors.__doc__) for error in errors)
    assert len(errors) > 5
