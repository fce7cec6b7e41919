"""What interventions must know of the layout of an activation, and of the one that another gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dit_lens.errors import DonorError, InputError
from dit_lens.runs.donor import Donor
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.select import whole
from dit_lens.sites.site import Site, name_some
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import LATENT_COMPONENTS

#: How far the noise levels of two runs may be apart where one gives the other its activation of the same step.
SIGMA_TOLERANCE = 0.05


def channel_axis(site: Site) -> int:
    """1 on the latent grid, (B, C, F, H, W), and -1 elsewhere, (B, ..., D)."""
    return 1 if site.component in LATENT_COMPONENTS else -1


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least: sums of several activations are rounded once, to the dtype of the activation."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def shares_memory(tensor: Tensor, other: Tensor) -> bool:
    """Whether a later change of one reaches the other, or the one holds the memory of the other."""
    return tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def part_of(whole: Tensor, sites: Sites, site: Site, geometry: Geometry, valid: Tensor | None = None) -> Tensor:
    """The tokens that ``sites`` selects of a whole activation.

    Parameters
    ----------
    valid : bool Tensor of shape (B, N), optional
        Of a text stream: the positions that attention may read.
    """
    tokens = sites.tokens
    if tokens.is_all:
        return whole
    tokens = tokens.resolve(geometry, site.stream, site.component)
    if site.stream != "video":
        tokens = tokens.among(valid, site)
    return tokens.take(whole, site.component)


def part_of_donor(
    run: Donor, captured: Site, sites: Sites, site: Site, geometry: Geometry, rows: Sequence[int] | None = None
) -> tuple[Tensor, Tensor | None]:
    """The tokens that ``sites`` selects of what a run captured, and which of its text positions attention may read.

    Parameters
    ----------
    rows : sequence of int, optional
        The run's row for each row of the one that is given its activations, whose tokens ``sites`` selects.
    """
    whole, chosen = run[captured], slice(None) if rows is None else list(rows)
    valid = run.text_valid.get(captured.branch or "") if captured.stream != "video" else None
    valid = None if valid is None else valid[chosen]
    part = part_of(whole[chosen], sites, site, geometry, valid)
    if valid is None:
        return part, None
    return part, sites.tokens.resolve(geometry, site.stream).among(valid, site).valid(valid)


def require_same_tokens(what: str, sites: Sites, rows: Sequence[int]) -> None:
    """Refuse rows that are given another row's activation of other tokens.

    Parameters
    ----------
    rows : sequence of int
        For each row the one whose activation it is given.
    """
    for row, donor in enumerate(rows):
        if not sites.tokens.same_in(row, donor % len(rows)):
            raise DonorError(
                f"{what}: row {row} would be given the activation of row {donor}, whose own tokens are others: capture "
                "the whole activation in a run of its own and give that run"
            )


def require_text(what: str, theirs: Tensor | None, own: Tensor | None, site: Site) -> None:
    """Refuse activations of a text whose words stand at other positions: there they would mean other words, or padding.

    Parameters
    ----------
    theirs, own : bool Tensor of shape (B or 1, n) or None
        Which of the selected positions attention may read, there and here.
    """
    if theirs is None or own is None:
        return
    if theirs.shape[1] != own.shape[1] or not (theirs.to(own.device) == own).all():
        counts = [", ".join(map(str, sorted(set(x.sum(dim=1).tolist())))) for x in (theirs, own)]
        raise DonorError(
            f"{site}: the {what}'s text has {counts[0]} words at the selected positions, this run's {counts[1]}: give "
            "prompts of one length, or select positions that hold words in both, Tokens(positions=...)"
        )


def part_shape(sites: Sites, site: Site, geometry: Geometry) -> tuple[int, ...] | None:
    """Shape, rows left out, of what an intervention is given at a site; None where it is known only in the run."""
    if site.stream != "video" or site.component not in geometry.shapes:
        return None
    shape, axis = [1, *geometry.shapes[site.component]], channel_axis(site)
    # One channel says which tokens are selected; a tensor without data would not do, for masks look at values. The
    # rows of tokens of each row have one length.
    channels, shape[axis] = shape[axis], 1
    part = list(part_of(torch.empty(shape), sites, site, geometry).shape)
    part[axis] = channels
    return tuple(part[1:])


def one_of_each(sites: Sequence[Site]) -> list[Site]:
    """The first site of every component and stream: activations of one kind have one shape."""
    return list({(s.component, s.stream): s for s in reversed(sites)}.values())[::-1]


def broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(shape[::-1], target[::-1], strict=False))


def require_choice(owner: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a setting that is none of the known words."""
    if value not in choices:
        raise InputError(f"{owner}({name}={value!r}): one of {', '.join(map(repr, choices))}")


