"""One place in one generation, and its canonical string."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from dit_lens.errors import SiteError

#: What one block adds to a stream, after its gate. "pos", "a2v" and "bias" are further terms of some families.
TERM_COMPONENTS = ("pos", "attn", "cross_attn", "a2v", "ffn", "bias")
#: What a block is told besides its residual streams: what its cross-attention reads, time (and the pooled prompt), and
#: which positions of the text attention may read.
TOLD_COMPONENTS = ("context", "modulation", "mask")
#: Components of one layer that are made in it; their order in execution is the family's.
MADE_COMPONENTS = ("head", *TERM_COMPONENTS, "delta", "resid")
#: Components that belong to one layer.
LAYER_COMPONENTS = (*TOLD_COMPONENTS, *MADE_COMPONENTS)
#: Components without tokens, in the model's own layout (B, ..., D): of a block, and of the output head.
MODULATIONS = ("modulation", "head_modulation")
#: Streams whose positions are those of the text: its words, and its padding.
TEXTS = ("text", "audio_text")
#: Streams that blocks carry on: what one block is told of them decides what the next is told.
CARRIED = ("audio",)
#: Components of one denoiser call.
CALL_COMPONENTS = ("model_input", "embed", *LAYER_COMPONENTS, "head_modulation", "velocity")
#: Components of one denoising step, around its calls.
STEP_COMPONENTS = ("latents", "guided")
COMPONENTS = ("latents", *CALL_COMPONENTS, "guided")
#: Components that can be read but not edited.
READ_ONLY = ("guided",)

_PATTERN = re.compile(r"s(\d+)/([\w-]+)/(?:L(\d+)|-)/(\w+?)(?:\.(\d+))?(?:/(\w+))?")


@dataclass(frozen=True, order=True)
class Site:
    """One place in one generation.

    Parameters
    ----------
    step : int
        Denoising step 0..S-1, never the count of denoiser calls.
    branch : str or None
        "cond", "uncond" or a family's further branch ("stg", "modality"); None for the components around the denoiser.
    layer : int or None
        0..L-1; None for components that belong to no layer.
    component : str
        One of ``dit_lens.sites.site.COMPONENTS``.
    stream : str
        "video" or "text"; of what a block is told also a family's own ("image", "audio", "audio_text").
    head : int or None
        For the component "head" only.
    sigma, alpha, expert : float, float, str or None
        They ride along and take no part in comparison: the state is alpha x0 + sigma noise.

    Examples
    --------
    >>> str(Site(3, "cond", 5, "delta"))
    's03/cond/L05/delta/video'
    >>> Site.parse("s03/cond/L05/head.2").head
    2
    """

    step: int
    branch: str | None
    layer: int | None
    component: str
    stream: str = "video"
    head: int | None = None
    sigma: float | None = field(default=None, compare=False)
    alpha: float | None = field(default=None, compare=False)
    expert: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        layer = "-" if self.layer is None else f"L{self.layer:02d}"
        component = self.component if self.head is None else f"{self.component}.{self.head}"
        return f"s{self.step:02d}/{self.branch or '-'}/{layer}/{component}/{self.stream}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a canonical string; without a stream it is of the video.

        Raises
        ------
        SiteError
            The text is no canonical string of a known component.
        """
        match = _PATTERN.fullmatch(text)
        if not match or match[4] not in COMPONENTS or (match[5] is not None) != (match[4] == "head"):
            raise SiteError(f"{text!r} is no site; a site reads like 's03/cond/L05/delta/video'")
        branch = None if match[2] == "-" else match[2]
        layer, head = (None if match[i] is None else int(match[i]) for i in (3, 5))
        return cls(int(match[1]), branch, layer, match[4], match[6] or "video", head)


def some(sites: Iterable[Site], most: int = 6) -> str:
    """The first few sites, for error messages."""
    names = [str(s) for s in sites]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def name_some(sites: Iterable[Site]) -> str:
    """What was captured, in words."""
    return f"there are {names}" if (names := some(sites)) else "no site was"
