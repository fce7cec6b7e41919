"""What an intervention may take activations from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from dit_lens.errors import SiteError
from dit_lens.runs.inputs import Row
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.site import Site, name_some


@dataclass(eq=False, kw_only=True)
class Donor:
    """What a `Run` and a `Replay` have in common: rows, and activations that were captured of them.

    Attributes
    ----------
    id, model_id : str
        Of what it was made from, and of the model that made it.
    rows : tuple of Row, B of them
    geometry : Geometry
    captures : dict from capture name to dict from Site to Tensor
    text_valid : dict from branch to bool Tensor of shape (B, N)
        Where a text stream was met of which attention reads only some positions: which.
    """

    id: str
    model_id: str
    rows: tuple[Row, ...]
    geometry: Geometry
    captures: dict[str, dict[Site, Tensor]]
    text_valid: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, site: Site | str) -> Tensor:
        """The capture of one site, of shape (B, F, H, W, D) for the residual stream and (B, C, F, H, W) for latents.

        Raises
        ------
        SiteError
            The site was not captured; the message names some that were.
        """
        site = Site.parse(site) if isinstance(site, str) else site
        found = self.captures.get("", {})
        if site not in found:
            raise SiteError(f"{site} was not captured; {name_some(found)}")
        return found[site]

    @cached_property
    def _own_sites(self) -> dict[Site, Site]:
        return {site: site for site in self.captures.get("", {})}

    def sigma_at(self, site: Site) -> float | None:
        """Noise level at which a site was captured; None where it was not, or has none."""
        own = self._own_sites.get(site)
        return None if own is None else own.sigma

    def captured(self, name: str = "") -> dict[Site, Tensor]:
        """All captures under a name, in the order in which they were made."""
        if name not in self.captures:
            raise SiteError(f"no capture is named {name!r}; there are {sorted(self.captures) or 'none'}")
        return self.captures[name]

    def stack(self, component: str, *, step: int, branch: str | None = "cond", name: str = "") -> Tensor:
        """One component at all captured layers of a step and branch: Tensor of shape (layers, B, ...)."""
        sites = [s for s in self.captured(name) if (s.step, s.branch, s.component) == (step, branch, component)]
        if not sites:
            raise SiteError(
                f"no {component} of step {step}, branch {branch} was captured; {name_some(self.captured(name))}"
            )
        return torch.stack([self.captures[name][s] for s in sorted(sites, key=lambda s: s.layer or 0)])
