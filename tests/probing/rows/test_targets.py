"""Labels of cells, frames and clips, and how they become values of rows, against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import EvidenceError
from dit_lens.probing.rows.rows import POOLS, Rows
from dit_lens.probing.rows.targets import targets_of
from dit_lens.probing.rows.words import Words
from dit_lens.sites.geometry import Geometry, Pixels
from dit_lens.tasks import TASKS, Label, Labelled, Permanence
from dit_lens.tasks.evidence import labels_of

SMALL: dict[str, Any] = {"maze": {"size": 4}, "tictactoe": {"size": 3}}


def geometry(grid: tuple[int, int, int], side: int = 32, frames: int = 5, temporal: int = 2, **more: Any) -> Geometry:
    """Two pixel frames to a latent frame after the first."""
    latent = (4, *more.pop("latent", grid))
    return Geometry(
        3, 4, ("cond",), grid, shapes={"latents": latent}, pixels=Pixels(frames, side, side, temporal, **more)
    )


class Checkers:
    """A task of 4 x 4 cells whose labels say where a cell is."""

    name, size, cell, frames = "checkers", 4, 8, 5

    def labels(self, instances: Any, latent_frames: int) -> dict[str, Label]:
        number = np.arange(16.0).reshape(4, 4) + 100 * np.arange(latent_frames)[:, None, None]
        values = np.stack([number] * len(instances))
        found = {"number": values, "is_first": values % 100 == 0, "class": values.astype(int) % 4}
        return {name: Label(name, "perception", v) for name, v in found.items()}


# -- labels of the tasks


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_labels_of_the_clip_and_of_frames_where_something_moves(name: str) -> None:
    task = TASKS[name](**SMALL.get(name, {}))
    found = labels_of(task, task.sample(12), 5)
    shapes = {"clip": (12,), "frame": (12, 5), "cell": (12, 5, task.size, task.size)}
    for label in found.values():
        assert label.values.shape == shapes[str(label.level)]
        assert label.role in ("perception", "reasoning")
        if label.names:
            assert set(np.unique(label.values)) <= set(range(len(label.names)))
    assert found["steps"].is_regression
    levels = {label.level for label in found.values()}
    assert {"clip", "cell"} <= levels
    assert ("frame" in levels) == (name not in ("pattern", "tictactoe"))


def test_labels_of_a_hidden_object_by_hand() -> None:
    one = next(i for i in Permanence().sample(20) if i.variables["out"])
    found = Permanence().scene_labels([one], 5)
    mover = one.variables["mover"]
    assert found["row"].values[0] == one.variables["rows"][mover]
    assert found["colour"].names[found["colour"].values[0]] in one.answer
    assert found["shape"].names[found["shape"].values[0]] in one.answer
    assert found["out"].values[0]
    # A column every second frame: 0 0 1 1 2 2 3 3 3, of which latent frames after the first hold two each.
    assert found["column"].values[0].tolist() == [0, 0.5, 1.5, 2.5, 3]
    assert found["is_hidden"].values[0].tolist() == [False, True, True, True, False]


def test_labels_of_the_walk_through_a_maze_by_hand() -> None:
    maze = dl.tasks.Maze(5).sample(1)[0]
    found = dl.tasks.Maze(5).scene_labels([maze], 5)
    cells = [divmod(maze.path[min(2 * t, maze.length)], 5) for t in range(9)]
    rows = [cells[0][0]] + [(cells[t][0] + cells[t + 1][0]) / 2 for t in (1, 3, 5, 7)]
    assert found["agent_row"].values[0].tolist() == rows
    step = maze.path[1] - maze.path[0]
    assert (
        found["first_move"].names[found["first_move"].values[0]] == {1: "right", 5: "down", -1: "left", -5: "up"}[step]
    )
    assert "to_purple" not in found
    two = dl.tasks.Maze(4, goals=2).sample(6)
    named = dl.tasks.Maze(4, goals=2).scene_labels(two, 5)["to_purple"].values
    assert named.tolist() == [m.variables["named"] == "purple" for m in two]


def test_the_bars_that_are_left_to_sort_are_counted_down() -> None:
    task = dl.tasks.Sort(4)
    problem = task.sample(1)[0]
    left = task.scene_labels([problem], 9)["inversions"].values[0]
    assert left.tolist() == [max(0, problem.steps - t) for t in range(9)]


# -- rows


def test_a_row_is_a_cell_in_reading_order() -> None:
    rows = Rows.of(geometry((3, 4, 4)), Checkers(), "cell", dl.Tokens(frames=[0, 2]))
    label = Checkers().labels([0], 3)["number"]
    assert rows.targets(label)[0].tolist() == [*range(16), *range(200, 216)]
    marked = torch.arange(48.0).reshape(1, 3, 4, 4, 1)
    assert rows.features(marked)[0, :, 0].tolist() == [*range(16), *range(32, 48)]
    assert np.array_equal(rows.positions(), np.eye(32))


def test_a_cell_of_several_tokens_is_their_mean() -> None:
    rows = Rows.of(geometry((3, 8, 8)), Checkers(), "cell", dl.Tokens(frames=0))
    tokens = torch.arange(64.0).reshape(1, 1, 8, 8, 1).expand(1, 3, 8, 8, 1)
    expected = tokens[0, 0, :, :, 0].unflatten(0, (4, 2)).unflatten(2, (4, 2)).mean((1, 3))
    assert torch.equal(rows.features(tokens)[0, :, 0], expected.flatten())


def test_a_token_of_several_cells_takes_what_is_in_its_pixels() -> None:
    given = geometry((3, 2, 2), latent=(3, 4, 4))
    with pytest.raises(EvidenceError, match="level='token'"):
        Rows.of(given, Checkers(), "cell")
    rows, labels = Rows.of(given, Checkers(), "token", dl.Tokens(frames=0)), Checkers().labels([0], 3)
    assert rows.targets(labels["number"])[0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert rows.targets(labels["is_first"])[0].tolist() == [True, False, False, False]
    assert rows.targets(labels["class"])[0].tolist() == [0, 2, 0, 2]
    latent = torch.arange(2 * 16.0).reshape(1, 2, 1, 4, 4).expand(1, 2, 3, 4, 4)
    # The upper right token is made of columns 2 and 3 of rows 0 and 1, in both channels.
    assert sorted(rows.inputs(latent)[0, 1].tolist()) == [2, 3, 6, 7, 18, 19, 22, 23]


def test_a_token_that_lies_across_cells_weighs_them_by_area() -> None:
    class Three(Checkers):
        size = 3

        def labels(self, instances: Any, latent_frames: int) -> dict[str, Label]:
            values = np.zeros((1, latent_frames, 3, 3))
            values[..., :, 1] = 1
            return {"column": Label("column", "perception", values)}

    # Tokens of 12 pixels on cells of 8: the first holds cell 0 and half of cell 1.
    rows = Rows.of(geometry((3, 2, 2), side=24), Three(), "token", dl.Tokens(frames=0))
    assert rows.targets(Three().labels([0], 3)["column"])[0].tolist() == pytest.approx([1 / 3] * 4)


def test_frames_of_a_token_that_holds_two_and_padding_in_front() -> None:
    """As in CogVideoX 1.5: 3 latent frames of video behind one of padding, two to a token."""
    given = geometry((2, 4, 4), latent=(4, 4, 4), padding=1)
    rows, label = Rows.of(given, Checkers(), "cell"), Checkers().labels([0], 3)["number"]
    assert rows.latent_frames == 3
    assert rows.targets(label)[0].reshape(2, 16)[:, 0].tolist() == [0, 150]


def test_coarser_labels_go_to_all_rows_and_finer_ones_are_refused() -> None:
    clip, frame = (
        Label("clip", "reasoning", np.array([7, 8])),
        Label("f", "reasoning", np.array([[1.0, 2, 3], [4, 5, 6]])),
    )
    cells = Rows.of(geometry((3, 4, 4)), Checkers(), "cell", dl.Tokens(frames=[1, 2]))
    assert (cells.targets(clip) == [[7], [8]]).all()
    assert cells.targets(frame)[1].tolist() == [5] * 16 + [6] * 16
    frames = Rows.of(geometry((3, 4, 4)), Checkers(), "frame")
    assert frames.targets(frame).tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(EvidenceError, match="'number' is of the cell and cannot be asked of each frame"):
        frames.targets(Checkers().labels([0, 1], 3)["number"])


def test_frames_and_clips_are_pooled_over_their_own_tokens() -> None:
    activation = torch.randn(2, 3, 4, 4, 5)
    frames = Rows.of(geometry((3, 4, 4)), Checkers(), "frame", dl.Tokens(frames=[0, 2]))
    torch.testing.assert_close(frames.features(activation), activation.mean((2, 3))[:, [0, 2]])
    largest = Rows.of(geometry((3, 4, 4)), Checkers(), "clip", pool=POOLS["max"])
    assert torch.equal(largest.features(activation)[:, 0], activation.amax((1, 2, 3)))
    assert largest.positions().tolist() == [[1]]


def test_the_position_is_one_hot_and_of_very_many_rows_of_several_frames_by_pairs() -> None:
    class Large(Checkers):
        size = 40

    one = Rows.of(geometry((3, 40, 40), side=320), Large(), "cell", dl.Tokens(frames=0)).positions()
    np.testing.assert_array_equal(one, np.eye(1600))
    places = Rows.of(geometry((3, 40, 40), side=320), Large(), "cell").positions()
    assert places.shape == (4800, 3 * 40 + 3 * 40 + 40 * 40)
    assert len(np.unique(places, axis=0)) == 4800
    assert (places.sum(1) == 3).all()
    # Whatever holds at places of the picture in all frames, and frame by frame of rows and columns, is linear in them.
    rng = np.random.default_rng(0)
    f, row, column = np.unravel_index(np.arange(4800), (3, 40, 40))
    known = (
        rng.normal(size=(40, 40))[row, column] + rng.normal(size=(3, 40))[f, row] + rng.normal(size=(3, 40))[f, column]
    )
    fitted = places @ np.linalg.lstsq(places, known, rcond=None)[0]
    np.testing.assert_allclose(fitted, known, atol=1e-4)


def test_half_precision_is_read_in_single() -> None:
    rows = Rows.of(geometry((3, 4, 4)), Checkers(), "clip")
    assert rows.features(torch.ones(1, 3, 4, 4, 2, dtype=torch.bfloat16)).dtype == torch.float32


# -- bad input


class Unlabelled:
    """A task that nobody can ask anything."""

    name, size, cell, frames = "unlabelled", 4, 8, 5


class Nothing(Unlabelled):
    name = "nothing"

    def labels(self, instances: Any, latent_frames: int) -> dict[str, Label]:
        return {}


class Broken(Checkers):
    name = "broken"

    def labels(self, instances: Any, latent_frames: int) -> dict[str, Label]:
        found = super().labels(instances, latent_frames)
        found["number"].values[0, -1, 2, 1] = np.nan
        return found


def test_bad_input_is_refused_with_what_is_wrong() -> None:
    given, rows = geometry((3, 4, 4)), Rows.of(geometry((3, 4, 4)), Checkers(), "cell", dl.Tokens(frames=-1))
    for task in (Unlabelled(), Nothing()):
        with pytest.raises(EvidenceError, match=r"has no labels: nothing to ask|a probe needs labels"):
            targets_of(task, [0], rows)
    with pytest.raises(EvidenceError, match="no label colour; it has number, is_first, class"):
        targets_of(Checkers(), [0], rows, ["colour"])
    with pytest.raises(EvidenceError, match="'number' of broken is NaN in 1 rows"):
        targets_of(Broken(), [0], rows)
    with pytest.raises(EvidenceError, match="no labels of each clip; it has some of cell"):
        targets_of(Checkers(), [0], Rows.of(given, Checkers(), "clip"))
    with pytest.raises(EvidenceError, match=r"whole latent frames, Tokens\(frames=...\)"):
        Rows.of(given, Checkers(), "clip", dl.Tokens(rows=(0, 2)))
    with pytest.raises(EvidenceError, match="makes 9 frames and checkers has 5"):
        Rows.of(geometry((3, 4, 4), frames=9), Checkers(), "cell")
    with pytest.raises(EvidenceError, match="leaves the picture"):
        Rows.of(geometry((3, 2, 2), side=16), Checkers(), "cell")


# -- tasks of a user's own, without a board


def own(**labels: Any) -> Labelled:
    return Labelled(["a", "b"], labels)


def test_inputs_with_labels_are_asked_of_clips_frames_and_tokens() -> None:
    given = geometry((3, 2, 4))
    tokens = np.arange(48.0).reshape(2, 3, 2, 4)
    task = own(clip=[0, 1], frame=np.arange(6.0).reshape(2, 3), token=tokens)
    instances = [task.inputs[0], task.inputs[1]]
    for level, count in (("clip", 1), ("frame", 3), ("token", 24)):
        rows = Rows.of(given, task, level)  # type: ignore[arg-type]
        found = targets_of(task, instances, rows)
        assert rows.count == count
        assert list(found) == [level]
        assert rows.features(torch.arange(48.0).reshape(2, 3, 2, 4, 1)).shape == (2, count, 1)
    assert found["token"].values.tolist() == tokens.reshape(2, -1).tolist()
    features = rows.features(torch.tensor(tokens)[..., None])[..., 0]
    assert features.tolist() == found["token"].values.tolist()
    assert targets_of(task, instances, rows, ["clip"])["clip"].values.tolist() == [[0] * 24, [1] * 24]


def test_cells_of_a_task_without_a_board_are_refused() -> None:
    with pytest.raises(EvidenceError, match=r"a probe with level='cell' needs size .* task 'labelled'"):
        Rows.of(geometry((3, 2, 4)), own(y=[0, 1]), "cell")


def test_tokens_of_another_grid_and_cells_of_tokens_are_refused() -> None:
    task = own(token=np.zeros((2, 3, 2, 4)))
    with pytest.raises(EvidenceError, match=r"label 'token' has 2 x 4 values a frame, not one of each token"):
        targets_of(task, [task.inputs[0]], Rows.of(geometry((3, 4, 4)), task, "token"), ["token"])
    board = Label("token", "perception", np.zeros((1, 3, 4, 4)), level="token")
    with pytest.raises(EvidenceError, match="'token' is of the token and cannot be asked of each cell"):
        Rows.of(geometry((3, 4, 4)), Checkers(), "cell").targets(board)


def test_frames_are_compared_where_the_task_says_how_many_it_has() -> None:
    truth = np.zeros((2, 9, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(EvidenceError, match="the model makes 5 frames and labelled has 9"):
        Rows.of(geometry((3, 2, 4)), Labelled(["a", "b"], {"y": [0, 1]}, truth=truth), "clip")


# -- texts


def test_labels_of_a_text_are_of_all_of_it_or_of_its_positions() -> None:
    words, whole = Words("token", 3, 5), Words("clip", 1, 5)
    each = Label("noun", "perception", np.array([[True, False, True], [False, False, True]]), level="token")
    clip = Label("long", "perception", np.array([4, 7]))
    np.testing.assert_array_equal(words.targets(each), each.values)
    assert words.targets(clip).tolist() == [[4] * 3, [7] * 3]
    assert whole.targets(clip).tolist() == [[4], [7]]
    assert np.array_equal(words.positions(), np.eye(3))
    with pytest.raises(EvidenceError, match="'noun' is of 3 positions; 2 are read"):
        Words("token", 2, 5).targets(each)
    with pytest.raises(EvidenceError, match="'noun' is of the token and cannot be asked of a text's clips"):
        whole.targets(each)
    with pytest.raises(EvidenceError, match="'f' is of the frame and cannot be asked of a text's tokens"):
        words.targets(Label("f", "reasoning", np.zeros((2, 5))))


def test_a_task_may_have_labels_of_the_positions_of_a_text() -> None:
    class Nouns(Unlabelled):
        def labels(self, instances: Any, latent_frames: int) -> dict[str, Label]:
            return {"noun": Label("noun", "perception", np.eye(len(instances), 3) > 0, level="token")}

    found = targets_of(Nouns(), [0, 1], Words("token", 3, 5))
    assert found["noun"].values.tolist() == [[True, False, False], [False, True, False]]
