"""What a flow refuses or says when its numbers would mean something else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.analysis.flow.ways import Ways
from dit_lens.errors import EvidenceError, InputError
from tests.analysis.flow.flows import flow_of, planted


def permanence(count: int, kind: str = "colour") -> list[Any]:
    return list(planted("relay").task.pairs(count, 0, kind))  # type: ignore[union-attr]


def relay(pairs: Any, **more: Any) -> dl.InformationFlow:
    own = planted("relay")
    return flow_of(own.model, own.task, pairs, **more)


def test_pairs_with_a_source_and_without_are_not_mixed() -> None:
    with pytest.raises(EvidenceError, match="2 of 4 pairs have no source"):
        relay([*permanence(2), *permanence(2, "exit")])


def test_a_named_source_in_which_nothing_differs_is_refused() -> None:
    with pytest.raises(EvidenceError, match="at most, which is nothing: name"):
        relay(3, kind="colour", source=dl.Tokens(box=(24, 24, 32, 32), frames=0))


def test_one_pair_alone_says_that_it_has_no_interval() -> None:
    flow = relay(1, kind="colour", step=0)
    assert not flow.gate.open
    assert "one pair alone has no interval" in str(flow)


def test_copies_of_a_pair_are_no_unrelated_pairs() -> None:
    pair = permanence(1)[0]
    flow = relay([pair] * 3)
    assert flow.gate.open
    assert len(flow.gate.unrelated) == 0


def test_only_other_ways_of_the_same_direction_are_unrelated() -> None:
    way = torch.eye(3).reshape(3, 3, 1, 1, 1)
    ways = Ways.of(torch.cat([way, -way[:1]]), np.ones((4, 1, 1, 1), dtype=bool))
    step = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1, 1)
    own, others = ways.along(step, 0)
    assert own == pytest.approx([1])
    assert others == pytest.approx([(2 + 4) / 2])  # the fourth is the opposite of the first
    own, others = ways.along(step, 3)  # the partner of the second
    assert own == pytest.approx([-2])
    assert others == pytest.approx([(-1 - 4 + 1) / 3])


def test_interventions_with_tokens_of_each_row_are_refused() -> None:
    own = planted("relay")
    mask = np.ones((6, *own.model.geometry(permanence(1)[0].original).grid), dtype=bool)
    ablate = dl.Ablate(dl.Sites("delta", layers=0, tokens=dl.Tokens(mask=mask)))
    with pytest.raises(InputError, match="a flow makes its own rows"):
        relay(3, kind="colour", interventions=[ablate])


def test_interventions_act_in_every_run() -> None:
    still = dl.Ablate(dl.Sites("delta", layers=4))
    flow = relay(3, kind="colour", interventions=(i for i in [still]))
    assert flow.gate.solves is False
    assert flow.n == 0


def test_a_later_step_says_from_whose_state() -> None:
    flow = relay(3, kind="colour", step=1)
    assert "step 1, sigma" in str(flow)
    assert "from the originals' states" in str(flow)
    assert flow.ends_exact


def test_rows_at_once_change_nothing() -> None:
    few, many = (relay(6, kind="colour", batch=batch) for batch in (4, 32))
    for name, values in many.effects.items():
        np.testing.assert_allclose(few.effects[name], values, rtol=0, atol=1e-5)


def test_a_finished_flow_is_read_from_its_folder_and_another_is_refused(tmp_path: Any) -> None:
    first = relay(3, kind="colour", folder=tmp_path)
    again = relay(3, kind="colour", folder=tmp_path)
    assert again.table.drop(columns=["value"]).equals(first.table.drop(columns=["value"]))
    np.testing.assert_array_equal(again.effects["A"], first.effects["A"])
    with pytest.raises(dl.errors.StoreError, match="give another folder"):
        relay(3, kind="colour", seed=1, folder=tmp_path)


def test_half_precision_may_be_off_by_two_of_its_last_places() -> None:
    flow = relay(2, kind="colour")
    assert flow.exact_to == 1e-3
    assert not replace(flow, worst=0.02, exact_to=2 * torch.finfo(torch.bfloat16).eps).ends_exact
    assert "NOT EXACT" in str(replace(flow, worst=0.02))
