"""Activation patching: put a donor's activations in the place of one's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_lens.errors import DonorError
from dit_lens.interventions.base import At
from dit_lens.run import Row, Run, name_some
from dit_lens.sites import Geometry, Site, Sites


@dataclass(frozen=True)
class Patch:
    """Replace the activations at ``sites`` by a donor's.

    Parameters
    ----------
    donor : Run or Tensor
        A run that captured (whole, unnamed) the same sites, paired by step, branch, layer and row; or one tensor that
        goes to every site.
    sites : Sites
    rows : tuple of int, optional
        The donor's row for each row of this run. Without it rows are paired one to one; a donor of a single row serves
        all.

    Notes
    -----
    Patching ``resid`` at all tokens hands over the donor's whole state and localises nothing (its velocity is the
    donor's at any layer): use ``delta``, or a part of the tokens. Patching with one's own activation is the identity,
    bit for bit.
    """

    donor: Run | Tensor
    sites: Sites
    rows: tuple[int, ...] | None = None

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        donated = self.donor if isinstance(self.donor, Tensor) else self.sites.tokens.take(self.donor[at.site])
        if self.rows is not None:
            donated = donated[list(self.rows)]
        return donated.to(activation.device, activation.dtype).expand_as(activation)

    def check(self, sites: tuple[Site, ...], geometry: Geometry, rows: tuple[Row, ...]) -> None:
        """Refuse a donor that lacks a site or does not fit, before the run."""
        if not isinstance(self.donor, Run | Tensor) or (isinstance(self.donor, Tensor) and not self.donor.ndim):
            given = "()" if isinstance(self.donor, Tensor) else type(self.donor).__name__
            raise DonorError(f"a donor must be a Run or a tensor whose first axis is rows, got {given}")
        if self.rows is not None and len(self.rows) != len(rows):
            raise DonorError(f"Patch(rows={self.rows}) names {len(self.rows)} donor rows for {len(rows)} rows")
        count = len(self.donor) if isinstance(self.donor, Tensor) else self._check_run(sites, geometry)
        if self.rows is not None and not all(-count <= r < count for r in self.rows):
            raise DonorError(f"Patch(rows={self.rows}): the donor has rows 0..{count - 1}")
        if self.rows is None and count not in (1, len(rows)):
            raise DonorError(f"a donor of {count} rows cannot be paired with {len(rows)}; give rows=")
        for site in sites:
            self._check_shape(site, geometry.shapes[site.component])

    def _check_shape(self, site: Site, whole: tuple[int, ...]) -> None:
        """A captured activation must have the whole shape; a tensor must broadcast to the part that is patched."""
        if isinstance(self.donor, Run):
            given, fits = self.donor[site].shape, self.donor[site].shape[1:] == whole
        else:
            whole = tuple(self.sites.tokens.take(torch.empty(1, *whole, device="meta")).shape[1:])
            given, fits = self.donor.shape, _broadcasts(self.donor.shape[1:], whole)
        if not fits:
            text = ", ".join(map(str, whole))
            raise DonorError(f"the donor's activation has shape {tuple(given)}; at {site} it must be (rows, {text})")

    def _check_run(self, sites: tuple[Site, ...], geometry: Geometry) -> int:
        assert isinstance(self.donor, Run)
        captured = self.donor.captures.get("", {})
        missing = [s for s in sites if s not in captured]
        if missing:
            raise DonorError(f"the donor did not capture {missing[0]} (whole and unnamed); {name_some(captured)}")
        if self.donor.geometry.grid != geometry.grid:
            raise DonorError(f"the donor's token grid {self.donor.geometry.grid} is not this run's {geometry.grid}")
        return len(self.donor.rows)


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(shape[::-1], target[::-1], strict=False))
