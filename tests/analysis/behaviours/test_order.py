"""Perception before action on probes and chains that were made up, so that every onset is known; no model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from dit_lens.analysis.behaviours import BehaviourConfig, Chain, PerceptionOrder
from dit_lens.analysis.behaviours.order import _of_lens, _of_probes
from dit_lens.analysis.behaviours.probe_rows import split_weights
from dit_lens.probing.fit.scores import GroupedScores
from dit_lens.probing.probe_grid import Probe, ProbeGrid
from dit_lens.results.intervals import Interval
from dit_lens.tasks import Maze
from tests.analysis.returned import check_result

CONFIG = BehaviourConfig()
INSTANCES, ROWS = 96, 16
ENDS = ("start", "goal")

Scores = Callable[[np.random.Generator, float], GroupedScores]


def drawn(rng: np.random.Generator, accuracy: float) -> GroupedScores:
    """Probes that answer ``ROWS`` rows of each of two classes with this accuracy, in every instance."""
    right = rng.binomial(ROWS, accuracy, (INSTANCES, 2))
    return GroupedScores(np.concatenate([right, np.full((INSTANCES, 2), ROWS)], axis=1).astype(float), False)


def exact(rng: np.random.Generator, accuracy: float) -> GroupedScores:
    """Probes of just this accuracy on either half of the instances or all; controls, at .5, that no draw changes."""
    spread = rng.permutation(np.repeat([-0.1, 0.1], INSTANCES // 4)) if accuracy != 0.5 else np.zeros(INSTANCES // 2)
    right = np.zeros((INSTANCES, 2))
    chosen = split_weights(INSTANCES, 1, CONFIG.seed)[0][0] > 0
    right[chosen] = right[~chosen] = ROWS * (accuracy + spread)[:, None]
    return GroupedScores(np.concatenate([right, np.full((INSTANCES, 2), float(ROWS))], axis=1), False)


def grid_of(accuracies: Mapping[str, Sequence[float]], scores: Scores = drawn) -> ProbeGrid:
    """One layer whose probes have these accuracies, step by step, beside controls at chance."""
    grid = ProbeGrid(INSTANCES, {name: "action" if name == "on_path" else "perception" for name in accuracies})
    rng = np.random.default_rng(0)
    for name, of_label in accuracies.items():
        for step, accuracy in enumerate(of_label):
            site = f"s{step:02d}/cond/L00/resid/video"
            grid.scores[Probe(site, name)] = scores(rng, accuracy)
            for control in ("shuffled", "input", "position", "random"):
                grid.scores[Probe(site, name, control)] = scores(rng, 0.5)
            grid.sigmas[step], grid.experts[step] = 1 - step / 10, "high" if step < 2 else "low"
    return grid


def order_of(ends: Sequence[float], path: Sequence[float], scores: Scores = drawn) -> PerceptionOrder:
    grid = grid_of(dict.fromkeys(ENDS, ends) | {"on_path": path}, scores)
    sigmas = {step: float(sigma or 0) for step, sigma in grid.sigmas.items()}
    onsets, layers, found = _of_probes(grid, "on_path", CONFIG)
    return PerceptionOrder("made up", CONFIG, sigmas, grid.experts, tuple(onsets), tuple(layers), found, INSTANCES)


def drawn_order(steps: str) -> PerceptionOrder:
    """Of a chain that draws nothing ("."), the board ("b"), or the whole answer ("a") at each step."""
    task = Maze(4, goals=2)
    mazes = task.sample(4, seed=1)
    truth = task.render(mazes)
    shown = {".": np.full_like(truth, 238), "b": np.repeat(truth[:, :1], truth.shape[1], axis=1), "a": truth}
    sigmas, experts = (
        tuple(np.linspace(1, 0.1, len(steps))),
        tuple("high" if s < 2 else "low" for s in range(len(steps))),
    )
    chain = Chain(task, mazes, np.stack([shown[s] for s in steps]), sigmas, experts)
    onsets, curves = _of_lens(chain, ["start", "goal_red", "goal_purple"], CONFIG)
    return PerceptionOrder(
        "drawn", CONFIG, dict(enumerate(sigmas)), dict(enumerate(experts)), tuple(onsets), (), curves, 4
    )


def steps_of(order: PerceptionOrder, measure: str, label: str = "on_path") -> Interval:
    return order.onset(label, measure).step


def verdicts(order: PerceptionOrder) -> list[str]:
    return [order.verdict(measure) for measure in ("decodable", "half")]


def test_ends_that_are_early_and_a_path_that_is_late_are_in_order() -> None:
    order = order_of([0.9] * 5, [0.5, 0.5, 0.5, 0.9, 0.9])
    for measure in ("decodable", "half"):
        assert steps_of(order, measure) == (3, 3, 3)
        assert steps_of(order, measure, "start") == (0, 0, 0)
        assert order.before(measure) == 1
    assert verdicts(order) == ["shown", "shown"]


def test_what_comes_all_at_once_is_in_no_order() -> None:
    for steps in ([0.9] * 4, [0.5, 0.5, 0.9, 0.9]):
        order = order_of(steps, steps)
        assert verdicts(order) == ["not shown", "not shown"]
        assert steps_of(order, "decodable") == steps_of(order, "decodable", "goal")


def test_a_path_before_its_ends_is_in_no_order() -> None:
    order = order_of([0.5, 0.5, 0.5, 0.9], [0.9] * 4)
    assert verdicts(order) == ["not shown", "not shown"]
    assert order.before("decodable") == order.before("half") == 0


def test_a_path_that_never_comes_is_a_third_outcome() -> None:
    order = order_of([0.9] * 4, [0.5] * 4)
    for measure in ("decodable", "half"):
        assert steps_of(order, measure) == (np.inf, np.inf, np.inf)
        assert order.before(measure) == 0
        assert not order.shown(measure)
    assert verdicts(order) == ["path never decodable", "path not decodable at the last step"]
    path = order.table.query("label == 'on_path' and measure.str.startswith('onset')")
    assert len(path) == 2
    assert np.isinf(path["value"]).all()


def test_a_path_that_comes_in_some_replicates_alone_is_not_shown() -> None:
    order = order_of([0.9] * 4, [0.5, 0.5, 0.5, 0.58])
    assert 0.1 < order.before("decodable") < 0.975
    assert not order.shown("decodable")
    low, high = steps_of(order, "decodable")[1:]
    assert (low, high) == (3, np.inf)


@pytest.mark.parametrize(("weak", "truth"), [(0.53, 6), (0.55, 6), (0.56, None), (0.57, None), (0.6, 1)])
def test_an_onset_lies_within_its_interval(weak: float, truth: int | None) -> None:
    """Steps that are all about at the threshold: the first that passes is early in nearly every replicate."""
    order = order_of([0.9] * 7, [0.5, *[weak] * 5, 0.9])
    table = order.table[order.table["measure"].str.startswith("onset")]
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    _, low, high = steps_of(order, "decodable")
    # So near to the threshold that the controls' luck decides: nothing is asked.
    assert truth is None or low <= truth <= high


def test_steps_that_are_all_but_there_do_not_draw_the_interval_away_from_the_onset() -> None:
    """In nearly every replicate one of ten steps of .095 is above .1 by chance."""
    order = order_of([0.9] * 12, [0.5, *[0.5475] * 10, 0.9], exact)
    assert steps_of(order, "decodable") == (11, 1, 11)
    path = next(o for o in order.onsets if (o.label, o.measure) == ("on_path", "decodable"))
    assert np.quantile(path.replicates[1:], 0.975) < 11


def test_the_estimate_asks_its_value_as_the_replicates_do() -> None:
    order = order_of([0.9] * 12, [0.5, *[0.5525] * 10, 0.9], exact)
    assert steps_of(order, "decodable") == (1, 1, 11)


def test_an_order_of_the_replicates_alone_is_not_shown() -> None:
    order = order_of([0.5, *[0.5475] * 12, 0.9], [*[0.5] * 13, 0.9], exact)
    assert steps_of(order, "decodable")[0] == steps_of(order, "decodable", "start")[0] == 13
    assert order.before("decodable") > 0.975
    assert not order.shown("decodable")


def test_the_table_tells_sigma_and_expert_of_every_step(tmp_path: Path) -> None:
    order = order_of([0.9] * 5, [0.5, 0.5, 0.5, 0.9, 0.9])
    path = order.table.query("label == 'on_path' and measure == 'excess'")
    assert path["step"].tolist() == [0, 1, 2, 3, 4]
    assert path["sigma"].tolist() == pytest.approx([1, 0.9, 0.8, 0.7, 0.6])
    assert path["expert"].tolist() == ["high", "high", "low", "low", "low"]
    check_result(order, tmp_path)
    assert "half: shown" in str(order)
    drawn = drawn_order(".bba").table.query("measure == 'onset of drawn'").set_index("label")["value"]
    assert drawn.to_dict() == {"start": 1, "goal_red": 1, "goal_purple": 1, "on_path": 3}


@pytest.mark.parametrize(
    ("steps", "verdict"), [(".bba", "shown"), (".bbb", "path never drawn"), ("aaa", "not shown"), (".aa", "not shown")]
)
def test_what_is_drawn_is_in_order_only_where_the_path_is_drawn_too(steps: str, verdict: str) -> None:
    order = drawn_order(steps)
    assert order.verdict("drawn") == verdict
    assert order.shown("drawn") == (verdict == "shown")
    assert order.before("drawn") == (verdict == "shown")
