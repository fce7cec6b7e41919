"""Bands from curves whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dit_lens.analysis.localization.bands import (
    Curves,
    Thresholds,
    consolidation,
    find_bands,
    perception,
    reasoning,
    rise,
)

LIMITS = Thresholds()
LAYERS = 8


def ramp(first: int, last: int, height: float = 0.8) -> np.ndarray:
    """A curve (L + 1,) that is 0 up to block ``first`` and rises in equal steps to its top after block ``last``."""
    after = np.clip((np.arange(-1, LAYERS) - first + 1) / (last - first + 1), 0, 1)
    return np.asarray(after * height)


def noisy(curve: np.ndarray, spread: float, replicates: int = 200, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(scale=spread, size=(replicates, len(curve)))
    return np.concatenate([curve[None], curve + noise])


def clear_curves(spread: float = 0.01) -> Curves:
    """Perception in blocks 0-1, reasoning in 2-4 moved by 3, legality gained in 6-7."""
    share = np.zeros(LAYERS)
    share[3] = 0.6
    legality = np.array([0, 0, 0, 0, 0, 0.1, 0.5, 0.9])
    return Curves(
        perception=noisy(ramp(0, 1), spread, seed=1), reasoning=noisy(ramp(2, 4), spread, seed=2),
        path=noisy(ramp(2, 4), spread, seed=3), share=noisy(share, spread, seed=4),
        unrelated=noisy(np.zeros(LAYERS), spread, seed=5), legality=noisy(legality, spread, seed=6),
    )  # fmt: skip


def test_a_clear_model_has_its_three_bands() -> None:
    verdict = find_bands(clear_curves())
    assert {name: band.layers for name, band in verdict.bands.items()} == {
        "perception": [0, 1], "reasoning": [3], "consolidation": [6, 7],
    }  # fmt: skip
    assert str(verdict) == "perception+reasoning+consolidation"
    assert verdict.reasons == {}


def test_ends_of_a_rise() -> None:
    assert rise(ramp(2, 6), LIMITS) == (2, 5)
    assert rise(ramp(5, 5), LIMITS) == (5, 5)


@pytest.mark.parametrize("height", [0.0, 0.05, -0.5])
def test_a_curve_that_does_not_rise_is_no_band(height: float) -> None:
    assert perception(ramp(2, 4, height), LIMITS) is None


def test_what_the_embedding_already_holds_is_no_layers_doing() -> None:
    assert perception(np.full(LAYERS + 1, 0.9), LIMITS) is None


def test_a_large_share_alone_is_no_reasoning() -> None:
    assert reasoning(np.zeros(LAYERS + 1), np.ones(LAYERS), np.zeros(LAYERS), LIMITS) is None


def test_rising_labels_alone_are_no_reasoning() -> None:
    assert reasoning(ramp(2, 4), np.zeros(LAYERS), np.zeros(LAYERS), LIMITS) is None


def test_a_share_outside_the_rise_does_not_count() -> None:
    share = np.zeros(LAYERS)
    share[7] = 1.0
    assert reasoning(ramp(2, 4), share, np.zeros(LAYERS), LIMITS) is None


def test_a_share_that_an_unrelated_pair_has_too_does_not_count() -> None:
    share = np.full(LAYERS, 0.5)
    assert reasoning(ramp(2, 4), share, share, LIMITS) is None


def test_no_consolidation_where_the_answer_is_decodable_only_at_the_end() -> None:
    assert consolidation(ramp(2, 7), np.linspace(0, 1, LAYERS), LIMITS) is not None
    assert consolidation(ramp(7, 7), np.linspace(0, 1, LAYERS), LIMITS) is None


def test_no_consolidation_where_what_the_lens_shows_is_legal_at_once() -> None:
    assert consolidation(ramp(1, 2), np.ones(LAYERS), LIMITS) is None


def test_a_band_that_most_replicates_lack_is_not_reported() -> None:
    curves = clear_curves()
    flat = curves.perception.copy()
    flat[1::2] = 0
    verdict = find_bands(replace(curves, perception=flat))
    assert "perception" not in verdict.bands
    assert "replicates" in verdict.reasons["perception"]
    assert str(verdict) == "reasoning+consolidation"


def test_noise_has_no_bands_and_says_why() -> None:
    zero = np.zeros(LAYERS)
    noise = {name: noisy(zero, 0.02, seed=i) for i, name in enumerate(("share", "unrelated", "legality"))}
    flat = {name: noisy(np.zeros(LAYERS + 1), 0.02, seed=9) for name in ("perception", "reasoning", "path")}
    verdict = find_bands(Curves(**flat, **noise))
    assert str(verdict) == "none"
    assert set(verdict.reasons) == {"perception", "reasoning", "consolidation"}


def test_interval_of_an_end_covers_where_replicates_put_it() -> None:
    band = find_bands(clear_curves(spread=0.1)).bands["perception"]
    assert band.onset.low <= band.onset.value <= band.onset.high
    assert band.end.low <= band.end.value <= band.end.high
    assert band.to_json()["layers"] == band.layers
