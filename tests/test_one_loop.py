"""Nobody but `VideoDiT.runs` runs one batch after the other, and no seed is made by adding to another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import dit_lens
from tests.pages import ROOT

PACKAGE = Path(str(dit_lens.__file__)).parent
SCRIPTS = [*ROOT.glob("examples/*.py"), *ROOT.glob("probes/*.py")]
LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
#: A file whose loops are not over batches: the checks of a family run rows alone to compare
#: them with the batch.
EXCEPTIONS = {"validation/family_checks.py"}


def runs_in_loops(tree: ast.AST) -> Iterator[int]:
    """Lines with a call of a method ``run`` inside a loop of the same function."""
    for loop in ast.walk(tree):
        if isinstance(loop, LOOPS):
            for node in ast.walk(loop):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "run":
                    yield node.lineno


def sums_of_seeds(tree: ast.AST) -> Iterator[int]:
    """Lines that add something to a variable or attribute that is called a seed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            names = [getattr(side, "id", getattr(side, "attr", "")) for side in (node.left, node.right)]
            if any(name.endswith("seed") for name in names):
                yield node.lineno


def found(check: object, files: list[Path]) -> list[str]:
    named = {path.relative_to(ROOT).as_posix(): path for path in files}
    return [
        f"{name}:{line}"
        for name, path in named.items()
        for line in check(ast.parse(path.read_text()))  # type: ignore[operator]
    ]


def test_only_the_loop_over_runs_runs_in_a_loop() -> None:
    files = [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).as_posix() not in EXCEPTIONS]
    assert found(runs_in_loops, files) == []


def test_no_seed_is_a_sum() -> None:
    assert found(sums_of_seeds, [*sorted(PACKAGE.rglob("*.py")), *SCRIPTS]) == []


def test_the_scan_finds_what_it_looks_for() -> None:
    bad = ast.parse(
        "for i in range(3):\n    model.run(x, seed=seed + i)\n[m.run(x) for x in y]\nmodel.run(x, self.seed + 1)"
    )
    assert list(runs_in_loops(bad)) == [2, 3]
    assert list(sums_of_seeds(bad)) == [4, 2]
