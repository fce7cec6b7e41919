"""Inputs with what is known of them, for probes: (inputs, y) as a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dit_lens.tasks.own.arrays import board_size, read_labels, read_split, read_videos, values_of_cells
from dit_lens.tasks.own.inputs import picture_size, read_inputs
from dit_lens.tasks.own.task import Own, Scorer


class Labelled(Own):
    """Inputs of a user's own with labels.

    Parameters
    ----------
    inputs : iterable of B prompts, mappings with "prompt" and "image", or objects with such attributes
    labels : mapping from name to values, or to `Label`
        Of the clip (B,), of latent frames (B, F), or (B, F, n, n): of cells where ``cell`` is given, else of the
        model's tokens. Booleans, classes (whole numbers or strings), or numbers for regression.
    name : str
        For tables and errors.
    truth : uint8 array of shape (B, T, height, width, 3), optional
        The true videos.
    scorer : callable, optional
        Given videos (B, T, height, width, 3) and their inputs it returns B scores, 0 to 1 or booleans.
    cell : int, optional
        Pixels a side of a cell; the n x n cells lie in the upper left of the picture.
    split : sequence of B of "train", "val" and "test", optional
        By default all are "test". Probes that train on one split and test on another need both.

    Raises
    ------
    TaskError
        Inputs of different kinds, or labels, videos or splits that do not fit them.

    Examples
    --------
    >>> from dit_lens.tasks import Labelled, declared
    >>> task = Labelled(["a red ball", "a blue ball"], {"colour": ["red", "blue"]})
    >>> declared(task)
    ('scene_labels', 'settings')
    >>> task.scene_labels(task.sample(2), latent_frames=5)["colour"].names
    ('blue', 'red')
    """

    def __init__(
        self,
        inputs: Iterable[Any],
        labels: Mapping[str, Any],
        *,
        name: str = "labelled",
        truth: Any = None,
        scorer: Scorer | None = None,
        cell: int | None = None,
        split: Sequence[str] | None = None,
    ) -> None:
        self.name, self.scorer, self.cell = name, scorer, cell
        self.inputs = read_inputs(inputs, name)
        lead = (len(self.inputs),)
        self.split = read_split(split, len(self.inputs), name)
        self.truth = read_videos(truth, lead, picture_size(self.inputs), name)
        self.given = read_labels(labels, lead, cell, name)
        self.size = board_size(cell, values_of_cells(self.given), self.picture, name)
