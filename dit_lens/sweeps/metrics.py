"""What is measured in every cell: on the clean estimate of one denoising step, or on the frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dit_lens.errors import EvidenceError, InputError
from dit_lens.files.video import Video
from dit_lens.model import VideoDiT
from dit_lens.results.arrays import Floats
from dit_lens.sites.geometry import Geometry
from dit_lens.tasks.base import Pair, Task
from dit_lens.tasks.evidence import answer_masks, declares, on_grid, require, scores_of, show_answer


@dataclass(frozen=True)
class Metric:
    """A number for every row of a cell.

    Attributes
    ----------
    name : str
    of : "x0hat" or "frames"
        The clean estimate of the last step that a cell's intervention touches, for which no later step is computed; or
        the frames of the finished video.
    function : callable
        Of "x0hat": from a `Moved` of R rows; of "frames": from frames, uint8 (R, T, height, width, 3), and the R rows'
        instances. It returns R finite numbers.
    pairs : bool
        Whether it needs the other side of a pair.
    layer : int, optional
        Of "x0hat": the estimate as the depth lens reads it from the residual stream after this layer, in the branch
        "cond", instead of the model's own.
    branch : str, optional
        Of "x0hat": the estimate of this branch's own prediction, instead of that of all branches combined.
    """

    name: str
    of: Literal["x0hat", "frames"]
    function: Callable[..., Any]
    pairs: bool = False
    layer: int | None = None
    branch: str | None = None

    def __post_init__(self) -> None:
        if self.of not in ("x0hat", "frames") or (self.reads is not None and self.of != "x0hat"):
            raise InputError(
                f"Metric({self.name!r}, of={self.of!r}, layer={self.layer}, branch={self.branch!r}): of is 'x0hat' or "
                "'frames', layer and branch for x0hat"
            )
        if self.layer is not None and self.branch is not None:
            raise InputError(f"Metric({self.name!r}): the estimate at a layer is of the branch 'cond'; omit branch=")

    @property
    def reads(self) -> int | str | None:
        """Which clean estimate: at a layer, of a branch, or the model's own."""
        return self.layer if self.layer is not None else self.branch

    def __call__(self, *given: Any, rows: int) -> Floats:
        """The numbers, checked.

        Raises
        ------
        InputError
            Anything but ``rows`` finite numbers.
        """
        before = _versions(given)
        found = self.function(*given)
        if _versions(given) != before:
            raise InputError(
                f"metric {self.name!r} changed what it was given in place; make a new tensor (x - y, not x -= y)"
            )
        found = found.detach().double().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
        fits = found.shape == (rows,) and found.dtype.kind in "biuf"
        if not fits or not np.isfinite(found).all():
            got = "NaN or infinity" if fits else f"{found.dtype} {found.shape}"
            raise InputError(
                f"metric {self.name!r} returned {got}; it must return {rows} finite numbers, one for each row"
            )
        return found.astype(np.float64)


def _versions(given: Sequence[Any]) -> list[int]:
    """How often the estimates that a metric is given were changed, by torch's count."""
    moved = [one for one in given if isinstance(one, Moved)]
    return [x._version for one in moved for x in (one.x0hat, one.clean) if not x.is_inference()]


@dataclass(frozen=True, eq=False)
class Sides:
    """The two sides of P pairs as 2 P rows: each counterfactual follows its original, so row r's partner is r ^ 1."""

    model: VideoDiT
    task: Task
    pairs: tuple[Pair, ...]
    geometry: Geometry

    @property
    def partners(self) -> list[int]:
        return [row ^ 1 for row in range(2 * len(self.pairs))]

    def mask(self, like: Tensor) -> Tensor:
        """Where right answers differ, on every latent frame but the first: (2 P, 1, F, H, W), as ``like``.

        Of a task without answer masks everywhere but in the first frame, and of a video of one frame everywhere.
        """
        mask = torch.zeros(len(like), 1, *like.shape[2:], dtype=like.dtype, device=like.device)
        later = mask[:, :, 1:] if like.shape[2] > 1 else mask
        if not declares(self.task, "answer_mask"):
            later[:] = 1
            return mask
        height, width = like.shape[-2:]
        pixels = self.geometry.pixels
        picture = (height, width) if pixels is None else (pixels.height, pixels.width)
        cells = on_grid(self.task, answer_masks(self.task, self.pairs, who="a sweep"), (height, width), picture)
        later[:, 0] = torch.from_numpy(cells).to(mask).repeat_interleave(2, dim=0)[:, None]
        return mask

    @cached_property
    def truth(self) -> Tensor:
        """The way from the truth of each row to its partner's, encoded by the VAE: (2 P, C, F, H, W)."""
        rows = [side for pair in self.pairs for side in pair]
        encoded = self.model.encode(require(self.task, "render", who="projection").render(rows))
        way: Tensor = encoded[self.partners] - encoded
        return way


