"""A task declares what it has, and whoever needs what it lacks, or has in another form, refuses it by one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.analysis.success import evaluate
from dit_lens.errors import EvidenceError
from dit_lens.tasks import EVIDENCE, TASKS, Label, Maze, Pair, Sort, Task, declared, declares, require, task_named
from dit_lens.tasks.answers import Answers, agreement
from dit_lens.tasks.draw import draw_instances, draw_pairs
from dit_lens.tasks.evidence import (
    answer_masks,
    answers_of,
    labels_by_role,
    labels_of,
    on_grid,
    rules_of_answer,
    scores_of,
    show_answer,
)

NAMES = [*TASKS, "two-goal maze:4"]
#: What every shipped task declares; the rest is in `MORE`. Dataclasses need no settings, and the features that need no
#: search come later.
ALL = set(EVIDENCE) - {"main_labels", "read_given", "alive", "settings", "search_free"}
MORE = {
    "maze": {"main_labels", "read_given", "alive"},
    "two-goal maze:4": {"main_labels", "read_given", "alive"},
    "move": set(),
    "pattern": {"alive"},
    "permanence": {"alive"},
    "sort": {"alive"},
    "tictactoe": {"alive"},
}
KINDS = [(name, kind) for name in NAMES for kind in task_named(name).kinds]
#: Kinds of pairs whose true videos end alike but for what was given: nothing is the answer's alone.
SAME_END = {("pattern", "gap"), ("sort", "bars"), ("move", "ring")}


@dataclass
class Riddle(Task):
    """A task of which a test says what it declares."""

    name = "riddle"
    has: dict[str, Any] = field(default_factory=dict)

    def sample(self, count: int, seed: int = 0, split: str = "test") -> list[Any]:
        return ["why?"] * count

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["has"][name]
        except KeyError:
            raise AttributeError(name) from None


def riddle(**has: Any) -> Riddle:
    return Riddle({name: (lambda *_, value=value: value) for name, value in has.items()})


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_task_declares_what_the_table_says_and_is_refused_for_the_rest(name: str) -> None:
    task = task_named(name)
    assert set(declared(task)) == ALL | MORE[name]
    for lacking in set(EVIDENCE) - ALL - MORE[name]:
        with pytest.raises(EvidenceError, match=f"a test needs {lacking} .* task '{task.name}' does not declare it"):
            require(task, "size", lacking, who="a test")
    assert require(task, *declared(task), who="a test") is task


def test_the_page_says_what_every_task_declares() -> None:
    page = (Path(__file__).parents[2] / "docs/tasks.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    told = {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`") in EVIDENCE}
    assert {name: row[0] for name, row in told.items()} == EVIDENCE
    for name, (_, shipped, _, bench) in told.items():
        titles = [task_named(task).title for task in NAMES if declares(task_named(task), name)]
        rest = [title for title in map(lambda task: task_named(task).title, NAMES) if title not in titles]
        every = "all" if not rest else f"all but {', '.join(f'`{title}`' for title in rest)}"
        assert shipped in (every, ", ".join(f"`{title}`" for title in titles)), name
        assert (bench == "yes") == (name in ("render", "scene_labels")), name


def test_a_task_without_evidence_is_refused_by_a_sentence_that_says_what_it_lacks_and_has() -> None:
    with pytest.raises(EvidenceError) as refused:
        require(riddle(labels={}), "labels", "answer_mask", who="patching_sweep")
    assert str(refused.value) == (
        "patching_sweep needs answer_mask (where the right answers of a pair differ); "
        "task 'riddle' does not declare it, it declares labels"
    )
    with pytest.raises(EvidenceError, match="it declares nothing"):
        require(riddle(), "labels", who="a probe")
    assert not declares(Riddle({"alive": None}), "alive")
    assert riddle().title == "riddle"


def test_a_name_that_nobody_declares_is_a_mistake_of_the_asker() -> None:
    with pytest.raises(EvidenceError, match="no task declares answer_masks; there are frames, size"):
        declares(Maze(), "answer_masks")


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_masks_are_where_the_true_answers_differ(name: str, kind: str) -> None:
    task = task_named(name)
    pairs = task.pairs(12, seed=3, kind=kind)
    masks = answer_masks(task, pairs, who="a test")
    assert masks.shape == (12, task.size, task.size)
    assert masks.any() == ((name, kind) not in SAME_END)
    if not isinstance(task, Maze):  # whose answer is every shortest path, not the one that its video shows
        one, other = (task.render([pair[side] for pair in pairs])[:, -1] for side in (0, 1))
        assert not (masks & ~on_cells((one != other).any(axis=-1), task.size)).any()
        assert masks.any(axis=(1, 2)).all() == masks.any()


def on_cells(pixels: Any, size: int) -> Any:
    """Cells of 8 x 8 pixels in which something holds, of pixels (P, height, width)."""
    count, side = pixels.shape[0], pixels.shape[1] // 8
    return pixels.reshape(count, side, 8, side, 8).any(axis=(2, 4))[:, :size, :size]


def test_masks_of_cells_go_to_any_grid_of_the_picture() -> None:
    task = Sort(5)
    mask = np.zeros((1, 5, 5), dtype=bool)
    mask[0, 4, 1] = True
    picture = (48, 48)
    assert np.argwhere(on_grid(task, mask, (6, 6), picture)[0]).tolist() == [[4, 1]]
    assert np.argwhere(on_grid(task, mask, (3, 3), picture)[0]).tolist() == [[2, 0]]
    assert on_grid(task, mask, (12, 12), picture)[0, 8:10, 2:4].all()
    assert on_grid(task, mask, (12, 12), picture).sum() == 4
    pixels = np.zeros((1, 16, 32), dtype=bool)
    pixels[0, 15, 0] = True
    assert np.argwhere(on_grid(riddle(), pixels, (2, 4), (16, 32))[0]).tolist() == [[1, 0]]
    for grid, size in (((2, 4), (8, 32)), ((3, 4), (16, 32))):
        with pytest.raises(EvidenceError, match=r"masks of 16 x 32 pixels do not fit a picture"):
            on_grid(riddle(), pixels, grid, size)


# -- what is declared and is not there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, np.zeros((4, 4)), np.zeros(4, dtype=bool), [[True]]])
def test_masks_that_are_none_are_refused(mask: Any) -> None:
    with pytest.raises(EvidenceError, match=r"task 'riddle' declares answer_mask, which must return bool of shape"):
        answer_masks(riddle(answer_mask=mask), [Pair("a", "b")], who="a test")


def test_masks_of_another_board_or_of_different_sizes_are_refused() -> None:
    class Wrong(Sort):
        def answer_mask(self, pair: Pair) -> Any:
            return np.zeros((3, 3), dtype=bool)

    with pytest.raises(EvidenceError, match=r"must return bool of shape \(4, 4\), not bool of shape \(3, 3\)"):
        answer_masks(Wrong(), Sort().pairs(1), who="a test")
    with pytest.raises(EvidenceError, match="a test needs pairs of task 'sort'; none were given"):
        answer_masks(Sort(), [], who="a test")


def test_readings_and_rules_of_another_form_are_refused() -> None:
    images, marks, yes = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 1, 1), int), np.ones(2, dtype=bool)
    good = Answers(marks, yes, yes)
    assert answers_of(riddle(read_answer=good), images, ["a", "b"], who="a test") is good
    for bad in (None, good._replace(marks=None), good._replace(drawn=yes[:1]), good._replace(right=marks)):
        with pytest.raises(EvidenceError, match="task 'riddle' declares read_answer, which must return"):
            answers_of(riddle(read_answer=bad), images, ["a", "b"], who="a test")
    for rules in (None, {}, {"right": yes}, {"right": np.ones(3)}, {"right": np.array([0.5, 1.5])}):
        with pytest.raises(EvidenceError, match="task 'riddle' declares judge_answer, w"):
            rules_of_answer(riddle(judge_answer=rules), images, ["a", "b"], who="a test")


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_all_labels_of_a_task_with_those_of_what_a_model_drew(name: str) -> None:
    task = task_named(name)
    instances = task.sample(3)
    videos = task.render(instances)
    found = labels_of(task, instances, 5, videos)
    assert set(found) == {*task.labels(instances, 5), *task.scene_labels(instances, 5), "drawn", "steps"}
    marks = task.read_answer(videos[:, -1], instances).marks
    assert np.array_equal(found["drawn"].values, np.repeat(marks[:, None] > 0, 5, axis=1))
    assert task.answer_label in found
    for role in ("perception", "reasoning"):
        names = labels_by_role(task, found, role)
        assert names
        assert all(found[label].role == role for label in names)


def test_main_labels_are_those_that_the_task_names() -> None:
    found = labels_of(Maze(4), Maze(4).sample(1), 5)
    assert labels_by_role(Maze(4), found, "reasoning") == ("on_path", "distance")
    two = Maze(4, goals=2)
    named = labels_by_role(two, labels_of(two, two.sample(1), 5), "perception")
    assert named[-3:] == ("start", "goal_red", "goal_purple")


@pytest.mark.parametrize(
    ("values", "level", "told"),
    [
        (np.zeros(3), None, "2 instances of 5 latent frames need clip values"),
        (np.zeros((2, 4)), None, "need frame values that begin with"),
        (np.zeros((2, 4, 3, 3)), "token", "need token values"),
        (np.zeros((2, 5, 3)), None, "must be a Label of a clip, frame, cell or token"),
    ],
)
def test_labels_of_another_length_are_refused(values: Any, level: Any, told: str) -> None:
    task = riddle(labels={"deep": Label("deep", "reasoning", values, level)})
    with pytest.raises(EvidenceError, match=f"task 'riddle': label 'deep'.*{told}"):
        labels_of(task, ["a", "b"], 5)


def test_a_task_without_labels_is_refused() -> None:
    with pytest.raises(EvidenceError, match="a probe needs labels"):
        labels_of(riddle(), ["a"], 5)
    with pytest.raises(EvidenceError, match="task 'riddle' has no labels"):
        labels_of(riddle(labels={}), ["a"], 5)


# -- whether the answer is shown ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_shown_by_the_last_frame_where_the_task_judges_it(name: str) -> None:
    task = task_named(name)
    instances = task.sample(4)
    videos = task.render(instances)
    # No frame but the last is right: the video is not strictly so.
    videos[:, :-1] = 255 - videos[:, :-1]
    assert show_answer(task, videos, instances, who="a test").all()
    assert not task.score(videos, instances).strict.any()
    assert not show_answer(task, 0 * videos, instances, who="a test").any()


def test_of_a_task_that_judges_no_answers_strict_success_decides() -> None:
    videos: Sequence[Any] = np.zeros((2, 5, 8, 8, 3), np.uint8)
    found = given_scores(strict=np.array([True, False]))
    assert show_answer(riddle(score=found), videos, ["a", "b"], who="a test").tolist() == [True, False]
    with pytest.raises(EvidenceError, match="a test needs score"):
        show_answer(riddle(), videos, ["a", "b"], who="a test")


def test_agreement_is_the_share_of_marked_cells_that_are_marked_alike() -> None:
    one, other = np.array([[[0, 1, 2, 3]]]), np.array([[[0, 1, 3, 0]]])
    assert agreement(one, other).tolist() == [1 / 3]
    assert agreement(one, one).tolist() == [1]
    assert agreement(0 * one, 0 * one).tolist() == [0]


@dataclass
class Given:
    """Scores as a test says them."""

    total: Any
    strict: Any
    rules: Any


def given_scores(**changes: Any) -> Given:
    right = {"total": np.array([0.5, 1.0]), "strict": np.array([False, True]), "rules": {"end": np.array([0.5, 1.0])}}
    return Given(**right | changes)


FRAMES = np.zeros((2, 5, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (None, "which must return scores with rules by name, total and strict, not None"),
        (given_scores(rules=[1.0]), "which must return scores with rules by name"),
        (
            given_scores(strict=np.array([0.75, 1.0])),
            r"whose strict must be bool of shape \(2,\), not float64 of shape",
        ),
        (given_scores(strict=np.array([True])), r"whose strict must be bool of shape \(2,\), not bool of shape \(1,\)"),
        (given_scores(total=np.array([np.nan, 1.0])), "whose total must be 0 to 1"),
        (given_scores(total=np.array([0.5, 1.5])), "whose total must be 0 to 1"),
        (given_scores(total=[0.5, 1.0]), r"whose total must be float of shape \(2,\), not \[0.5, 1.0\]"),
        (given_scores(rules={"end": np.array([1.0])}), r"whose end must be float of shape \(2,\)"),
    ],
)
def test_scores_of_another_form_are_refused(found: Any, told: str) -> None:
    with pytest.raises(EvidenceError, match=f"task 'riddle' declares score, {told}"):
        scores_of(riddle(score=found), FRAMES, ["a", "b"], who="a test")


def test_scores_are_given_back_as_they_are() -> None:
    found = given_scores()
    assert scores_of(riddle(score=found), FRAMES, ["a", "b"], who="a test") is found


def test_what_is_called_must_be_a_method() -> None:
    with pytest.raises(EvidenceError, match="task 'riddle' declares score, which must be a method, not 3"):
        declares(Riddle({"score": 3}), "score")


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (None, "needs a task, such as dl.tasks.Maze.size=4., got None"),
        ("maze", "needs a task, .* got 'maze'"),
        (Maze, r"needs a task, got the class Maze: make one, Maze\(...\)"),
    ],
)
def test_what_is_no_task_is_refused(task: Any, told: str) -> None:
    for ask in (
        lambda: require(task, "score", who="a test"),
        lambda: draw_instances(task, 2, who="a test"),
        lambda: draw_pairs(task, [("a", "b")], who="a test"),
        lambda: evaluate(dl.load_organism("maze"), task, 1),
    ):
        with pytest.raises(EvidenceError, match=told):
            ask()


@pytest.mark.parametrize("given", [True, None, 2.0, "maze"])
def test_instances_are_a_number_or_a_list(given: Any) -> None:
    with pytest.raises(EvidenceError, match=f"a test got instances={given!r}: give a number of them, or a list"):
        draw_instances(Maze(size=4), given, who="a test")
    with pytest.raises(EvidenceError, match=f"a test got pairs={given!r}: give a number of them, or a list"):
        draw_pairs(Maze(size=4), given, who="a test")


@pytest.mark.parametrize("given", [None, [1, 2]])
def test_labels_come_by_name(given: Any) -> None:
    for name in ("labels", "scene_labels"):
        with pytest.raises(EvidenceError, match=f"declares {name}, which must return labels by name, not"):
            labels_of(riddle(**{name: given}), ["a"], 2)


@pytest.mark.parametrize("given", [None, "maze", Maze, []])
def test_whoever_takes_several_tasks_refuses_what_is_none(given: Any) -> None:
    model = dl.load_organism("maze")
    for ask in (dl.evaluate, dl.train_tuned_lens, dl.behaviours.survey):
        with pytest.raises(EvidenceError, match=f"{ask.__name__} needs a task"):
            ask(model, given)
