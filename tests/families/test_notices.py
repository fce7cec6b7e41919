"""Notices of other libraries: the two that nobody can act on are dropped, while a pipeline is made and no longer."""

from __future__ import annotations

import logging

import pytest

from dit_lens.families.notices import without_notices

GUIDER = logging.getLogger("diffusers.guiders.guider_utils")
TEXT = "Guiders are currently an experimental feature under active development."


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Messages that reach the handlers of the logger."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(GUIDER, "handlers", [handler])
    return found


def test_a_known_notice_is_dropped_and_another_is_not(shown: list[str]) -> None:
    with without_notices():
        GUIDER.warning(TEXT)
        GUIDER.warning("the scale is not finite")
    assert shown == ["the scale is not finite"]


def test_outside_it_is_shown_again_also_after_an_error(shown: list[str]) -> None:
    before = list(GUIDER.filters)
    with pytest.raises(ValueError, match="made wrong"), without_notices():
        raise ValueError("made wrong")
    GUIDER.warning(TEXT)
    assert shown == [TEXT]
    assert GUIDER.filters == before
