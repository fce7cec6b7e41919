"""What is public is what `__all__` says, and importing it costs no test framework or plotting."""

from __future__ import annotations

import inspect
import types

import pytest

import dit_lens


def test_all_is_sorted_and_complete() -> None:
    public = {n for n, v in vars(dit_lens).items() if not n.startswith("_") and not isinstance(v, types.ModuleType)}
    modules = {n for n in dit_lens.__all__ if isinstance(getattr(dit_lens, n), types.ModuleType)}
    assert list(dit_lens.__all__) == sorted(dit_lens.__all__)
    assert set(dit_lens.__all__) - modules - {"__version__"} == public


@pytest.mark.parametrize("name", dit_lens.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    member = getattr(dit_lens, name)
    if name != "__version__":
        assert inspect.getdoc(member)


def test_every_error_is_of_one_tree_and_drawn_in_its_docstring() -> None:
    errors = [e for e in vars(dit_lens.errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert all(issubclass(error, dit_lens.DitLensError) for error in errors)
    assert all(error.__name__ in str(dit_lens.errors.__doc__) for error in errors)
    assert len(errors) > 5
