"""The documentation's pages: their code is public and works alone, and the API pages have every name once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dit_lens as dl
from tests.pages import PAGES, ROOT, private_names, session, snippets


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if session(p.read_text())], ids=name_of)
def test_a_page_works_in_an_interpreter_of_its_own(page: Path) -> None:
    command = [sys.executable, "-m", "tests.pages", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_of_a_page_takes_public_names_alone(page: Path) -> None:
    assert [name for code in snippets(page.read_text()) for name in private_names(code)] == []


@pytest.mark.parametrize(
    ("code", "private"),
    [
        ("import dit_lens as dl\ndl.Sites('resid')", []),
        ("dl.tasks.Maze(5)", []),
        ("from dit_lens.lens.depth import depth_lens", ["dit_lens.lens.depth.depth_lens"]),
        ("import dit_lens.tasks as tasks", ["dit_lens.tasks"]),
        ("dl.organisms.evaluate.title(task)", ["dl.organisms.evaluate.title", "dl.organisms.evaluate"]),
        ("dl.lens", ["dl.lens"]),
    ],
)
def test_a_private_name_is_found(code: str, private: list[str]) -> None:
    assert private_names(code) == private


def test_a_page_that_prints_something_else_fails(tmp_path: Path) -> None:
    page = tmp_path / "wrong.md"
    page.write_text(
        "# A page\n\n```{doctest}\n>>> len(dl.__all__)\n0\n```\n\ntext\n\n```{doctest}\n>>> 1 + 1\n2\n```\n"
    )
    command = [sys.executable, "-m", "tests.pages", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "line 4" in done.stdout
    assert "wrong.md: 2 examples, 1 failed" in done.stdout


def documented() -> list[str]:
    """What the API pages have, in full, a public module for all that is in it."""
    found = []
    for page in sorted((ROOT / "docs/api").glob("*.md")):
        module = ""
        for kind, name in re.findall(r"^\.\. (currentmodule|auto\w+):: ([\w.]+)$", page.read_text(), re.MULTILINE):
            if kind == "currentmodule":
                module = name
            else:
                found.append(name if name.startswith("dit_lens") else f"{module}.{name}")
    return found


def test_the_api_pages_have_every_public_name_once() -> None:
    found, modules = documented(), dl._MODULES
    of_package = [f"dit_lens.{name}" for name in dl.__all__ if name not in modules and name != "DitLensError"]
    assert {name: found.count(name) for name in of_package if found.count(name) != 1} == {}
    for name, module in modules.items():
        members = {f"{module}.{member}" for member in getattr(getattr(dl, name), "__all__", ["-"])}
        # What is also a name of the package, or a module of its own with a page, need not be there again.
        members -= {f"{module}.{member}" for member in (*dl.__all__, "vbvr", "TASKS", "PLACES", "EVIDENCE")}
        assert module in found or members <= set(found), members - set(found)
