"""CKA: known answers, the formula with Gram matrices, the jackknife by brute force, and models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dit_lens as dl
from dit_lens.errors import EvidenceError, InputError, NotFinite, SiteError
from dit_lens.lens.reading import Reading
from dit_lens.lens.representation.cka import CKA, Features, cka, cka_features
from dit_lens.lens.representation.hsic import Centred, estimates, hsic, linear_cka
from tests.lens.representation.test_energy import FAMILIES, checked
from tests.subjects import Edit, Subject


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def song(k: Tensor, m: Tensor) -> Tensor:
    """HSIC_1 as Song et al. write it, with the two n x n matrices."""
    n, k, m = len(k), k - torch.diag(k.diag()), m - torch.diag(m.diag())
    one = torch.ones(n, dtype=k.dtype)
    total = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return ((k @ m).trace() + total - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def by_gram_matrices(x: Tensor, y: Tensor) -> float:
    k, m = x @ x.T, y @ y.T
    return float(song(k, m) / (song(k, k) * song(m, m)).sqrt())


def biased(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


@given(st.integers(6, 30), st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_it_equals_the_formula_with_gram_matrices(n: int, wide: int, other: int, seed: int) -> None:
    x = normal(n, wide, seed=seed)
    y = normal(n, other, seed=seed + 1) + x[:, :1]
    ours = hsic(Centred.of(x, [], "x"), Centred.of(y, [], "y"))
    # Relative to the largest of the sums that cancel in it.
    size = float((x @ x.T).norm() * (y @ y.T).norm()) / (n * (n - 3))
    assert abs(float(ours[0] - song(x @ x.T, y @ y.T))) < 1e-12 * size


@pytest.mark.parametrize(("n", "wide"), [(200, 8), (40, 100)])
def test_an_offset_changes_nothing(n: int, wide: int) -> None:
    x, y = normal(n, wide), normal(n, wide, seed=1) + normal(n, wide)
    assert linear_cka(x + 1000, y - 50) == pytest.approx(by_gram_matrices(x, y), abs=1e-9)


@pytest.mark.parametrize(("n", "wide"), [(200, 8), (40, 100)])
def test_known_answers(n: int, wide: int) -> None:
    x, y = normal(n, wide), normal(n, wide, seed=1) + normal(n, wide)
    turn = torch.linalg.qr(normal(wide, wide, seed=2)).Q
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), abs=1e-12)
    assert linear_cka(7 * x @ turn, y) == pytest.approx(linear_cka(x, y), abs=1e-12)
    assert 0.1 < linear_cka(x, y) < 0.9


def test_independent_features_give_0_where_the_biased_estimator_does_not() -> None:
    pairs = [(normal(50, 400, seed=2 * i), normal(50, 400, seed=2 * i + 1)) for i in range(20)]
    unbiased = [linear_cka(x, y) for x, y in pairs]
    error = np.std(unbiased) / np.sqrt(len(pairs))
    assert abs(np.mean(unbiased)) < 3 * error
    assert error < 0.02
    assert min(biased(x, y) for x, y in pairs) > 0.8


def features(values: Tensor, instances: list[str] | None = None, **changes: Any) -> Features:
    """One step of as many layers as given; values of shape (layers, B, m, D)."""
    names = instances or [str(i) for i in range(values.shape[1])]
    reading = Reading(
        "m", "resid", "video", "cond", (0,), (1.0,), (None,), tuple(range(len(values))), ("single",) * len(values),
        tuple(dl.Row(name, i) for i, name in enumerate(names)), (1, 1, values.shape[2]),
    )  # fmt: skip
    return replace(Features(values[None], "tokens", tuple(range(values.shape[2])), reading), **changes)


@pytest.mark.parametrize("wide", [5, 60])
def test_the_jackknife_is_what_leaving_out_each_instance_gives(wide: int) -> None:
    x = normal(1, 7, 3, wide)
    y = normal(1, 7, 3, 4, seed=1) + x[..., :4]
    names = ["a", "a", "b", "c", "d", "e", "b"]
    found = cka(features(x, names), features(y, names))
    keeps = [[i for i, name in enumerate(names) if name != one] for one in "abcde"]
    left = [by_gram_matrices(x[0, keep].flatten(0, 1), y[0, keep].flatten(0, 1)) for keep in keeps]
    half = 1.96 * np.sqrt(4 * np.var(left))
    value = by_gram_matrices(x[0].flatten(0, 1), y[0].flatten(0, 1))
    assert found.values.item() == pytest.approx(value, abs=1e-10)
    assert found.low.item() == pytest.approx(value - half, abs=1e-9)
    assert found.high.item() == pytest.approx(min(1, value + half), abs=1e-9)
    assert (found.count, found.instances) == (21, 5)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """y = x + noise of the same variance: HSIC(x, y) is D, of x D, of y 4 D, so that CKA is one half."""
    inside = 0
    for i in range(60):
        x = normal(1, 60, 1, 6, seed=2 * i)
        found = cka(features(x), features(x + normal(1, 60, 1, 6, seed=2 * i + 1)))
        inside += found.low.item() <= 0.5 <= found.high.item()
    assert inside >= 51  # of 60 at 95 %: fewer would happen once in a thousand times


def test_too_few_instances_have_a_value_and_no_interval() -> None:
    for count, tokens in ((1, 20), (4, 1)):
        found = cka(features(normal(2, count, tokens, 3)))
        assert np.isfinite(found.values).all()
        assert np.isnan(found.low).all()
        assert np.isnan(found.high).all()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("unit", ["tokens", "flat clips"])
def test_layers_of_every_family(name: str, unit: str) -> None:
    subject = checked(name)
    four = [*subject.inputs, *subject.inputs]
    given = {"seed": [1, 2, 3, 4], "sites": dl.Sites(steps=0), "per_row": None, **subject.settings}
    read = cka_features(subject.model, four, unit=unit, **given)
    layers, tokens = subject.model.layers, int(np.prod(read.reading.grid))
    found = cka(read)
    matrix = found.values[0, :, 0]
    assert matrix.shape == (layers, layers)
    assert np.allclose(np.diag(matrix), 1)
    assert np.array_equal(matrix, matrix.T)
    assert matrix.min() < 1 - 1e-6
    assert found.count == (4 * tokens if unit == "tokens" else 4)
    flat = read.values[0].flatten(1, 2).double()
    assert matrix[0, 1] == pytest.approx(by_gram_matrices(flat[0], flat[1]), abs=1e-7)


def test_steps_against_steps_and_run_against_run(organism: Subject) -> None:
    def read(seed: int, layers: Any = 2) -> Features:
        chosen = {"seed": [seed, seed + 1], "num_inference_steps": 3, **organism.options}
        return cka_features(organism.model, list(organism.inputs), sites=dl.Sites(layers=layers), **chosen)

    one, other = read(1), read(3)
    steps = cka(one)
    assert steps.values.shape == (3, 1, 3, 1)
    assert steps.plot().get_ylabel() == "step"
    across = cka(one, other)
    assert np.diag(across.values[:, 0, :, 0]).max() < 1
    assert across.plot().get_xlabel() == "step of the other run"
    again = cka(one, read(1))
    assert np.array_equal(again.values, cka(one, one).values)
    layers = cka(one, read(1, layers=[0, 3]))
    assert layers.values.shape == (3, 1, 3, 2)
    assert layers.plot().get_ylabel() == "place"


def test_the_table_states_the_sample_axis(organism: Subject) -> None:
    four = [*organism.inputs, *organism.inputs]
    given = {"seed": [1, 2, 3, 4], "num_inference_steps": 3, **organism.options}
    read = cka_features(organism.model, four, sites=dl.Sites(steps=[0]), unit="clips", **given)
    run = organism.model.run(
        four,
        [1, 2, 3, 4],
        num_inference_steps=3,
        decode=False,
        interventions=[dl.Capture(dl.Sites("resid", steps=0))],
        **organism.options,
    )
    assert torch.equal(read.values[0, 1, :, 0], run[dl.Site(0, "cond", 1, "resid")].mean(dim=(1, 2, 3)))
    table = cka(read).table
    assert set(table["unit"]) == {"clips"}
    assert set(table["n_samples"]) == {4}
    assert set(table["n"]) == {2}
    assert len(table) == 16
    assert {"step", "sigma", "expert", "layer", "kind", "other_step", "other_layer", "value", "low", "high"} <= set(
        table
    )


def test_text_streams_can_be_compared_with_themselves_but_not_with_the_video() -> None:
    subject = checked("hunyuanvideo")
    options = {"seed": [1, 2], "per_row": None, **subject.settings}
    text, video = (
        cka_features(subject.model, list(subject.inputs), sites=dl.Sites(steps=0, stream=s), **options)
        for s in ("text", "video")
    )
    assert np.allclose(np.diag(cka(text).values[0, :, 0]), 1)
    with pytest.raises(InputError, match="different tokens"):
        cka(text, video)


def test_bad_input_is_refused() -> None:
    x = normal(1, 3, 2, 5)
    good = features(x)
    with pytest.raises(InputError, match="3 samples; the unbiased estimator needs at least 4"):
        linear_cka(normal(3, 2), normal(3, 2))
    with pytest.raises(InputError, match="at least 4"):
        cka(features(x[:, :1]))
    with pytest.raises(InputError, match=r"5 samples in x and 6 in y"):
        linear_cka(normal(5, 2), normal(6, 2))
    with pytest.raises(InputError, match=r"float64.*float32"):
        linear_cka(normal(5, 2), normal(5, 2).float())
    with pytest.raises(InputError, match="int64"):
        linear_cka(torch.arange(10).reshape(5, 2), torch.arange(10).reshape(5, 2))
    with pytest.raises(InputError, match="shape"):
        linear_cka(normal(5), normal(5))
    broken = normal(5, 2)
    broken[3, 1] = float("inf")
    with pytest.raises(NotFinite, match="x: 1 values"):
        linear_cka(broken, normal(5, 2))
    with pytest.raises(EvidenceError, match="all samples are the same"):
        linear_cka(torch.full((9, 3), 0.1), torch.rand(9, 3))
    with pytest.raises(InputError, match="3 rows in one and 2 in the other"):
        cka(good, features(x[:, :2]))
    with pytest.raises(InputError, match="row 1 is of instance 1 in one and of other"):
        cka(good, features(x, ["0", "other", "2"]))
    with pytest.raises(InputError, match="different tokens"):
        cka(good, features(x, tokens=(0, 2)))
    with pytest.raises(InputError, match="samples are tokens in one and clips"):
        cka(good, features(x, unit="clips"))
    with pytest.raises(InputError, match="float32"):
        cka(good, good.to(torch.float32))
    with pytest.raises(NotFinite, match="step 0, layer 0"):
        cka(features(torch.full_like(x, float("nan"))))


def test_features_that_would_not_fit_into_memory_are_refused_at_the_first_site(organism: Subject) -> None:
    seen: list[dl.Site] = []

    def look(activation: torch.Tensor, at: dl.At) -> None:
        seen.append(at.site)

    options: dict[str, Any] = {"seed": 1, "num_inference_steps": 3, "per_row": 7, **organism.options}
    watch = Edit(dl.Sites("resid"), look, reads_only=True)
    needed = 8 * 3 * 4 * 1 * 7 * 128  # float64: steps, layers, rows, tokens, channels
    some = cka_features(organism.model, organism.inputs[0], budget=needed, **options)
    message = rf"3 steps x 4 layers x 1 rows x 7 samples of 128 channels take {needed:,} .*78 pairs"
    with pytest.raises(InputError, match=message):
        cka_features(organism.model, organism.inputs[0], budget=needed - 1, interventions=[watch], **options)
    assert len(seen) == 1
    with pytest.raises(InputError, match=message):
        cka(some, budget=needed - 1)
    assert cka(some, budget=needed).values.shape == (3, 4, 3, 4)


def test_bad_choices_are_refused_before_the_run(organism: Subject) -> None:
    def read(**options: Any) -> Features:
        return cka_features(organism.model, organism.inputs[0], num_inference_steps=3, **organism.options, **options)

    with pytest.raises(InputError, match="one of 'tokens', 'clips', 'flat clips'"):
        read(unit="frames")
    with pytest.raises(InputError, match="per_row=0"):
        read(per_row=0)
    with pytest.raises(SiteError, match=r"layers 0\.\.3"):
        read(sites=dl.Sites(layers=4))


def test_the_subset_of_tokens_is_one_for_all_places(organism: Subject) -> None:
    options = {"sites": dl.Sites(steps=[0, 1]), "seed": 1, "num_inference_steps": 3, **organism.options}
    some = cka_features(organism.model, organism.inputs[0], per_row=7, **options)
    whole = cka_features(organism.model, organism.inputs[0], per_row=None, **options)
    assert torch.equal(some.values, whole.values[..., list(some.tokens), :])
    assert len(some.tokens) == 7


def test_the_layers_of_the_shipped_model_change_little_by_little(shipped: Subject) -> None:
    mazes = dl.tasks.Maze(size=6).sample(6, seed=3)
    found: CKA = cka(cka_features(shipped.model, mazes, seed=list(range(6)), sites=dl.Sites(steps=0)))
    matrix = found.values[0, :, 0]
    assert matrix[0, 1] > matrix[0, 3] > matrix[0, 5]


def test_estimates_need_variance_beyond_single_samples() -> None:
    alone = torch.zeros(6, 1, dtype=torch.float64)
    alone[0] = 1
    place = Centred.of(alone, [], "x")
    with pytest.raises(EvidenceError, match="single samples"):
        estimates(place, place)
