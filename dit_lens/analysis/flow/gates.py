"""Two gates: whether the model solves the problem, and whether the answer is decided at this step."""

from __future__ import annotations

from dataclasses import dataclass

from dit_lens.display.short import short_repr
from dit_lens.results.arrays import Floats
from dit_lens.results.intervals import Interval, t_interval

#: The lower limit of a pair's movement must be above this share of the way.
LEAST = 0.25
#: A pair that moves less than this share of the way has nothing that an effect could be a share of.
UNDECIDED = 0.1


@dataclass(frozen=True, eq=False)
class Gate:
    """What must hold before a flow says anything.

    Attributes
    ----------
    solves : bool or None
        Whether the two sides of the pairs are solved more often than by videos that cannot have solved them, and both
        of some pair; None where the task scores no videos.
    solved, floor : float
        Strict success of the sides, and of the best such video; NaN where there are none.
    moved : float array of shape (P,)
        How far the whole of the donor moves x0hat at this step, in units of the way between the two right answers at
        the target; mean over both directions.
    unrelated : float array of shape (P,)
        The same along the ways of all other pairs.
    frozen : float array of shape (P,)
        How far a video moves that shows its first frame all along; empty where the task has no true videos.
    """

    solves: bool | None
    solved: float
    floor: float
    moved: Floats
    unrelated: Floats
    frozen: Floats

    __repr__ = short_repr

    @property
    def value(self) -> Interval:
        """Mean movement along the pairs' own ways."""
        return t_interval(self.moved)

    @property
    def decides(self) -> bool:
        """Whether the answer is decided at this step: the second gate."""
        below = [LEAST, *(float(x.mean()) for x in (self.unrelated, self.frozen) if len(x))]
        return bool(self.value.low > max(below))

    @property
    def open(self) -> bool:
        """Whether both gates are; the first one is where nothing is scored."""
        return self.decides and self.solves is not False

    def __str__(self) -> str:
        parts = [f"the donor moves {self.value} of the way"]
        parts += [f"unrelated ways {self.unrelated.mean():.3f}"] if len(self.unrelated) else []
        parts += [f"a frozen first frame {self.frozen.mean():.3f}"] if len(self.frozen) else []
        solved = "nothing scores it" if self.solves is None else f"solved {self.solved:.2f}, floor {self.floor:.2f}"
        return f"gate {'open' if self.open else 'shut: ' + self.why}: {', '.join(parts)}; {solved}"

    @property
    def why(self) -> str:
        """Why a gate is shut; empty where both are open."""
        if self.solves is False:
            return "the model does not solve these pairs" + ("" if self.decides else ", nor is the answer decided here")
        if self.decides:
            return ""
        if len(self.moved) < 2:
            return "one pair alone has no interval; give two at least"
        least = max(LEAST, float(self.unrelated.mean())) if len(self.unrelated) else LEAST
        if len(self.frozen) and self.value.low > least:
            return "a video that repeats its first frame goes as far, so these pairs cannot tell solving from copying"
        return "the answer is not decided at this step"
