"""Every task goes through every analysis, or is refused by one sentence that says what it does not declare."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dit_lens as dl
from dit_lens.analysis.localization.lens_curves import lens_curves
from dit_lens.analysis.localization.result import LocalizeConfig
from dit_lens.errors import EvidenceError
from dit_lens.organisms.build import OrganismConfig, random_pipeline
from dit_lens.results.result import Result
from dit_lens.tasks.vbvr.task import VbvrTask

SMALL = LocalizeConfig(
    probe_instances=60, folds=2, pairs=3, lens_instances=4, flip_pairs=1, probe_steps=[0], replicates=20
)
FEW = dl.behaviours.BehaviourConfig(
    memory_instances=36, order_instances=12, chain_instances=3, probe_steps=[0], replicates=20
)


@cache
def model() -> dl.VideoDiT:
    defaults = {"num_frames": 9, "max_sequence_length": 16, "num_inference_steps": 2}
    return dl.VideoDiT(random_pipeline(OrganismConfig(layers=2)), defaults=defaults)


def of_pairs(**evidence: Any) -> dl.tasks.Pairs:
    """Pairs of a user's own: two pictures each, with what is given of them."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(32)]
    sides = [{"prompt": "draw", "image": picture} for picture in pictures]
    return dl.tasks.Pairs(list(zip(sides[::2], sides[1::2], strict=True)), **evidence)


def with_everything() -> dl.tasks.Pairs:
    masks = np.zeros((16, 32, 32), dtype=bool)
    masks[:, 8:16, 8:16] = True
    return of_pairs(masks=masks, scorer=lambda videos, inputs: np.zeros(len(videos)))


def of_benchmark(folder: Path) -> VbvrTask:
    mazes = dl.tasks.Maze(4).sample(16)
    return VbvrTask(tuple(dl.tasks.vbvr.export(mazes, folder / "bench", "G-900_maze_data-generator")))


TASKS: dict[str, Callable[[Path], Any]] = {
    "maze": lambda _: dl.tasks.Maze(4, lengths=(3, 8)),
    "two-goal maze": lambda _: dl.tasks.Maze(4, goals=2),
    "move": lambda _: dl.tasks.Move(),
    "pattern": lambda _: dl.tasks.Pattern(),
    "permanence": lambda _: dl.tasks.Permanence(),
    "sort": lambda _: dl.tasks.Sort(),
    "tictactoe": lambda _: dl.tasks.TicTacToe(),
    "vbvr": of_benchmark,
    "pairs": lambda _: of_pairs(),
    "pairs with masks and a scorer": lambda _: with_everything(),
}

ANALYSES: dict[str, Callable[[Any], Result]] = {
    "patching_sweep": lambda task: dl.patching_sweep(model(), task, 2, flip_pairs=1),
    "attribution_patching": lambda task: dl.attribution_patching(model(), task, 2, sites=dl.Sites("delta", steps=0)),
    "lens_curves": lambda task: lens_curves(model(), task, 2),
    "localize": lambda task: dl.localize(model(), task, SMALL),
    "evaluate": lambda task: dl.evaluate(model(), task, 2),
    "exchange_prompts": lambda task: dl.exchange_prompts(model(), task, 2),
    "compare_guidance": lambda task: dl.compare_guidance(model(), task, 2, scales=(1, 2)),
    "working_memory": lambda task: dl.behaviours.working_memory(model(), task, FEW),
    "perception_before_action": lambda task: dl.behaviours.perception_before_action(model(), task, FEW),
    "self_correction": lambda task: dl.behaviours.self_correction(model(), task, FEW),
    "self_correction, strict": lambda task: dl.behaviours.self_correction(model(), task, FEW, judge="strict"),
    "multi_path": lambda task: dl.behaviours.multi_path(model(), task, FEW),
    "probes": lambda task: dl.probe_grid(
        dl.collect(model(), task, 60 if task.name in dl.tasks.TASKS else 16, dl.Readout.of(steps=0)), folds=2
    ),
    "survey": lambda task: dl.behaviours.survey(model(), task, FEW),
}

#: What each analysis cannot do, and what the refusal says. All others work.
_NO_ANSWER = dict.fromkeys(("lens_curves", "self_correction"), "needs read_answer")
_NO_PICTURES = {
    "localize": "needs", "working_memory": "needs", "perception_before_action": "needs", "multi_path": "needs alive"
}  # fmt: skip
_NO_PAIRS_OF_PROMPTS = {"exchange_prompts": "the pictures differ"}
_PUZZLE = {"working_memory": "has no labels", "perception_before_action": "needs read_given"}
REFUSED: dict[str, dict[str, str]] = {
    "maze": {"working_memory": "has no labels"} | _NO_PAIRS_OF_PROMPTS,
    "two-goal maze": {"working_memory": "has no labels"},
    "move": _PUZZLE | {"multi_path": "needs alive"},
    "pattern": _PUZZLE | _NO_PAIRS_OF_PROMPTS,
    "permanence": {"perception_before_action": "needs read_given"},
    "sort": _PUZZLE,
    "tictactoe": _PUZZLE,
    "vbvr": _NO_ANSWER | _NO_PICTURES | {
        "probes": "needs",
        "patching_sweep": "needs", "attribution_patching": "needs", "evaluate": "needs score",
        "exchange_prompts": "needs score",
        "compare_guidance": "needs score", "self_correction, strict": "needs score",
    },
    "pairs": _NO_ANSWER | _NO_PICTURES | {
        "probes": "needs",
        "patching_sweep": "needs answer_mask", "evaluate": "needs score", "exchange_prompts": "needs score",
        "compare_guidance": "needs score", "self_correction, strict": "needs score",
    },
    "pairs with masks and a scorer": _NO_ANSWER | _NO_PICTURES | _NO_PAIRS_OF_PROMPTS | {"probes": "needs"},
}  # fmt: skip


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("name", TASKS)
def test_a_task_goes_through_or_is_refused_by_a_sentence(name: str, analysis: str, tmp_path: Path) -> None:
    task = TASKS[name](tmp_path)
    said = REFUSED[name].get(analysis)
    if said is None:
        result = ANALYSES[analysis](task)
        assert set(result.table.columns) >= {"measure", "value", "low", "high", "n"}
        assert str(result)
        assert json.dumps(result.to_json(), allow_nan=False)
        if len(result.table):  # a survey that skipped everything has nothing to draw
            result.plot()
        return
    with pytest.raises(EvidenceError, match=said) as refusal:
        ANALYSES[analysis](task)
    assert "\n" not in str(refusal.value)


def test_labels_that_no_probe_read_are_no_part_of_a_role(tmp_path: Path) -> None:
    result = dl.localize(model(), dl.tasks.Sort(), SMALL)  # every bar is in its place in the last latent frame
    assert "inverted" not in (*result.labels["reasoning"], *result.probes.labels)
    assert result.report(tmp_path / "report.html").exists()


def test_what_a_survey_skips_is_said() -> None:
    found = dl.behaviours.survey(model(), with_everything(), replace(FEW, chain_instances=4))
    assert {behaviour for behaviour, *_ in found.skipped} == {
        "working memory", "perception before action", "self-correction judged by answer", "multi-path"
    }  # fmt: skip
    assert set(found.correction) == {("pairs", "strict")}
