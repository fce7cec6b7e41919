"""The checks: what a family's file says, against what the model does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dit_lens.interventions.base import At, FromFunction
from dit_lens.interventions.capture import Capture
from dit_lens.interventions.patch import Patch
from dit_lens.lens.depth import depth_lens
from dit_lens.runs.replay import Resume
from dit_lens.runs.run import Run
from dit_lens.sites.site import TERM_COMPONENTS, Site
from dit_lens.sites.sites import Sites
from dit_lens.sites.tokens import Tokens
from dit_lens.validation.comparing import Failed, ensure, ulps
from dit_lens.validation.told_checks import check_flow, check_told
from dit_lens.validation.witness import Subject


def check_untouched(subject: Subject) -> str:
    """Reading everything changes nothing: the final latents are those of the pipeline called by hand."""
    last = subject.plain.steps[-1][2][0]
    # LTX-2 gives latents back in the scale and the layout of its VAE; its state is what the scheduler made last.
    given = subject.plain.latents if subject.plain.latents.ndim == last.ndim else last
    plain = subject.architecture.unpack(given, _latent(subject))
    shapes = tuple(plain.shape), tuple(subject.base.latents.shape)
    ensure(shapes[0] == shapes[1], f"final latents have shape {shapes[1]}, by hand {shapes[0]}")
    if not torch.equal(plain, subject.base.latents):
        worst = float((plain - subject.base.latents).abs().max())
        raise Failed(f"final latents differ by {worst:.2e} from the pipeline called by hand")
    counted, by_hand = subject.base.ledger.calls, len(subject.plain.calls)
    ensure(by_hand == counted, f"the ledger counts {counted} calls, by hand there are {by_hand}")
    return f"{len(subject.base.captures[''])} captures, {by_hand} calls, the same bits"


def check_layers(subject: Subject) -> str:
    """Count and order of the blocks; each block's input is the output of the one before, in every stream."""
    paths = [path for path, _, _ in subject.architecture.layers(subject.model.pipeline.transformer)]
    for call in subject.plain.calls:
        seen = [block.path for block in call]
        ensure(seen == paths, f"blocks ran as {seen}, the family's file says {paths}")
        for one, following in pairwise(call):
            for stream, given in following.before.items():
                same = stream in one.after and torch.equal(given, one.after[stream])
                ensure(same, f"the {stream} stream that {following.path} is given is not what {one.path} returned")
        for block in call:
            stated = [e for e in block.block.events if e in block.order]
            ensure(
                block.order == stated, f"{block.path}: events came as {block.order}, the family's file says {stated}"
            )
    streams = ", ".join(subject.base.geometry.streams)
    return f"{len(paths)} blocks in order; input = output of the block before in {streams}"