@dataclass(frozen=True, eq=False)
class Moved:
    """The clean estimate of one step in a cell, beside the same rows untouched.

    Attributes
    ----------
    x0hat, clean : Tensor of shape (R, C, F, H, W)
        In the cell, and with nothing done.
    donor : Tensor of shape (R, C, F, H, W), or None
        ``clean`` of each row's partner in its pair.
    instances : tuple of R
    sides : Sides or None
        The pairs, where rows are sides of pairs.
    first : int
        Rows of the sweep before these.
    """

    x0hat: Tensor
    clean: Tensor
    instances: tuple[Any, ...]
    donor: Tensor | None = None
    sides: Sides | None = None
    first: int = 0


def distance(moved: Moved) -> Tensor:
    """How far x0hat moved, as a share of its own norm: (R,)."""
    own = moved.clean.double().flatten(1).norm(dim=1)
    found: Tensor = (moved.x0hat.double() - moved.clean.double()).flatten(1).norm(dim=1) / own
    return found


def share(moved: Moved, *, of: int = 0) -> Tensor:
    """How far x0hat moved of the way to the donor's, where right answers differ: (R,).

    Parameters
    ----------
    of : int
        Along the way of the pair so many places before it in the batch, counted round: a null for ``of`` > 0.

    Raises
    ------
    EvidenceError
        A pair whose estimates, or right answers, do not differ.
    """
    donor, sides = _needed(moved)
    if of >= len(sides.pairs):
        raise EvidenceError(f"share(of={of}) reads another pair's way; there are {len(sides.pairs)} pairs at once")
    way = (donor - moved.clean).double() * sides.mask(moved.clean)
    return _along(moved, way.roll(2 * of, dims=0), "whose clean estimates do not differ where the answers do")


def projection(moved: Moved) -> Tensor:
    """How far x0hat moved along the way from the recipient's truth to the donor's, where right answers differ: (R,).

    In units of that way: a donor that is wholly right, taken whole, moves it by 1. The cell "donor" says how far the
    donors at hand do.

    Raises
    ------
    EvidenceError
        A task without true videos, or a pair whose truths do not differ.
    """
    _, sides = _needed(moved)
    way = sides.truth.to(moved.clean.device).double() * sides.mask(moved.clean)
    return _along(moved, way, "whose true videos do not differ where the answers do")


def _needed(moved: Moved) -> tuple[Tensor, Sides]:
    if moved.donor is None or moved.sides is None:
        raise EvidenceError("this metric needs pairs: give instances=task.pairs(n), or patch a 'pair'")
    return moved.donor, moved.sides


def _along(moved: Moved, way: Tensor, why: str) -> Tensor:
    path, step = way.flatten(1), (moved.x0hat.double() - moved.clean.double()).flatten(1)
    length = path.square().sum(dim=1)
    if not length.all():
        raise EvidenceError(f"the pair of row {int((length == 0).nonzero()[0])} is one {why}: leave it out")
    found: Tensor = (step * path).sum(dim=1) / length
    return found


@dataclass(frozen=True)
class _Scored:
    """A number of the task's scores of each video, or whether it shows its partner's answer."""

    task: Task
    what: str

    def __call__(self, frames: Video, instances: Sequence[Any]) -> Floats:
        if self.what == "donor_answer":
            partners = [instances[row ^ 1] for row in range(len(instances))]
            return show_answer(self.task, frames, partners, who="donor_answer").astype(np.float64)
        scores = scores_of(self.task, frames, instances, who=self.what)
        return np.asarray(scores.strict if self.what == "strict" else scores.total, dtype=np.float64)


#: Metrics that are known by their names.
NAMES = ("projection", "share", "distance", "strict", "score", "donor_answer")


def metrics_of(given: str | Metric | Callable[..., Any] | Sequence[Any], task: Task) -> tuple[Metric, ...]:
    """Metrics from names, metrics, and functions of frames and instances.

    Raises
    ------
    InputError
        None, an unknown name, or two of one name.
    """
    listed = [given] if isinstance(given, str | Metric) or callable(given) else list(given)
    found = tuple(_metric(one, task) for one in listed)
    names = [metric.name for metric in found]
    if not names or len(set(names)) < len(names):
        raise InputError(f"metrics {', '.join(names) or 'none'}: give at least one, each under a name of its own")
    return found


def _metric(given: Any, task: Task) -> Metric:
    if isinstance(given, Metric):
        return given
    if isinstance(given, str) and given in ("projection", "share", "distance"):
        function = {"projection": projection, "share": share, "distance": distance}[given]
        return Metric(given, "x0hat", function, pairs=given != "distance")
    if isinstance(given, str) and given in NAMES:
        return Metric(given, "frames", _Scored(task, given), pairs=given == "donor_answer")
    if callable(given):
        return Metric(getattr(given, "__name__", type(given).__name__), "frames", given)
    raise InputError(
        f"unknown metric {given!r:.80}; one of {', '.join(NAMES)}, a Metric, or a function of frames and instances"
    )
