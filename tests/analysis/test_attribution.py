"""Attribution patching: the derivative of what a sweep does, exact where all is linear, refused where it cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.analysis.attribution.result import AttributionPatching
from dit_lens.errors import DitLensError, EvidenceError, InputError, SiteError, UnsupportedModel
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.runs.seeds import row_seeds
from tests.analysis.returned import check_result
from tests.subjects import STEPS, Subject, subject_of

PAIRS = 3
#: Of a central difference: the random models are almost linear, and float32 rounds more than they bend.
WEIGHT = 0.1


@pytest.fixture
def small() -> dl.tasks.Maze:
    return dl.tasks.Maze(size=4, lengths=(3, 8))


def attributed(subject: Subject, task: Any, sites: dl.Sites, **more: Any) -> AttributionPatching:
    more = {"pairs": PAIRS, "num_inference_steps": STEPS} | more
    return dl.attribution_patching(subject.model, task, sites=sites, **more)


def slopes(
    model: dl.VideoDiT,
    task: Any,
    pairs: Any,
    sites: dl.Sites,
    over: Mapping[str, Any],
    weight: float = WEIGHT,
    **more: Any,
) -> np.ndarray[Any, Any]:
    """Derivative of the share by the weight of an interpolating patch, at weight 0: (K, P, 2)."""
    patch = dl.Patch("pair", sites, mode="interpolate", weight=weight)
    found = dl.sweep(
        model, task, patch, {**over, "weight": [-weight, weight]}, instances=pairs, seed=row_seeds(0, len(pairs)),
        **{"num_inference_steps": STEPS, **more},
    )  # fmt: skip
    assert not found.errors
    values = found.values[[point.cell == "swept" for point in found.points], 0]
    ends = values.reshape(-1, 2, len(pairs), 2)
    return np.asarray(ends[:, 1] - ends[:, 0]) / (2 * weight)


@pytest.mark.parametrize(
    ("name", "component", "scale"),
    [("organism", c, 2.0) for c in ("delta", "attn", "cross_attn", "ffn", "resid")]
    + [("two_experts", "delta", g) for g in (1.0, 2.0)],
)
def test_an_estimate_is_the_derivative_of_the_patch(
    small: dl.tasks.Maze, name: str, component: str, scale: float
) -> None:
    """Both experts, and with guidance all branches."""
    subject, sites, pairs = subject_of(name), dl.Sites(component), small.pairs(2)
    found = attributed(subject, small, sites, pairs=pairs, check=False, guidance_scale=scale)
    over = {"steps": "each", "layers": "each"}
    expected = slopes(subject.model, small, pairs, sites, over, guidance_scale=scale)
    assert len({site.expert for site in found.sites}) == (2 if name == "two_experts" else 1)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found.estimates, expected, rtol=2e-3, atol=2e-4)


def test_an_estimate_is_the_derivative_in_a_trained_model(shipped: Subject) -> None:
    task, sites = dl.tasks.Maze(), dl.Sites("delta", steps=[0, 5])
    pairs = task.pairs(2)
    found = attributed(shipped, task, sites, pairs=pairs, check=False, num_inference_steps=10)
    over = {"steps": [0, 5], "layers": "each"}
    expected = slopes(shipped.model, task, pairs, sites, over, weight=1e-2, num_inference_steps=10)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found.estimates, expected, rtol=0.01, atol=2e-3)


@pytest.mark.parametrize("branches", ["cond", ("cond", "uncond")])
def test_heads_tokens_and_branches_are_those_that_are_chosen(
    organism: Subject, small: dl.tasks.Maze, branches: Any, tmp_path: Path
) -> None:
    tokens = dl.Tokens(frames=[1, 2], rows=(0, 3))
    sites = dl.Sites("head", steps=1, layers=[1, 3], branches=branches, tokens=tokens)
    pairs = small.pairs(2)
    found = attributed(organism, small, sites, pairs=pairs, guidance_scale=2.0)
    over = {"layers": [1, 3], "heads": "each"}
    expected = slopes(organism.model, small, pairs, sites, over, guidance_scale=2.0)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(found.estimates, expected, rtol=2e-2, atol=5e-5)
    assert {site.branch for site in found.sites} == {"cond" if branches == "cond" else None}
    check_result(found, tmp_path)


def test_an_estimate_equals_gradient_times_difference_by_hand(organism: Subject, small: dl.tasks.Maze) -> None:
    """One site by finite differences, one pair, every run alone."""
    pair = next(p for p in small.pairs(5, seed=0) if small.answer_mask(p).any())
    sites = dl.Sites("attn", steps=0, layers=2)
    found = attributed(organism, small, sites, pairs=[pair], check=False)
    runs = [
        organism.model.run(
            x, row_seeds(0, 1), record=True, interventions=[dl.Capture(sites)], num_inference_steps=STEPS
        )
        for x in pair
    ]
    cells, own = torch.from_numpy(small.answer_mask(pair)), [organism.model.replay(run, 0).x0hat for run in runs]
    for a, b in ((0, 1), (1, 0)):
        way = (own[b] - own[a])[:, :, 1:, cells].double()
        ends = []
        for weight in (-WEIGHT, WEIGHT):
            patch = dl.Patch(runs[b], sites, mode="interpolate", weight=weight)
            x0hat = organism.model.replay(runs[a], 0, [patch]).x0hat
            ends.append(float((x0hat[:, :, 1:, cells].double() * way).sum() / way.square().sum()))
        assert found.estimates[0, 0, a] == pytest.approx((ends[1] - ends[0]) / (2 * WEIGHT), rel=1e-2, abs=1e-4)


def test_where_all_is_linear_the_estimate_is_the_truth(subject: Subject) -> None:
    """The clean estimate is linear in the velocity, at every step and with guidance."""
    prompts = dl.tasks.Pairs([("move the blue circle", "move the red circle")])
    task = prompts if subject.name == "text_to_video" else dl.tasks.Maze(size=4, lengths=(3, 8))
    found = attributed(subject, task, dl.Sites("velocity"), pairs=1, guidance_scale=2.0)
    assert found.estimates.shape == (STEPS, 1, 2)
    np.testing.assert_allclose(found.estimates, found.truths, rtol=1e-4, atol=1e-6)
    assert np.abs(found.truths[0]).min() > 0.1


#: Families whose tiny pipelines have Euler's scheduler, give the denoiser the state as it is, and have no other state.
_EULER = ("hunyuanvideo", "hunyuanvideo-1.5", "ltx-video")


@pytest.mark.parametrize("name", ["organism", *_EULER])
def test_the_end_is_that_of_runs_by_hand(organism: Subject, name: str, tmp_path: Path) -> None:
    """Back through the steps and all branches."""
    model, inputs, options = organism.model, list(organism.inputs), {"guidance_scale": 2.0}
    if name != "organism":
        model, inputs, options = dl.VideoDiT(TINY[name].build()), list(TINY[name].inputs()), dict(TINY[name].settings)
    options |= {"num_inference_steps": STEPS}
    sites = dl.Sites("delta", steps=[0, 1], layers=[0, 1], tokens=dl.Tokens(frames=[1]))
    task = dl.tasks.Pairs([tuple(inputs)])
    found = dl.attribution_patching(model, task, 1, sites=sites, on="final", **options)
    seeds, whole = row_seeds(0, 1) * 2, sites.at(tokens=dl.Tokens())
    run = model.run(inputs, seeds, decode=False, interventions=[dl.Capture(whole)], **options)
    assert run.sigmas[-1] == 0  # the clean estimate of the last step is what is decoded
    way = (run.latents[[1, 0]] - run.latents).double()[:, :, 1:].flatten(1)
    for i, site in enumerate(found.sites):
        ends = {}
        for weight in (-WEIGHT, WEIGHT, 1.0):
            one = sites.at(steps=site.step, layers=site.layer)
            patch = dl.Patch(run, one, rows=(1, 0), mode="interpolate", weight=weight)
            latents = model.run(inputs, seeds, decode=False, interventions=[patch], **options).latents
            change = (latents - run.latents).double()[:, :, 1:].flatten(1)
            ends[weight] = ((change * way).sum(dim=1) / way.square().sum(dim=1)).numpy()
        slope = (ends[WEIGHT] - ends[-WEIGHT]) / (2 * WEIGHT)
        np.testing.assert_allclose(found.estimates[i, 0], slope, rtol=2e-2, atol=2e-5)
        np.testing.assert_allclose(found.truths[i, 0], ends[1.0], rtol=1e-2, atol=1e-5)
    check_result(found, tmp_path)


def test_at_the_last_step_its_own_clean_estimate_is_the_end(shipped: Subject) -> None:
    sites, last = dl.Sites("velocity", steps=[1, 2]), dl.Sites("velocity", steps=2)
    own, end = (attributed(shipped, dl.tasks.Maze(), sites, pairs=2, on=on, check=last) for on in ("step", "final"))
    np.testing.assert_allclose(end.estimates[1], own.estimates[1], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(end.truths[1], end.estimates[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", sorted({*TINY} - {*_EULER}))
def test_the_end_is_refused_in_all_other_families(family: str) -> None:
    tiny = TINY[family]
    model, task = dl.VideoDiT(tiny.build()), dl.tasks.Pairs([tuple(tiny.inputs())])
    sites = dl.Sites("delta", layers=[0])
    with pytest.raises(UnsupportedModel, match=r"use on='step'"):
        dl.attribution_patching(model, task, 1, sites=sites, on="final", **dict(tiny.settings))


@pytest.mark.parametrize("family", TINY)
def test_every_family(family: str) -> None:
    tiny = TINY[family]
    model, inputs, settings = dl.VideoDiT(tiny.build()), list(tiny.inputs()), dict(tiny.settings)
    task = dl.tasks.Pairs([tuple(inputs)])
    sites = dl.Sites("delta", steps=1)
    found = dl.attribution_patching(model, task, 1, sites=sites, check=False, **settings)
    pairs = task.pairs(1)
    expected = slopes(model, task, pairs, sites, {"layers": "each"}, **settings)
    np.testing.assert_allclose(found.estimates, expected, rtol=5e-2, atol=2e-3)


def test_the_truth_is_the_sweep(organism: Subject, small: dl.tasks.Maze, tmp_path: Path) -> None:
    found = attributed(organism, small, dl.Sites("delta", steps=[0, 2]))
    over = {"steps": [0, 2], "layers": "each"}
    pairs = small.pairs(PAIRS)
    true = dl.sweep(
        organism.model, small, dl.Patch("pair", dl.Sites("delta")), over, instances=pairs, num_inference_steps=STEPS
    )
    swept = true.table[true.table["cell"] == "swept"]
    own = found.table[found.table["measure"] == "truth"]
    np.testing.assert_allclose(own["value"], swept["value"], atol=1e-6)
    assert list(own["layer"]) == list(swept["layer"])
    assert found.true_forwards == true.forwards
    assert "furthest off" in str(found)
    check_result(found, tmp_path)


def test_no_more_is_computed_for_more_sites(organism: Subject, small: dl.tasks.Maze) -> None:
    one, all_ = (
        attributed(organism, small, dl.Sites("head", steps=0, layers=k), check=False, guidance_scale=1.0).forwards
        for k in (3, "all")
    )
    assert one == all_ == 2 * 2 * PAIRS


def test_the_trap_all_of_the_residual_has_no_order(organism: Subject, small: dl.tasks.Maze) -> None:
    """Every layer hands over everything: a rank correlation would be one of rounding errors."""
    found = attributed(organism, small, dl.Sites("resid", steps=0))
    np.testing.assert_allclose(found.truths, 1, atol=1e-5)
    values = found.agreement.set_index("measure")["value"]
    assert np.isnan(values[["spearman", "spearman_of_means"]].to_numpy(dtype=float)).all()
    assert values["ratio"] == pytest.approx(found.estimates.mean(), rel=1e-3)


def test_batches_change_nothing(organism: Subject, small: dl.tasks.Maze) -> None:
    whole, parts, single = (
        attributed(organism, small, dl.Sites("delta", steps=1), check=False, batch=b).estimates for b in (32, 4, 1)
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(whole, single, rtol=1e-3, atol=1e-5)


def test_some_sites_are_patched_or_none(organism: Subject, small: dl.tasks.Maze, tmp_path: Path) -> None:
    sites = dl.Sites("delta", steps=[0, 1])
    all_, some, none = (
        attributed(organism, small, sites, check=c) for c in (True, sites.at(steps=1, layers=[2, 0]), False)
    )
    assert len(some.worst) == 2
    rows = [i for i, site in enumerate(some.sites) if site.step == 1 and site.layer in (0, 2)]
    np.testing.assert_allclose(some.truths[rows], all_.truths[rows], atol=1e-6)
    assert np.isnan(some.truths).sum() == 6 * PAIRS * 2
    assert set(some.agreement["step"]) == {1}
    assert set(none.table["measure"]) == {"estimate"}
    for i, found in enumerate((some, none)):
        check_result(found, tmp_path / str(i))


def test_interventions_are_in_every_run(organism: Subject, small: dl.tasks.Maze) -> None:
    """With a layer bypassed in all runs, its update is zero on both sides."""
    bypass = dl.Bypass(dl.Sites("delta", layers=2))
    found = attributed(organism, small, dl.Sites("delta", steps=0), interventions=[bypass])
    np.testing.assert_array_equal(found.estimates[2], 0)
    np.testing.assert_allclose(found.truths[2], 0, atol=2e-5)
    assert np.abs(found.estimates[1]).max() > 1e-3


def test_a_metric_of_ones_own_is_differentiated(organism: Subject, small: dl.tasks.Maze) -> None:
    def brightness(moved: Any) -> torch.Tensor:
        return moved.x0hat.double().mean(dim=(1, 2, 3, 4))  # type: ignore[no-any-return]

    metric = dl.Metric("brightness", "x0hat", brightness)
    found = attributed(organism, small, dl.Sites("velocity", steps=1), metric=metric)
    # A sweep says where the metric is; the truth is how far it has moved.
    np.testing.assert_allclose(found.estimates, found.truths, rtol=1e-3, atol=1e-7)


def agreement_of(estimates: Any, truths: Any) -> dict[str, float]:
    sites = tuple(dl.Site(0, None, k, "delta") for k in range(len(estimates)))
    pairs = tuple(f"pair {p}" for p in range(np.shape(estimates)[1]))
    both = [np.repeat(np.asarray(x, dtype=float)[..., None], 2, axis=2) for x in (estimates, truths)]
    found = AttributionPatching(
        "m", "t", "share", "step", sites, ("single",) * len(sites), pairs, len(pairs), (0,) * len(pairs), *both,
        1, 1, 1, 1,
    )  # fmt: skip
    return dict(zip(found.agreement["measure"], found.agreement["value"], strict=True))


def test_agreement_of_known_numbers() -> None:
    truths = [[0.1, 0.4], [0.2, 0.3], [0.4, 0.1]]
    found = agreement_of([[1, 1], [2, 2], [3, 3]], truths)
    assert found["spearman"] == pytest.approx(0)
    assert found["ratio"] == pytest.approx(12 / 1.5)
    assert found["slope"] == pytest.approx(1.5 / (sum(x**2 for row in truths for x in row) / 2))
    assert agreement_of(truths, truths)["spearman"] == pytest.approx(1)
    # The second site is too small for its sign to count; the third of the first pair is wrong.
    wrong = agreement_of([[1, 1], [-1, -1], [-1, 1]], [[1, 1], [0.01, 0.01], [1, 1]])
    assert wrong["wrong_sign"] == pytest.approx(0.25)
    both = agreement_of([[2, 2], [-2, -2], [2, 2]], [[1, 1], [-1, -1], [1, 1]])
    assert np.isnan(both["ratio"])
    assert both["slope"] == pytest.approx(2)
    nothing = agreement_of(np.ones((3, 2)), np.zeros((3, 2)))
    assert np.isnan(list(nothing.values())).all()
    assert np.isnan(agreement_of(truths[:2], truths[:2])["spearman"])


class Mute:
    """A task without pairs."""

    name = title = "mute"

    def sample(self, count: int, seed: int = 0, split: str = "test") -> list[Any]:
        return dl.tasks.Maze(size=4, lengths=(3, 8)).sample(count, seed=seed)


SITES = dl.Sites("delta", steps=0)
REFUSED: dict[str, tuple[dict[str, Any], type[DitLensError], str]] = {
    "no pairs": ({"pairs": 0}, EvidenceError, "attribution_patching needs pairs"),
    "a task without pairs": ({"task": Mute()}, EvidenceError, "attribution_patching needs pairs"),
    "a text": ({"sites": SITES.at(stream="text")}, SiteError, "one component of the video stream"),
    "components": ({"sites": dl.Sites(("attn", "ffn"))}, SiteError, "one component of the video stream"),
    "no sites": ({"sites": "delta"}, SiteError, "is no Sites"),
    "a state": ({"sites": dl.Sites("latents")}, SiteError, "latents is around the denoiser"),
    "a step": ({"sites": SITES.at(steps=7)}, SiteError, "no step 7"),
    "a layer": ({"sites": SITES.at(layers=9)}, SiteError, "no layer 9"),
    "a branch": ({"sites": SITES.at(branches="stg")}, SiteError, "unknown branch 'stg'"),
    "another check": ({"check": dl.Sites("delta", steps=1)}, SiteError, "s01/.*is none of the sites"),
    "another component": ({"check": dl.Sites("attn", steps=0)}, SiteError, "the same component, branches and tokens"),
    "frames": ({"metric": "strict"}, InputError, "need one metric of x0hat"),
    "a function": ({"metric": lambda frames, instances: 0}, InputError, "need one metric of x0hat"),
    "a norm": ({"metric": "distance"}, InputError, "with a derivative"),
    "a layer's": ({"metric": dl.Metric("m", "x0hat", lambda m: m, layer=1)}, InputError, "without a layer"),
    "two": ({"metric": ["share", "projection"]}, InputError, "need one metric"),
    "an unknown metric": ({"metric": "shares"}, InputError, "unknown metric 'shares'"),
    "a number": ({"metric": dl.Metric("m", "x0hat", lambda m: m.x0hat.sum())}, InputError, r"a tensor of shape \(\)"),
    "numpy": (
        {"metric": dl.Metric("m", "x0hat", lambda m: m.x0hat.detach().numpy())}, InputError, "'m' gave ndarray",
    ),
    "a constant": (
        {"metric": dl.Metric("m", "x0hat", lambda m: m.clean.sum((1, 2, 3, 4)))}, InputError, "without a derivative",
    ),
    "an end": ({"on": "end"}, InputError, "'step' .*or 'final'"),
    "a batch": ({"batch": 0}, InputError, "batch=0"),
    "decoding": ({"decode": True}, InputError, "takes no decode"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_any_patch(
    organism: Subject, small: dl.tasks.Maze, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dit_lens.analysis.attribution.estimate.carry_out", lambda *_, **__: pytest.fail("it patched"))
    given, error, said = REFUSED[name]
    given = {"task": small, "sites": SITES, **given}
    with pytest.raises(error, match=said):
        attributed(organism, **given)


def test_pairs_whose_answers_do_not_differ_are_left_out(organism: Subject, small: dl.tasks.Maze) -> None:
    maze, pairs = small.sample(1)[0], small.pairs(1)
    found = attributed(organism, small, SITES, pairs=[(maze, maze), *pairs], check=False)
    assert (found.tried, len(found.pairs), found.estimates.shape[1]) == (2, 1, 1)
    with pytest.raises(EvidenceError, match="of no pair differ"):
        attributed(organism, small, SITES, pairs=[(maze, maze)])


@pytest.mark.parametrize(
    ("intervention", "said"),
    [
        (dl.Noise(dl.Sites("latents", steps=2), "add"), "an edit of the state"),
        (dl.Ablate(dl.Sites("model_input", steps=1)), "the sampler's state as it is"),
    ],
    ids=["state", "input"],
)
def test_derivatives_do_not_come_back_through_edits_of_the_state(
    organism: Subject, small: dl.tasks.Maze, intervention: Any, said: str
) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        attributed(organism, small, dl.Sites("delta"), on="final", interventions=[intervention])


def test_float16_is_refused(organism: Subject, small: dl.tasks.Maze) -> None:
    transformer = organism.pipeline.transformer
    weights = {name: value.clone() for name, value in transformer.state_dict().items()}
    try:
        transformer.half()
        with pytest.raises(UnsupportedModel, match="float16"):
            attributed(organism, small, SITES)
    finally:
        transformer.float()
        transformer.load_state_dict(weights)