def check_grid(subject: Subject) -> str:
    """One latent cell of the denoiser's input moves the embedding at the one token that it belongs to."""
    geometry = subject.base.geometry
    cells, grid = geometry.latent_grid, geometry.grid
    size = [c // g for c, g in zip(cells, grid, strict=True)]
    chosen = [tuple(c - 1 for c in cells), tuple(c // 2 for c in cells), (0, cells[1] - 1, 0)]
    for cell in chosen:
        token = tuple(c // s for c, s in zip(cell, size, strict=True))
        run = subject.run([_nudge(cell), Capture(Sites("embed", steps=0))], stop_after=0)
        for branch in geometry.branches:
            site = Site(0, branch, None, "embed")
            moved = (run[site] != subject.base[site]).any(dim=-1)
            where = [tuple(i) for i in moved[0].nonzero().tolist()]
            ensure(where == [token], f"{site}: latent cell {cell} moved tokens {where[:4]}, expected {token}")
    return (
        f"{' x '.join(map(str, cells))} latent cells to {' x '.join(map(str, grid))} tokens, {len(chosen)} cells tried"
    )


def _nudge(cell: tuple[int, ...]) -> FromFunction:
    def nudge(x: Tensor, at: At) -> Tensor:
        return x + 1

    one = [(c, c + 1) for c in cell]
    tokens = Tokens(frames=[cell[0]], rows=one[1], columns=one[2])
    return FromFunction(Sites("model_input", steps=0, tokens=tokens), nudge)


def check_branches(subject: Subject) -> str:
    """Another prompt moves every branch but the unconditional one; another negative prompt moves that one alone."""
    branches = subject.base.geometry.branches
    other = [{**i, "prompt": p["prompt"]} for i, p in zip(subject.inputs, subject.inputs[::-1], strict=True)]
    moved = _moved(subject, inputs=other)
    expected = [b for b in branches if b != "uncond"]
    ensure(moved == expected, f"another prompt moved {moved}, expected {expected}")
    if "uncond" not in branches:
        return "another prompt moves cond; the run is not guided"
    moved = _moved(subject, negative_prompt=[PERTURBED] * len(subject.inputs))
    ensure(moved == ["uncond"], f"another negative prompt moved {moved}, expected ['uncond']")
    return f"the prompt moves {', '.join(expected)}; the negative prompt moves uncond alone"


PERTURBED = "blue star"


def _moved(subject: Subject, **changes: Any) -> list[str]:
    """Branches whose prediction at step 0 differs from the base run's."""
    run = subject.run([Capture(Sites("velocity", steps=0))], stop_after=0, **changes)
    sites = {b: Site(0, b, None, "velocity") for b in subject.base.geometry.branches}
    return [b for b, site in sites.items() if not torch.equal(run[site], subject.base[site])]


def check_sum_rule(subject: Subject) -> str:
    """A block's update is the sum of what its parts add to the stream, to a few units in the last place."""
    worst, captures = 0.0, subject.base.captures[""]
    for site in (s for s in captures if s.component == "delta"):
        parts = [captures[p] for c in TERM_COMPONENTS if (p := _at(site, c)) in captures]
        resid = captures[_at(site, "resid")]
        if not parts:
            ensure(bool((captures[site] == 0).all()), f"{site} is not zero though its block has no part in this stream")
            continue
        error = ulps(captures[site], torch.stack([p.float() for p in parts]).sum(dim=0), resid)
        ensure(error <= 8, f"{site} differs by {error:.1f} units in the last place of resid from the sum of its parts")
        worst = max(worst, error)
    return f"worst {worst:.2f} units in the last place of resid"


def _at(site: Site, component: str) -> Site:
    return Site(site.step, site.branch, site.layer, component, site.stream)


def check_heads(subject: Subject) -> str:
    """What the heads add, and the output bias that belongs to none, sum to what the attention adds."""
    if subject.no_heads:
        return f"left out: {subject.no_heads}"
    worst, sites = 0.0, 0
    for call in subject.plain.calls:
        for seen in call:
            for stream, (whole, total) in seen.by_head.items():
                error = ulps(total, whole, whole)
                ensure(error <= 64, f"{seen.path}, {stream}: heads are {error:.1f} units from attn")
                worst, sites = max(worst, error), sites + 1
    return f"{sites} sums, worst {worst:.1f} units in the last place of attn"


def check_identity(subject: Subject) -> str:
    """Patching any site with its own activation changes no bit."""
    geometry = subject.base.geometry
    parts = tuple(dict.fromkeys(s.component for s in subject.base.captures[""] if s.layer is not None))
    for chosen in (parts, ("embed",), ("model_input", "velocity"), ("latents",)):
        stream = "all" if set(chosen) & {*parts, "embed"} else "video"
        free = [f for f in range(geometry.latent_grid[0]) if f not in geometry.fixed_frames]
        tokens = Tokens(frames=free) if chosen == ("latents",) and geometry.fixed_frames else Tokens()
        run = subject.run([Patch(subject.base, Sites(chosen, stream=stream, tokens=tokens))])
        if not torch.equal(run.latents, subject.base.latents):
            raise Failed(
                f"patching {'+'.join(chosen)} with its own moved the final latents by "
                f"{float((run.latents - subject.base.latents).abs().max()):.1e}"
            )
    return f"{', '.join(parts)}, embed, model_input, velocity, latents: the same bits"


def check_swap(subject: Subject) -> str:
    """Under the same prompt, handing over the other row's whole residual state gives its prediction at any layer."""
    layers = range(subject.base.geometry.layers)
    keep = Capture(Sites(("resid", "velocity"), steps=0, stream="video"))
    text = [Capture(Sites("resid", steps=0, stream=s)) for s in subject.base.geometry.streams if s != "video"]
    twins = subject.run([keep, *text], inputs=(subject.inputs[0],) * 2, seed=[11, 12], record=True, stop_after=0)
    carried = _carries(subject)
    worst = 0.0
    for layer in layers if not carried else layers[-1:]:
        sites = Sites("resid", steps=0, layers=layer, stream="all")
        replay = subject.model.replay(twins, 0, [Patch(twins, sites, rows=(1, 0))])
        for branch, velocity in replay.velocities.items():
            own = twins[Site(0, branch, None, "velocity")]
            error = ulps(velocity, own[[1, 0]], own)
            ensure(
                error <= 64, f"s00/{branch}/L{layer:02d}/resid swapped: {error:.1f} units from the other row's velocity"
            )
            ensure(not torch.equal(velocity, own), f"s00/{branch}/L{layer:02d}/resid: the swap changed nothing")
            worst = max(worst, error)
    return f"at {'every layer' if not carried else 'the last layer'}, worst {worst:.1f} units from the other row"


def check_state_swap(subject: Subject) -> str:
    """Given the other row's state in the middle of a run, a row ends where the other does: no memory undoes the edit.

    Both rows have one prompt and one seed, so the noise that a sampler draws is the same too; they start from different
    states. A sampler with a memory begins anew where its state is edited, so the end is compared with that of rows that
    begin anew there at their own state, moved by the last bit.
    """
    if _carries(subject):
        return "left out: this family's state has a stream that is not addressed"
    geometry = subject.base.geometry
    step, free = geometry.steps // 2, [f for f in range(geometry.latent_grid[0]) if f not in geometry.fixed_frames]
    tokens = Tokens(frames=free) if geometry.fixed_frames else Tokens()
    begin = Patch(subject.base, Sites("latents", steps=0, tokens=tokens))
    sites = Sites("latents", steps=step, tokens=tokens)

    def ends(*edits: Any) -> Run:
        return subject.run([begin, *edits], inputs=(subject.inputs[0],) * 2, seed=[11, 11])

    twins = ends(Capture(Sites("latents", steps=step)))
    anew = ends(FromFunction(sites, lambda x, at: torch.nextafter(x, x + 1))).latents
    swapped = ends(Patch(twins, sites, rows=(1, 0))).latents
    apart, error = ulps(anew[[1, 0]], anew, anew), ulps(swapped, anew[[1, 0]], anew)
    # A state in float32 that a model in half precision moves is known to the model's own precision.
    coarser = torch.finfo(_stream_dtype(subject)).eps / torch.finfo(anew.dtype).eps
    allowed = max(4096.0, 16 * coarser)
    ensure(error <= allowed, f"s{step:02d}/-/-/latents swapped: {error:.0f} units from the other row's end")
    least = (10 if coarser > 1 else 100) * allowed
    ensure(apart > least, f"s{step:02d}/-/-/latents: the two rows end only {apart:.0f} units apart")
    return f"at step {step}: {error:.0f} units from the other row's end, the two are {apart:.0e} apart"


def _stream_dtype(subject: Subject) -> torch.dtype:
    return subject.base[Site(0, subject.base.geometry.branches[0], 0, "resid")].dtype


def _carries(subject: Subject) -> bool:
    return any(b.carried for _, _, b in subject.architecture.layers(subject.model.pipeline.transformer))


def check_depth_lens(subject: Subject) -> str:
    """The depth lens at the last layer is the model's own prediction, bit for bit."""
    geometry = subject.base.geometry
    for step in (0, geometry.steps - 1):
        for branch in geometry.branches:
            sites = Sites(steps=step, layers=[0, geometry.layers - 1])
            (first, last), *_ = depth_lens(subject.model, subject.base, sites=sites, branch=branch).velocities
            own = subject.base[Site(step, branch, None, "velocity")]
            worst = float((last - own).abs().max())
            ensure(
                torch.equal(last, own),
                f"s{step:02d}/{branch}: last layer read out differs by {worst:.1e}",
            )
            ensure(not torch.equal(first, own), f"s{step:02d}/{branch}: the first layer reads as the last")
    return f"steps 0 and {geometry.steps - 1}, branches {', '.join(geometry.branches)}: the same bits at the last layer"


def check_schedule(subject: Subject) -> str:
    """The combined prediction is what the pipeline hands its scheduler; x0hat is what the scheduler makes of it."""
    run, seen = subject.base, subject.plain.steps
    each = len(seen) // run.geometry.steps
    ensure(
        bool(seen) and len(seen) == each * run.geometry.steps, f"{len(seen)} scheduler steps in {run.geometry.steps}"
    )
    guided_error = x0_error = 0.0
    for step in range(run.geometry.steps):
        state, guided = run[Site(step, None, None, "latents")], run[Site(step, None, None, "guided")]
        x0hat = run.schedule.clean(step, state, guided)
        given, _, results = seen[each * (step + 1) - 1]
        given = subject.architecture.unpack(given, _latent(subject))
        # Cosmos combines clean estimates and hands those over.
        guided_error = max(guided_error, min(ulps(given, guided, given), ulps(given, x0hat, given)))
        ensure(
            guided_error <= 64, f"s{step:02d}/-/-/guided: {guided_error:.1f} units from what scheduler.step was given"
        )
        x0_error = max(x0_error, _x0_error(subject, step, state, guided, x0hat, results))
        ensure(x0_error <= 256, f"s{step:02d}: x0hat is {x0_error:.1f} units from the scheduler's own step")
    return f"guided within {guided_error:.1f}, x0hat within {x0_error:.1f} units of the scheduler's own"


def _x0_error(
    subject: Subject, step: int, state: Tensor, guided: Tensor, x0hat: Tensor, results: Sequence[Tensor]
) -> float:
    """Against the scheduler's own clean estimate where it returns one, else against its next state."""
    run, unpack = subject.base, subject.architecture.unpack
    if len(results) > 1 and isinstance(results[1], Tensor) and results[1].shape == results[0].shape:
        return ulps(unpack(results[1], _latent(subject)), x0hat, state)
    one_step = "Euler" in type(subject.model.pipeline.scheduler).__name__ or step == 0
    if not one_step or step + 1 >= run.geometry.steps:
        return 0.0
    noise = run.schedule.noise(step, state, guided)
    following = run.schedule.noisy(step + 1, x0hat, noise)
    return ulps(unpack(results[0], _latent(subject)), following, state)


def check_rows(subject: Subject) -> str:
    """A row of a batch is what it would be alone, to the precision of the dtype."""
    both = subject.run(inputs=subject.own_inputs, seed=[11, 12]).latents
    worst = 0.0
    for row, inputs in enumerate(subject.own_inputs):
        alone = subject.run(inputs=[inputs], seed=[11 + row]).latents
        error = ulps(alone, both[row : row + 1], alone)
        ensure(error <= 4096, f"row {row} differs by {error:.0f} units in the last place from its own single run")
        worst = max(worst, error)
    ensure(not torch.equal(both[0], both[1]), "the two rows are the same")
    return f"two rows, worst {worst:.0f} units in the last place"


def check_padding(subject: Subject) -> str:
    """Of a text stream attention reads the positions that the family says, and no others."""
    if "text" not in subject.base.geometry.streams:
        return "left out: this family's text is no stream"
    sites = Sites("embed", stream="text")

    def ends(push_words: bool) -> Tensor:
        def push(x: Tensor, at: At) -> Tensor:
            words = torch.ones(x.shape[:2], dtype=torch.bool) if at.text_valid is None else at.text_valid
            return torch.where(words.to(x.device)[..., None] == push_words, x + x.abs().amax(), x)

        return subject.run([FromFunction(sites, push)]).latents

    counts = {branch: valid.sum(dim=1).tolist() for branch, valid in subject.run([Capture(sites)]).text_valid.items()}
    ensure(torch.equal(ends(False), subject.base.latents), "pushing the padding of the text moved the final latents")
    ensure(not torch.equal(ends(True), subject.base.latents), "pushing the words of the text moved nothing")
    return f"words per row: {counts}" if counts else "attention reads every position"


def check_resume(subject: Subject) -> str:
    """A run resumed at a step and a layer gives the bits of the whole run with fewer forwards."""
    geometry = subject.base.geometry
    step, layer = geometry.steps - 1, geometry.layers // 2
    carried = [b for _, _, b in subject.architecture.layers(subject.model.pipeline.transformer) if b.carried]
    run = subject.run(resume=Resume(subject.base, step, 0 if carried else layer))
    ensure(torch.equal(run.latents, subject.base.latents), f"resumed at s{step:02d}/L{layer:02d}: other final latents")
    share = run.ledger.denoiser_forwards / subject.base.ledger.denoiser_forwards
    ensure(share == 1 / geometry.steps, f"{run.ledger.denoiser_forwards} forwards when resumed at step {step}")
    whole = " (whole steps only: this family carries a stream that is not recorded)" if carried else ""
    return f"from step {step}{'' if carried else f', layer {layer}'}: the same bits, {share:.2f} of the forwards{whole}"


def _latent(subject: Subject) -> Any:
    return tuple(subject.base.geometry.shapes["latents"])


CHECKS: Mapping[str, Callable[[Subject], str]] = {
    "untouched": check_untouched,
    "layers": check_layers,
    "token grid": check_grid,
    "branches": check_branches,
    "sum rule": check_sum_rule,
    "heads": check_heads,
    "identity patch": check_identity,
    "full swap": check_swap,
    "state swap": check_state_swap,
    "depth lens": check_depth_lens,
    "schedule": check_schedule,
    "rows": check_rows,
    "padding": check_padding,
    "resume": check_resume,
    "told": check_told,
    "flow": check_flow,
}
