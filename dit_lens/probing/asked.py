"""What the outputs of trained probes answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import InputError, MadeForAnother


@dataclass(frozen=True)
class Asked:
    """What some of a probe's outputs answer.

    Attributes
    ----------
    control : "none" or "shuffled"
    kind : "binary" (one output, above 0 means the second class), "classes" (the largest wins), or "regression"
    classes : tuple
        The label's values; empty for regression.
    names : tuple of str
        What each class is called.
    start, stop : int
        The outputs.
    """

    name: str
    role: str
    control: str
    kind: str
    classes: tuple[Any, ...]
    names: tuple[str, ...]
    start: int
    stop: int

    def answers(self, scores: Tensor) -> Tensor:
        """Scores (..., K) to numbers of classes or values (...)."""
        own = scores[..., self.start : self.stop]
        if self.kind == "classes":
            return own.argmax(-1)
        return own[..., 0] if self.kind == "regression" else (own[..., 0] > 0).long()

    def codes(self, values: NDArray[Any]) -> NDArray[Any]:
        """A label's values as numbers of classes, -1 where they are negative; values of a regression as they are.

        Raises
        ------
        MadeForAnother
            A class that the probe has not been trained on.
        """
        if self.kind == "regression":
            return values.astype(np.float64)
        numbers, known = values.astype(np.int64), np.array([int(c) for c in self.classes])
        if len(missing := np.setdiff1d(numbers[numbers >= 0], known)):
            raise MadeForAnother(
                f"the probes of {self.name!r} were trained on the classes {', '.join(self.names)}; there is also "
                f"{', '.join(map(str, missing))}"
            )
        return np.where(numbers >= 0, np.searchsorted(known, numbers), -1)

    def number(self, answer: Any) -> int:
        """The class that an answer names, or whose value it is.

        Raises
        ------
        InputError
        """
        if answer in self.names:
            return self.names.index(answer)
        if answer in self.classes:
            return self.classes.index(answer)
        raise InputError(f"{self.name!r} has the classes {', '.join(self.names)}; answer={answer!r} is none of them")
