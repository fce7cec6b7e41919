"""Planted truth: the flow names the blocks that alone carry the difference, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dit_lens.organisms import PLACES, with_identity_blocks
from tests.analysis.flow.flows import (
    dead,
    flow_of,
    flow_of_planted,
    halves_of,
    means,
    planted,
    with_blocks,
)

FRAMES = [f"frames-{place}" for place in PLACES]
TEXT = [f"text-{place}" for place in PLACES]


def by_block(flow: Any, what: str) -> np.ndarray[Any, Any]:
    """The mean change of each block."""
    found: np.ndarray[Any, Any] = flow.changes[what].mean(axis=1)
    return found


def split(values: np.ndarray[Any, Any], blocks: tuple[int, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Those of some blocks, and those of all others."""
    inside = np.isin(np.arange(len(values)), blocks)
    return values[inside], values[~inside]


@pytest.mark.parametrize("name", FRAMES)
def test_the_difference_crosses_frames_in_the_planted_blocks_alone(name: str) -> None:
    own, flow = planted(name), flow_of_planted(name)
    assert flow.gate.open
    assert flow.ends_exact
    assert not flow.doors
    for what in ("departure", "arrival"):
        inside, outside = split(by_block(flow, what), own.blocks)
        assert abs(outside).max() < 0.03, what
        assert inside.sum() == pytest.approx(1, abs=0.05), what
    assert abs(by_block(flow, "reading")).max() < 1e-6
    assert {name: found and found.value for name, found in flow.coverage.items()} == {
        "A": pytest.approx(1, abs=0.01),
        "B": pytest.approx(0, abs=0.01),
    }


@pytest.mark.parametrize("name", TEXT)
def test_the_prompt_is_read_in_the_planted_blocks_alone(name: str) -> None:
    own, flow = planted(name), flow_of_planted(name)
    assert flow.gate.open
    assert flow.ends_exact
    assert set(flow.doors) == {"context of text", "all doors"}
    assert np.allclose(flow.doors["all doors"], 1, atol=1e-3)
    inside, outside = split(by_block(flow, "reading"), own.blocks)
    assert abs(outside).max() < 1e-3
    assert inside.sum() == pytest.approx(1, abs=0.01)
    before = [i for i, layer in enumerate(flow.layers) if layer < min(own.blocks)]
    assert abs(flow.effects["all"][before]).max() < 1e-3
    # Nothing that is embedded differs, so there is no source.
    assert flow.coverage["A"] is None
    assert np.isnan(flow.effects["A"]).all()
    assert np.isfinite(flow.effects["shared"]).all()


def test_a_relay_is_seen_in_the_tokens_between() -> None:
    flow = flow_of_planted("relay")
    departs, inside = split(by_block(flow, "departure"), (1,)), split(by_block(flow, "arrival"), (4,))
    for here, elsewhere in (departs, inside):
        assert here[0] == pytest.approx(1, abs=0.03)
        assert abs(elsewhere).max() < 0.03
    curves = means(flow)
    assert curves["M"] == pytest.approx([0, 0, 1, 1, 1, 0, 0], abs=0.01)
    assert abs(flow.effects["shared"]).max() < 0.03


def test_a_single_head_is_seen_in_its_block() -> None:
    flow = flow_of_planted("head")
    for what in ("departure", "arrival"):
        here, elsewhere = split(by_block(flow, what), planted("head").blocks)
        assert here[0] == pytest.approx(1, abs=0.03)
        assert abs(elsewhere).max() < 0.03


def test_random_weights_have_no_curves_and_a_sentence() -> None:
    own = planted("random")
    flow = flow_of(own.model, own.task, kind="colour", parts=("blocks", "groups"))
    assert not flow.gate.decides
    assert not flow.gate.open
    assert flow.n == 0
    assert flow.layers == ()
    assert len(flow.per_block) == 0
    assert "gate shut: the model does not solve these pairs" in str(flow)
    assert "4 of which a side is not solved" in str(flow)
    assert set(flow.table["measure"]) == {"moved", "unrelated", "frozen"}


# -- blocks that do nothing, blocks in two, blocks elsewhere -------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> Any:
    """Of the model that the others are made of."""
    return flow_of_planted("frames-middle")


