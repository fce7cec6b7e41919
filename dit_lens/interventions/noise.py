"""Noise in the sampler's state, in a prediction, or in the residual stream, in stated doses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import InputError
from dit_lens.interventions.base import At
from dit_lens.interventions.shapes import part_of, part_shape, require_choice, require_number, wide
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.select import Select, show
from dit_lens.sites.site import LAYER_COMPONENTS, MODULATIONS
from dit_lens.sites.sites import Sites

#: Components whose noise is in units of their own standard deviation: all but what is 1 or 0.
_OF_OWN_SCALE = ("embed", *(c for c in LAYER_COMPONENTS if c not in ("mask", *MODULATIONS)), *MODULATIONS)
_WHERE = {
    "replace": ("latents", *_OF_OWN_SCALE),
    "add": ("latents", *_OF_OWN_SCALE),
    "renoise": ("latents",),
    "velocity": ("velocity",),
}
#: A state with less of the clean video than this share of its noise is taken for pure noise.
_PURE = 0.02


@dataclass(frozen=True)
class Noise:
    """Put noise where ``sites`` say, n ~ N(0, I) of each row's own seed and afresh at every site.

    Parameters
    ----------
    sites : Sites
        Its tokens choose frames: `Tokens(frames=...)` are latent frames on ``latents`` and ``velocity``.
    mode : "replace", "add", "renoise" or "velocity"
        On ``latents``, the sampler's state x = alpha x0 + sigma noise:

        - "replace": dose n, with dose 1 the noise experiments of "Demystifying Video Reasoning" (arXiv 2603.16870). It
          takes the state off what the model expects at every step but the first.
        - "add": x + dose sigma n.
        - "renoise": alpha x0hat + sigma (sqrt(1 - dose^2) own + dose n), with x0hat the clean estimate of the step
          before and own = (x - alpha x0hat) / sigma. The noise level stays what the model expects; 0 <= dose <= 1.

        On ``velocity``:

        - "velocity": v + dose n, with one n for all branches of a step, so that the guided prediction moves by dose n
          where all are chosen. A flow-matching model's x0hat moves by sigma dose n.

        On the token grid, in text streams and on what the blocks and the head are told "replace" and "add" are in units
        of the activation's own standard deviation, over the selected tokens and channels of a row: dose std n, and
        x + dose std n (Meng et al. 2022, arXiv 2202.05262, corrupt embeddings with dose 3). "mask" is 1 or 0 and takes
        no noise.
    dose : float
        At least 0. Dose 0 is the identity, bit for bit, of all modes but "replace", where it writes zeros.
    seed : int
    frames : Select
        Latent frames: short for ``tokens=Tokens(frames=...)`` of the sites.

    Notes
    -----
    Noise in all frames at one step and in one frame at all steps are different amounts of noise; a difference of their
    effects says nothing of steps and frames until the amounts are equal: see `matched`. Noise in ``model_input`` is
    refused, for it changes one prediction and leaves the state as it was.

    Examples
    --------
    >>> print(Noise(Sites("latents"), "add", frames=2).sites)
    latents, steps all, tokens frames=2
    """

    sites: Sites
    mode: str
    dose: float = 1.0
    seed: int = 0
    frames: Select = "all"

    __repr__ = short_repr

    def __post_init__(self) -> None:
        require_choice("Noise", "mode", self.mode, tuple(_WHERE))
        require_number("Noise", "dose", self.dose, 0, 1 if self.mode == "renoise" else math.inf)
        wrong = [c for c in self.sites.components if c not in _WHERE[self.mode]]
        if wrong:
            hint = "; the sampler's state is latents" if "model_input" in wrong else ""
            raise InputError(
                f"Noise(mode={self.mode!r}) at {', '.join(wrong)}: only at {', '.join(_WHERE[self.mode])}{hint}"
            )
        tokens = self.sites.tokens
        if self.frames != "all" and tokens.frames != self.frames:
            if tokens.frames != "all":
                raise InputError(
                    f"Noise(frames={show(self.frames)}) and sites of tokens {tokens}: name the frames in one of them"
                )
            object.__setattr__(self, "sites", self.sites.at(tokens=replace(tokens, frames=self.frames)))

    def __call__(self, activation: Tensor, at: At) -> Tensor:
        if self.dose == 0 and self.mode != "replace":
            return activation
        start, fresh = wide(activation), self._fresh(activation, at)
        if self.mode == "renoise":
            noisy = self._renoised(start, fresh, at)
        elif self.mode == "replace":
            noisy = self.dose * self._unit(start, at) * fresh
        else:
            noisy = start + self.dose * self._unit(start, at) * fresh
        return noisy.to(activation.dtype)

    def _fresh(self, activation: Tensor, at: At) -> Tensor:
        if self.mode == "velocity":
            # Guidance would make sqrt(g^2 + (g - 1)^2) of independent draws of its branches.
            at = replace(at, site=replace(at.site, branch=None))
        return at.noise(wide(activation), self.seed)

    def _unit(self, start: Tensor, at: At) -> Tensor | float:
        """What a dose of 1 is at a site."""
        if at.site.component in _OF_OWN_SCALE and at.own is not None:
            rows = [row[own].std(correction=0) for row, own in zip(start, at.own.to(start.device), strict=True)]
            return torch.stack(rows).nan_to_num().reshape(-1, 1, 1)  # a row of no tokens has none that could be moved
        if at.site.component in _OF_OWN_SCALE:
            return start.std(dim=tuple(range(1, start.ndim)), keepdim=True, correction=0)
        if self.mode != "add":
            return 1.0
        assert at.site.sigma is not None
        return at.site.sigma

    def _renoised(self, start: Tensor, fresh: Tensor, at: At) -> Tensor:
        alpha, sigma = at.site.alpha, at.site.sigma
        assert alpha is not None
        assert sigma is not None
        if at.x0hat is not None:
            noise = start - alpha * part_of(at.x0hat, self.sites, at.site, at.geometry).to(start.device, start.dtype)
        elif alpha <= _PURE * sigma:
            noise = start
        else:
            raise InputError(
                f"Noise(mode='renoise') at {at.site}: there is no clean estimate yet, and with alpha {alpha:.4g} and "
                f"sigma {sigma:.4g} the state is no pure noise; choose steps from 1 on"
            )
        # Written as a change of the state, so that a small dose changes it little in every dtype.
        return start + (math.sqrt(1 - self.dose**2) - 1) * noise + self.dose * sigma * fresh

    def energy(self, geometry: Geometry, sigmas: Sequence[float]) -> float:
        """Expected squared norm, per row, of the fresh noise that a run is given over all its steps and frames.

        It counts what is put in, not what "replace" and "renoise" take out. Noise in a prediction is counted as the
        shift of a flow-matching model's x0hat, the scale of the state; with guidance, for all branches together.

        Parameters
        ----------
        geometry : Geometry
            `VideoDiT.geometry`, or that of a run.
        sigmas : sequence of S or more floats
            ``Run.sigmas`` of a run with the same steps.

        Raises
        ------
        InputError
            Noise on the token grid, which depends on the activations; or fewer sigmas than steps.
        """
        inside = [c for c in self.sites.components if c in _OF_OWN_SCALE]
        if inside:
            raise InputError(f"Noise at {', '.join(inside)}: its energy depends on the run; only latents and velocity")
        if self.sites.tokens.rows_named is not None:
            raise InputError(f"Noise.energy is that of every row alike; tokens {self.sites.tokens} are not")
        if len(sigmas) < geometry.steps:
            raise InputError(f"Noise.energy: {len(sigmas)} sigmas for {geometry.steps} steps")
        # One site per step: the branches of a step share their noise.
        by_step = {site.step: site for site in self.sites.resolve(geometry)}
        total = 0.0
        for step, site in by_step.items():
            scale = 1.0 if self.mode == "replace" else sigmas[step]
            cells = math.prod(part_shape(self.sites, site, geometry) or ())
            total += cells * (self.dose * scale) ** 2
        return total

    def matched(self, reference: Noise, geometry: Geometry, sigmas: Sequence[float]) -> Noise:
        """A copy with the dose that puts in as much energy, over its own steps and frames, as another does over its.

        The control without which noise at one step and noise in one frame cannot be compared. See `energy`.

        Raises
        ------
        InputError
            "renoise" would need a dose above 1: all of its noise is fresh, and still less than the other's.

        Examples
        --------
        >>> geometry = Geometry(4, 2, ("cond",), (5, 2, 2), shapes={"latents": (8, 5, 2, 2)})
        >>> at_step = Noise(Sites("latents", steps=1), "replace")
        >>> at_frame = Noise(Sites("latents"), "replace", frames=2).matched(at_step, geometry, [1, 0.75, 0.5, 0.25])
        >>> round(at_frame.dose**2, 3)  # 5 frames at 1 step are 1.25 times 1 frame at 4 steps
        1.25
        """
        own = replace(self, dose=1.0).energy(geometry, sigmas)
        dose = math.sqrt(reference.energy(geometry, sigmas) / own)
        if self.mode == "renoise" and dose > 1:
            raise InputError(
                f"Noise(mode='renoise') would need a dose of {dose:.4g} to match; the most is 1: choose more of its "
                "steps or frames, or lower the dose of the reference"
            )
        return replace(self, dose=dose)
