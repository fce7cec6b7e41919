"""Take out what an activation says: zero, a mean, or another row's activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import DonorError, InputError
from dit_lens.interventions.base import At
from dit_lens.interventions.shapes import (
    SIGMA_TOLERANCE,
    channel_axis,
    fitted,
    part_of_donor,
    require_broadcast,
    require_captured,
    require_choice,
    require_rows,
    require_same_tokens,
    require_sigma,
    require_text,
    require_whole,
    row_numbers,
)
from dit_lens.runs.donor import Donor
from dit_lens.runs.inputs import Row
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import MODULATIONS, Site
from dit_lens.sites.sites import Sites

_MODES = ("zero", "mean", "resample")


@dataclass(frozen=True, eq=False)
class Ablate:
    """Replace the activations at ``sites`` by something that does not depend on the row.

    Parameters
    ----------
    sites : Sites
    mode : "zero", "mean" or "resample"
        Zeros; the mean of a reference; or the activation of another row, of the reference or of this run.
    reference : Run, Replay or Tensor, optional
        A run that captured (whole, unnamed) the same sites, or a tensor whose first axis is rows and that broadcasts to
        the selected tokens. The mean needs one; without it "resample" takes the rows of this run.
    rows : tuple of int, optional
        For "mean" the reference's rows that are averaged, all by default; for "resample" the row that each row of this
        run is given.
    over : "rows" or "tokens"
        Whether the mean is over rows alone, which leaves every token its own, or also over the selected tokens.
    shift : int
        For "resample" without ``rows``: row i is given row i + shift, counted round, so that none keeps its own.

    Notes
    -----
    Zeros may lie far from anything that the model has seen, and their effect is then no measure of what the activation
    said. The mean keeps what all rows share (mean ablation: Wang et al. 2022, arXiv 2211.00593). Another row's
    activation is one that does occur (resample ablation: Chan et al. 2022, "Causal scrubbing"; the methods are compared
    in Zhang & Nanda 2023, arXiv 2309.16042, and Li & Janson 2024, arXiv 2409.09951).

    Examples
    --------
    >>> Ablate(Sites("ffn", layers=3)).mode
    'zero'
    """

    sites: Sites
    mode: str = "zero"
    reference: Donor | Tensor | None = None
    rows: Sequence[int] | None = None
    over: str = "rows"
    shift: int = 1

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.rows is not None:
            object.__setattr__(self, "rows", row_numbers("Ablate", self.rows))
        require_choice("Ablate", "mode", self.mode, _MODES)
        require_choice("Ablate", "over", self.over, ("rows", "tokens"))
        if self.mode == "zero" and (self.reference is not None or self.rows is not None):
            raise InputError("Ablate(mode='zero') reads no reference and no rows; 'mean' and 'resample' do")
        if self.mode != "mean" and self.over != "rows":
            raise InputError(f"Ablate(mode={self.mode!r}, over={self.over!r}): only 'mean' averages over tokens")
        if self.over == "tokens" and (wrong := [c for c in self.sites.components if c in MODULATIONS]):
            raise InputError(f"Ablate(over='tokens') at {', '.join(wrong)}: it has no tokens; average over rows")
        if self.mode == "mean" and self.reference is None:
            raise InputError("Ablate(mode='mean') needs a reference: a Run that captured the sites, or a Tensor")

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        if self.mode == "zero":
            return torch.zeros_like(activation)
        if isinstance(self.reference, Donor):
            require_sigma("reference", self.reference, at.site, SIGMA_TOLERANCE)
        if self.mode == "resample":
            return fitted(self._other(activation, at), activation, "reference", at.site)
        mean = self._mean(*self._given(activation, at), at) if at.own is None else self._mean_of_own(at)
        return fitted(mean, activation, "reference", at.site)

    def _other(self, activation: Tensor, at: At) -> Tensor:
        """The reference's row for each row, of the tokens that are ablated."""
        source = self.reference
        rows = source.rows if isinstance(source, Donor) else activation if source is None else source
        chosen = list(self._resampled(len(activation), len(rows)))
        if isinstance(source, Donor):
            given, words = part_of_donor(source, at.site, self.sites, at.site, at.geometry, chosen)
        else:
            given, words = self._given(activation, at)
            given, words = given[chosen], None if words is None else words[chosen]
        require_text("reference", words, at.text_valid, at.site)
        return given

    def _given(self, activation: Tensor, at: At) -> tuple[Tensor, Tensor | None]:
        """The reference's rows, of the tokens that are ablated, and which of its text positions attention may read."""
        if self.reference is None:
            return activation, at.text_valid
        if isinstance(self.reference, Tensor):
            return self.reference, None
        return part_of_donor(self.reference, at.site, self.sites, at.site, at.geometry)

    def _mean(self, given: Tensor, words: Tensor | None, at: At) -> Tensor:
        rows = slice(None) if self.rows is None else list(self.rows)
        chosen, words = given[rows], None if words is None else words[rows]
        dtype = torch.promote_types(chosen.dtype, torch.float32)
        if self.over == "tokens" and words is not None:
            return chosen[words].mean(dim=0, dtype=dtype).expand(1, 1, -1)
        require_text("reference", words, at.text_valid, at.site)
        axis = channel_axis(at.site) % chosen.ndim
        tokens = [a for a in range(1, chosen.ndim) if a != axis] if self.over == "tokens" else []
        return chosen.mean(dim=[0, *tokens], keepdim=True, dtype=dtype)

    def _mean_of_own(self, at: At) -> Tensor:
        """The mean at the tokens of each row: (B, n, D), or over these too, (B, 1, D); channels where theirs are."""
        source = self.reference
        if isinstance(source, Tensor):
            return self._mean(source, None, at)
        assert source is not None
        assert at.own is not None
        total: Tensor | float = 0.0
        count: Tensor | float = 0.0
        for row in range(len(source.rows)) if self.rows is None else self.rows:
            part, words = part_of_donor(source, at.site, self.sites, at.site, at.geometry, [row] * len(at.rows))
            dtype = torch.promote_types(part.dtype, torch.float32)
            if self.over == "rows":
                require_text("reference", words, at.text_valid, at.site)
                total, count = total + part.to(dtype), count + 1
                continue
            counted = (at.own.to(part.device) if words is None else words & at.own.to(words.device)).to(dtype)
            axis = 2 if channel_axis(at.site) == 1 else 1
            spread = counted.unsqueeze(3 - axis)
            total = total + (part * spread).sum(dim=axis, keepdim=True)
            count = count + spread.sum(dim=axis, keepdim=True)
        return total / count  # type: ignore[return-value]

    def _resampled(self, rows: int, count: int) -> tuple[int, ...]:
        """The reference's row for each row of this run."""
        if self.rows is not None:
            return tuple(self.rows)
        return tuple((row + self.shift) % count for row in range(rows))

    def check(self, sites: tuple[Site, ...], geometry: Geometry, rows: tuple[Row, ...]) -> None:
        """Refuse a reference that lacks a site or does not fit, and rows that would keep their own activation."""
        if self.mode == "zero":
            return
        if self.reference is not None:
            require_rows("reference", self.reference)
        self._check_rows(rows)
        if isinstance(self.reference, Donor):
            require_captured("reference", self.reference, sites, geometry)
        for site in sites:
            if isinstance(self.reference, Donor):
                require_whole("reference", self.reference[site], site, geometry)
            elif isinstance(self.reference, Tensor):
                require_broadcast("reference", self.reference, self.sites, site, geometry)

    def _check_rows(self, rows: tuple[Row, ...]) -> None:
        theirs = self.reference.rows if isinstance(self.reference, Donor) else rows
        count = len(self.reference) if isinstance(self.reference, Tensor) else len(theirs)
        if self.rows is not None and not all(-count <= r < count for r in self.rows):
            raise DonorError(f"Ablate(rows={self.rows}): the reference has rows 0..{count - 1}")
        if self.mode == "mean":
            return
        if self.rows is not None and self.reference is None and len(self.rows) == len(rows):
            require_same_tokens("Ablate(mode='resample')", self.sites, self.rows)
        if self.rows is not None and len(self.rows) != len(rows):
            raise DonorError(f"Ablate(rows={self.rows}) names {len(self.rows)} rows for {len(rows)} rows")
        if self.rows is None and not isinstance(self.reference, Tensor):
            given = self._resampled(len(rows), count)
            if self.reference is None:
                require_same_tokens("Ablate(mode='resample')", self.sites, given)
            own = next((i for i, row in enumerate(rows) if theirs[given[i]] == row), None)
            if own is not None:
                raise DonorError(
                    f"Ablate(mode='resample', shift={self.shift}): row {own} would be given its own activation again, "
                    f"of {rows[own]}; give another shift, rows=, or a reference of other rows"
                )
