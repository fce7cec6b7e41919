"""What probes read: sites of one branch and one stream, as rows of a level, from a source, beside controls."""

from __future__ import annotations

from dataclasses import dataclass

from dit_lens.errors import EvidenceError
from dit_lens.lens.source import at_branch
from dit_lens.probing.rows.data import CONTROLS, Source
from dit_lens.probing.rows.rows import LEVELS, POOLS, Pool
from dit_lens.probing.rows.sources import SOURCES
from dit_lens.sites.site import MADE_COMPONENTS
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens
from dit_lens.tasks.base import Level

#: What a probe can read: components whose activations are tokens.
READ = ("embed", *MADE_COMPONENTS)


@dataclass(frozen=True)
class Readout:
    """What is read in every run, and what one row of it is.

    Parameters
    ----------
    sites : Sites, optional
        Components "embed" and those that a layer makes, at some steps and layers, of one stream. What a block is told
        is not read. ``tokens`` selects latent frames, each with rows of its own (of a clip, pooled together), or
        positions of another stream than the video. By default embed and resid at all steps and layers: of cells and
        tokens in the last latent frame, which shows the answer, of frames and clips in all of them. See `Readout.of`.
    branch : str
    level : "cell", "token", "frame" or "clip"
        What a row is; see `dit_lens.probing.rows.rows.Rows`. Of another stream than the video a token is a position.
    pool : "mean", "max" or callable from (B, n, D) to (B, D)
        How the tokens of a frame or clip become one vector.
    source : "sample", "forward-noise" or "invert"
        Where the states come from; see `dit_lens.probing.rows.sources`.
    controls : tuple of str
        Which of "input", "position" and "random" to read.
    random_seed : int
        Of the weights of the control "random".

    Raises
    ------
    EvidenceError
        At construction for an unknown level, pooling, source or control, and for sites that no probe reads.
    SiteError
        The sites name another branch.

    Examples
    --------
    >>> print(Readout(Sites("attn", steps=0, layers=[3, 4]), level="clip").selection)
    attn, step 0, layers 3,4, branch cond
    >>> print(Readout.of(steps=[0, 4]).selection)
    embed+resid, steps 0,4, layers all, branch cond, tokens frames=-1
    """

    sites: Sites | None = None
    branch: str = "cond"
    level: Level = "cell"
    pool: str | Pool = "mean"
    source: Source = "sample"
    controls: tuple[str, ...] = CONTROLS
    random_seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "controls", tuple(self.controls))
        if self.level not in LEVELS:
            raise EvidenceError(f"unknown level {self.level!r}; one of {', '.join(LEVELS)}")
        if isinstance(self.pool, str) and self.pool not in POOLS:
            raise EvidenceError(f"unknown pooling {self.pool!r}; one of {', '.join(POOLS)}, or a callable")
        if self.source not in SOURCES:
            raise EvidenceError(f"unknown source {self.source!r}; one of {', '.join(SOURCES)}")
        if unknown := [c for c in self.controls if c not in CONTROLS]:
            raise EvidenceError(f"unknown controls {', '.join(map(repr, unknown))}; there are {', '.join(CONTROLS)}")
        _check(self.selection)

    @classmethod
    def of(cls, level: Level = "cell", **selected: object) -> Readout:
        """The default sites of a level with some of their fields changed, such as ``steps=0, layers=[3]``."""
        return cls(cls(level=level).selection.at(branches="all", **selected), level=level)

    @property
    def selection(self) -> Sites:
        """The sites, of the one branch."""
        last = Tokens(frames=-1) if self.level in ("cell", "token") else Tokens()
        return at_branch(self.sites or Sites(("embed", "resid"), tokens=last), self.branch)

    @property
    def stream(self) -> str:
        return str(self.selection.stream)

    @property
    def pooled(self) -> Pool:
        """The pooling as a function."""
        return POOLS[self.pool] if isinstance(self.pool, str) else self.pool


def _check(sites: Sites) -> None:
    if wrong := [c for c in sites.components if c not in READ]:
        raise EvidenceError(f"probes read {', '.join(READ)}; {wrong[0]!r} is none of them")
    if not isinstance(sites.stream, str) or sites.stream == "all":
        raise EvidenceError(f"probes read one stream at a time, got stream={sites.stream!r}; name one, such as 'video'")