def test_identity_blocks_do_exactly_nothing_and_shift_the_others(whole: Any) -> None:
    own, at = planted("frames-middle"), (0, 3, 8)
    longer = with_identity_blocks(own.model, at)
    flow = flow_of(longer.model, own.task, kind="colour", parts=("blocks",))
    trained = [layer for layer in range(longer.model.layers) if layer not in at]
    for what in ("departure", "arrival", "reading"):
        changes = flow.changes[what]
        assert abs(changes[list(at)]).max() < 1e-6, what
        np.testing.assert_allclose(changes[trained], whole.changes[what], rtol=0, atol=1e-6)
    for what in ("whole", "direct"):
        assert abs(flow.updates[what][list(at)]).max() < 1e-6, what
        np.testing.assert_allclose(flow.updates[what][trained], whole.updates[what], rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", [1, 2, 5])
def test_the_halves_of_a_block_share_its_value(whole: Any, layer: int) -> None:
    own = planted("frames-middle")
    model = with_blocks(own.model, lambda blocks: [*blocks[:layer], *halves_of(blocks[layer]), *blocks[layer + 1 :]])
    flow = flow_of(model, own.task, kind="colour")
    for what, changes in flow.changes.items():
        shared = changes[layer : layer + 2]
        np.testing.assert_allclose(shared.sum(axis=0), whole.changes[what][layer], rtol=0, atol=1e-5)
        others = np.delete(changes, [layer, layer + 1], axis=0)
        np.testing.assert_allclose(others, np.delete(whole.changes[what], layer, axis=0), rtol=0, atol=1e-5)


def test_the_attention_of_a_block_carries_and_its_feed_forward_does_not(whole: Any) -> None:
    own = planted("frames-middle")
    model = with_blocks(own.model, lambda blocks: [*blocks[:2], *halves_of(blocks[2]), *blocks[3:]])
    flow = flow_of(model, own.task, kind="colour")
    assert by_block(flow, "departure")[2] == pytest.approx(by_block(whole, "departure")[2], abs=1e-3)
    assert abs(by_block(flow, "departure")[3]) < 1e-3


@pytest.mark.parametrize("gone", [(0,), (4, 5), (2,)])
def test_a_dead_block_is_never_named(gone: tuple[int, ...]) -> None:
    """It does exactly nothing, whatever is left of the model around it."""
    own = planted("frames-middle")
    model = with_blocks(own.model, lambda blocks: [dead(b) if k in gone else b for k, b in enumerate(blocks)])
    flow = flow_of(model, own.task, kind="colour", parts=("blocks",))
    assert flow.gate.solved < 1
    if flow.n:
        assert flow.ends_exact
        for values in [*(flow.changes[what] for what in flow.changes), *flow.updates.values()]:
            assert np.isfinite(values).all()
            assert abs(values[list(gone)]).max() < 1e-6


def test_without_the_blocks_that_carry_it_nothing_arrives_and_the_gate_is_shut() -> None:
    own = planted("frames-middle")
    model = with_blocks(own.model, lambda blocks: [dead(b) if k in own.blocks else b for k, b in enumerate(blocks)])
    flow = flow_of(model, own.task, kind="colour")
    assert flow.gate.solves is False
    assert not flow.gate.open
    assert flow.n == 0
    assert abs(flow.gate.moved).max() < 0.02


@pytest.mark.parametrize("pair", [(0, 1), (2, 3), (3, 4)])
def test_blocks_that_are_exchanged_are_no_finding_of_the_whole_model(whole: Any, pair: tuple[int, int]) -> None:
    """The numbers are those of the model at hand: shut, or different, and its identities hold."""
    own, order = planted("frames-middle"), list(range(6))
    order[pair[0]], order[pair[1]] = pair[1], pair[0]
    model = with_blocks(own.model, lambda blocks: [blocks[k] for k in order])
    flow = flow_of(model, own.task, kind="colour")
    assert flow.ends_exact
    if flow.n:
        assert not np.allclose(flow.effects["A"].mean(axis=1), whole.effects["A"].mean(axis=1), atol=1e-3) or (
            flow.gate.value.value != pytest.approx(whole.gate.value.value, abs=1e-3)
        )
    else:
        assert not flow.gate.open
    planted_now = {order.index(block) for block in own.blocks}
    if flow.n:
        _, outside = split(by_block(flow, "departure"), tuple(planted_now))
        assert abs(outside).max() < 0.03


@pytest.mark.parametrize("name", [*FRAMES, *TEXT])
def test_changes_telescope_and_direct_effects_are_late(name: str) -> None:
    flow = flow_of_planted(name)
    curves = {"departure": -flow.effects["A"], "arrival": flow.effects["B"], "reading": flow.effects["all"]}
    for what, curve in curves.items():
        np.testing.assert_allclose(flow.changes[what].sum(axis=0), curve[-1] - curve[0], rtol=0, atol=1e-9)
    # After the last block nothing is left to be indirect.
    np.testing.assert_allclose(flow.updates["whole"][-1], flow.updates["direct"][-1], rtol=0, atol=1e-6)
