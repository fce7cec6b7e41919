"""Instances and pairs by number or by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.errors import EvidenceError
from dit_lens.tasks.draw import draw_instances, draw_pairs

TASK = dl.tasks.Sort()


def ids(instances: Iterable[Any]) -> list[str]:
    return [instance.id for instance in instances]


@pytest.mark.parametrize("number", [3, np.int64(3)])
def test_a_number_draws_what_the_task_samples(number: int) -> None:
    assert ids(draw_instances(TASK, number, 5, who="a test")) == ids(TASK.sample(3, seed=5))
    assert ids(draw_instances(TASK, number, 5, "train", who="a test")) == ids(TASK.sample(3, seed=5, split="train"))
    assert list(map(ids, draw_pairs(TASK, number, 5, who="a test"))) == list(map(ids, TASK.pairs(3, 5)))


def test_what_is_given_stays_in_its_order() -> None:
    instances, pairs = TASK.sample(4), TASK.pairs(4)
    assert draw_instances(TASK, iter(instances[::-1]), who="a test") == instances[::-1]  # type: ignore[arg-type]
    assert draw_pairs(TASK, [tuple(pair) for pair in pairs], who="a test") == pairs  # type: ignore[misc]


@pytest.mark.parametrize("none", [0, -1, np.int64(0), [], np.zeros(0)])
def test_none_at_all_are_refused(none: int) -> None:
    with pytest.raises(EvidenceError, match="a test needs instances of task 'sort': a number of at least 1"):
        draw_instances(TASK, none, who="a test")
    with pytest.raises(EvidenceError, match="a test needs pairs of task 'sort': a number of at least 1"):
        draw_pairs(TASK, none, who="a test")


def test_a_number_with_a_seed_of_each_row_draws_nothing() -> None:
    with pytest.raises(EvidenceError, match="with a seed for each row"):
        draw_instances(TASK, 3, [1, 2, 3], who="a test")
