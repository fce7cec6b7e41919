"""Fixtures of every test: tiny random pipelines, the shipped model, and a check that no run leaves anything behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.subjects import BUILDERS, BUILT, Subject, leftovers, subject_of

# A busy machine is no failure of a property.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(params=list(BUILDERS))
def subject(request: pytest.FixtureRequest) -> Subject:
    """Every kind of pipeline, random and trained."""
    return subject_of(request.param)


@pytest.fixture
def organism() -> Subject:
    return subject_of("organism")


@pytest.fixture
def text_to_video() -> Subject:
    return subject_of("text_to_video")


@pytest.fixture
def two_experts() -> Subject:
    return subject_of("two_experts")


@pytest.fixture
def shipped() -> Subject:
    return subject_of("shipped")


@pytest.fixture(params=[1.0, 2.0], ids=["unguided", "guided"])
def guidance(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@pytest.fixture(autouse=True)
def _figures_closed() -> Iterator[None]:
    """Pictures of one test are not those of the next; matplotlib warns of too many."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """After every test, whatever it did, no pipeline may carry anything of a run."""
    yield
    assert {name: left for name, subject in BUILT.items() if (left := leftovers(subject.pipeline))} == {}
