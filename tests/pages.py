"""The code of the documentation's pages: what they show, and running it.

    python -m tests.pages docs/idea.md

runs the ``{doctest}`` blocks of one page, one after the other as one session, and exits with 1 where one of them prints
something else. It is given an interpreter of its own, so that a page works for a reader who starts with it.
"""

from __future__ import annotations

import ast
import doctest
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import dit_lens as dl

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
_FENCE = re.compile(r"^```(\{doctest\}|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def session(text: str) -> str:
    """A page with all but its doctests blank, so that lines keep their numbers."""
    kept, end = "", 0
    for found in _FENCE.finditer(text):
        if found[1] == "{doctest}":
            kept += "\n" * text.count("\n", end, found.start(2)) + found[2]
            end = found.end(2)
    return kept


def snippets(text: str) -> Iterator[str]:
    """The Python of every block."""
    for found in _FENCE.finditer(text):
        is_session = found[1] == "{doctest}"
        examples = doctest.DocTestParser().get_examples(found[2]) if is_session else []
        yield "".join(example.source for example in examples) if is_session else found[2]


def private_names(code: str) -> list[str]:
    """What a piece of code takes from dit_lens that is not public."""
    tree, found = ast.parse(code), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("dit_lens.")]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dit_lens":
            public = node.module == "dit_lens"
            found += [f"{node.module}.{a.name}" for a in node.names if not public or a.name not in dl.__all__]
        chain = dotted(node)
        if len(chain) > 1 and chain[0] == "dl" and not _is_public(chain[1:]):
            found.append(".".join(chain))
    return found


def _is_public(names: list[str]) -> bool:
    if names[0] not in (*dl.__all__, "__version__"):
        return False
    member = getattr(dl, names[0])
    if len(names) == 1 or not isinstance(member, types.ModuleType):
        return True
    return names[1] in getattr(member, "__all__", [n for n in vars(member) if not n.startswith("_")])


def dotted(node: ast.AST) -> list[str]:
    """``dl.a.b`` as ["dl", "a", "b"]; empty for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    return [*parts, node.attr] if isinstance(node, ast.Attribute) and (parts := dotted(node.value)) else []


def main(path: str) -> int:
    page = Path(path)
    test = doctest.DocTestParser().get_doctest(session(page.read_text()), {"dl": dl}, page.name, str(page), 0)
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    print(f"{page.name}: {result.attempted} examples, {result.failed} failed")
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