def require_number(owner: str, name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Refuse a setting that is no finite number or leaves its range."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:
        ends = {(-math.inf, math.inf): "", (0, math.inf): " of at least 0"}.get((low, high), f" in {low:g}..{high:g}")
        raise InputError(f"{owner}({name}={value!r}): need a finite number{ends}")


def row_numbers(owner: str, rows: Any) -> tuple[int, ...]:
    """Rows as whole numbers, whatever sequence or array names them."""
    try:
        numbers = tuple(whole(row) for row in rows)
    except TypeError as error:
        raise InputError(f"{owner}(rows={rows!r:.80}): need whole numbers, the numbers of rows") from error
    if not numbers:
        raise InputError(f"{owner}(rows={rows!r}): name at least one row")
    return numbers


def require_rows(what: str, given: Any) -> None:
    """Refuse what is neither a run or a replay nor a tensor with an axis of rows."""
    if not isinstance(given, Donor | Tensor) or (isinstance(given, Tensor) and not given.ndim):
        got = "()" if isinstance(given, Tensor) else type(given).__name__
        raise DonorError(f"a {what} must be a Run, a Replay or a tensor whose first axis is rows, got {got}")
    if isinstance(given, Tensor) and given.is_complex():
        raise DonorError(f"a {what} of {str(given.dtype).removeprefix('torch.')}: give real numbers, such as its .real")


def require_captured(what: str, run: Donor, sites: Sequence[Site], geometry: Geometry) -> None:
    """Refuse a run that did not capture the sites, whole and unnamed, on this run's token grid."""
    captured = run.captures.get("", {})
    missing = next((s for s in sites if s not in captured), None)
    if missing is not None:
        raise DonorError(f"the {what} did not capture {missing} (whole and unnamed); {name_some(captured)}")
    require_grid(what, run, geometry)


def require_grid(what: str, run: Donor, geometry: Geometry) -> None:
    if run.geometry.grid != geometry.grid:
        raise DonorError(f"the {what}'s token grid {run.geometry.grid} is not this run's {geometry.grid}")


def require_sigma(what: str, run: Donor, site: Site, tolerance: float, hint: str = "") -> None:
    """Refuse the capture of a step whose noise level is not this run's: the two runs have different schedules."""
    theirs = run.sigma_at(site)
    if theirs is not None and site.sigma is not None and abs(theirs - site.sigma) > tolerance:
        raise DonorError(
            f"{site} is at sigma {site.sigma:.4g}, the {what}'s at sigma {theirs:.4g}, further away than "
            f"{tolerance:g}: give both runs the same schedule{hint}"
        )


def require_whole(what: str, given: Tensor, site: Site, geometry: Geometry) -> None:
    """Refuse a captured activation that is not of the whole shape; other streams' shapes are known only in the run."""
    shape = geometry.shapes.get(site.component) if site.stream == "video" else None
    if shape is not None and tuple(given.shape[1:]) != tuple(shape):
        raise _misfit(what, given, site, shape)


def require_broadcast(what: str, given: Tensor, sites: Sites, site: Site, geometry: Geometry) -> None:
    """Refuse a tensor (rows, ...) that does not broadcast to the part that is replaced."""
    shape = part_shape(sites, site, geometry)
    if shape is not None and not broadcasts(given.shape[1:], shape):
        raise _misfit(what, given, site, shape)


def fitted(given: Tensor, activation: Tensor, what: str, site: Site) -> Tensor:
    """A tensor (rows, ...) in the shape, dtype and device of an activation (B, ...); one row serves all."""
    if given.shape[0] not in (1, activation.shape[0]) or not broadcasts(given.shape[1:], activation.shape[1:]):
        raise _misfit(what, given, site, activation.shape[1:])
    # Axes that are left out belong between the rows and the rest, not in front of the rows.
    spread = given.reshape(given.shape[0], *[1] * (activation.ndim - given.ndim), *given.shape[1:])
    return spread.to(activation.device, activation.dtype).expand_as(activation)


def _misfit(what: str, given: Tensor, site: Site, shape: Sequence[int]) -> DonorError:
    text = ", ".join(map(str, shape))
    return DonorError(f"the {what}'s activation has shape {tuple(given.shape)}; at {site} it must be (rows, {text})")
