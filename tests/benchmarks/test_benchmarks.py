"""Every comparison once at a tiny size: all of it that does not depend on a clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import __main__ as command
from tests.benchmarks.cases import Case, cases
from tests.benchmarks.measure import Ratio, compare
from tests.benchmarks.memory import peak_bytes
from tests.benchmarks.models import SIZES, TINY, TINY_BF16, Bench, Size
from tests.subjects import leftovers

NAMES = ["unwrapped", "nothing", "pooled", "full", "resumed"]
STATE = 16 * 2 * 4 * 8 * 4  # bytes of the tiny model's state, in float32
#: Bytes of what a scheduler keeps from one generation to the next, timesteps and sigmas.
SMALL = 64


@pytest.fixture(scope="module", params=[TINY, TINY_BF16], ids=lambda size: size.name)
def measured(request: pytest.FixtureRequest) -> tuple[Bench, dict[str, dict[str, Any]]]:
    bench = Bench(request.param)
    return bench, _results(cases(bench))


def _results(chosen: Sequence[Case]) -> dict[str, dict[str, Any]]:
    return {timing.case.name: timing.result() for timing in compare(chosen, rounds=1)}


def test_all_cases_are_measured_and_leave_nothing_behind(measured: Any) -> None:
    bench, results = measured
    assert list(results) == NAMES
    assert leftovers(bench.model.pipeline) == leftovers(bench.stranger) == []


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_of_a_pair_make_the_same_video(measured: Any, name: str) -> None:
    assert measured[1][name]["facts"]["same latents"]


def test_full_capture_keeps_what_hooks_keep(measured: Any) -> None:
    assert measured[1]["full"]["facts"]["same captures"]


@pytest.mark.parametrize("name", ["pooled", "full"])
def test_captures_are_the_reduced_tensors_and_no_more(measured: Any, name: str) -> None:
    facts = measured[1][name]["facts"]
    assert facts["ledger bytes"] == facts["held bytes"] == facts["expected bytes"] > 0


def test_a_resumed_run_does_its_share_of_the_forwards(measured: Any) -> None:
    facts = measured[1]["resumed"]["facts"]
    assert facts["share"] == facts["expected share"] == 0.5
    assert facts["whole forwards"] == TINY.settings["num_inference_steps"] * 2


def test_a_run_holds_no_more_than_the_reduced_tensors() -> None:
    # Large enough that the peak is in the blocks, and not where the sample of the VAE's weights is hashed.
    settings = TINY.settings | {"height": 2 * TINY.settings["height"], "width": 2 * TINY.settings["width"]}
    results = _results(_chosen(Bench(replace(TINY, settings=settings)), "nothing", "pooled"))
    nothing, pooled = (results[name]["memory"] for name in ("nothing", "pooled"))
    captured = results["pooled"]["facts"]["expected bytes"]
    assert abs(nothing["above plain with a step callback"]) <= SMALL
    last = 32 * 4  # what the last block gives is captured after the peak
    assert captured - last <= pooled["above plain with a step callback"] <= captured + SMALL
    assert pooled["above plain"] <= captured + 2 * 4 * STATE + SMALL  # see tests/benchmarks/memory.py


def _chosen(bench: Bench, *names: str) -> list[Case]:
    return [case for case in cases(bench) if case.name in names]


def _mib(count: int) -> torch.Tensor:
    return torch.empty(count * 2**20, dtype=torch.uint8)


def _one_after_the_other() -> None:
    _mib(3)
    _mib(2)


def _together() -> None:
    kept = [_mib(3), _mib(2)]
    del kept


def _inside_an_operator() -> None:
    _mib(2).unfold(0, 1, 1).sort(stable=True, dim=0)  # makes values (2) and indices (16) of its own


@pytest.mark.parametrize(
    ("function", "least", "most"), [(_one_after_the_other, 3, 3), (_together, 5, 5), (_inside_an_operator, 20, 64)]
)
def test_peak_memory_is_the_most_that_is_alive_at_once(function: Callable[[], None], least: int, most: int) -> None:
    assert least * 2**20 <= peak_bytes(function) <= most * 2**20


def test_a_twin_has_the_same_tensors_in_modules_of_its_own() -> None:
    bench = Bench(TINY)
    own, other = dict(bench.transformer.named_parameters()), dict(bench.stranger.transformer.named_parameters())
    assert all(own[name] is other[name] for name in own)
    assert not set(bench.transformer.modules()) & set(bench.stranger.transformer.modules())


def test_the_rounds_of_a_case_alternate_at_random_and_sides_stay_paired() -> None:
    seen: list[int] = []
    bench = Bench(TINY)
    case = _chosen(bench, "unwrapped")[0]
    sides = tuple(_noting(seen, i, case.sides[i]) for i in (0, 1))
    (timing,) = compare([Case("noted", "", "", sides, None, case.facts)], rounds=8)  # type: ignore[arg-type]
    pairs = [tuple(seen[i : i + 2]) for i in range(2, len(seen), 2)]  # after one of each for the facts
    assert set(pairs) == {(0, 1), (1, 0)}
    assert len(timing.wall) == len(timing.processor) == len(pairs) == 8


def _noting(seen: list[int], number: int, side: Callable[[], Any]) -> Callable[[], Any]:
    def noted() -> Any:
        seen.append(number)
        return side()

    return noted


def test_a_ratio_is_a_median_whose_interval_decides() -> None:
    ratio = Ratio.of([1.0, 1.1, 1.2, 1.1, 9.0])
    assert ratio.median == 1.1
    assert ratio.extremes == (1.0, 9.0)
    assert ratio.low <= 1.1 <= ratio.high
    assert [Ratio.of([1.2] * 6).verdict(limit) for limit in (1.1, 1.3, None)] == ["exceeded", "holds", ""]
    assert Ratio(1.0, 0.9, 1.2, (0.9, 1.1), (0.9, 1.2), 9).verdict(1.1) == "open"
    assert Ratio.of([1.2] * 5).verdict(1.1) == "open"  # too few rounds to say


def test_the_command_prints_a_table_and_writes_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "shipped", TINY)
    out = tmp_path / "made" / "tiny.json"
    assert command.main(["--size", "shipped", "--rounds", "2", "--only", "nothing", "resumed", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert set(result) == {"schema", "date", "machine", "versions", "model", "rounds", "seed", "cases"}
    assert {"processor", "cores", "threads", "load", "load at the end", "accelerator"} <= set(result["machine"])
    assert {"python", "torch", "diffusers", "nnsight", "dit_lens", "commit"} <= set(result["versions"])
    assert [case["case"] for case in result["cases"]] == ["nothing", "resumed"]
    for case in result["cases"]:
        assert len(case["seconds"]) == len(case["processor seconds"]) == result["rounds"] == 2
        assert set(case["ratio"]) == {"median", "low", "high", "quartiles", "extremes", "rounds"}
    printed = capsys.readouterr().out
    assert "nothing" in printed
    assert "share 0.5" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the size needs")
@pytest.mark.parametrize("name", ["wan-1.3b", "wan-14b-stack"])
def test_sizes_for_an_accelerator_say_why_they_are_skipped(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--size", name]) == 1
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("size", SIZES.values(), ids=lambda size: size.name)
def test_sizes_are_what_they_say(size: Size) -> None:
    layers, width, tokens = {
        "shipped": (8, 128, 180), "wan-50m": (12, 512, 1536), "wan-1.3b": (30, 1536, 32760),
        "wan-14b-stack": (4, 5120, 32760),
    }[size.name]  # fmt: skip
    if size.device != "cpu":
        made = size.make.args  # type: ignore[attr-defined]
        assert (made[0], made[1] * made[2]) == (layers, width)
        settings = size.settings
        grid = ((settings["num_frames"] - 1) // 4 + 1) * (settings["height"] // 16) * (settings["width"] // 16)
        assert grid == tokens
        return
    facts = Bench(size).facts()
    assert (facts["layers"], facts["width"], facts["tokens"]) == (layers, width, tokens)
    assert facts["branches"] == ["cond", "uncond"]
