"""The benchmark's own rule scorers, where they are installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from dit_lens.errors import TaskError
from dit_lens.tasks.vbvr.bench import FINAL, FIRST, METADATA, TRUTH, VbvrSample, read_bench
from dit_lens.tasks.vbvr.results import result_path

_HOW_TO_GET = (
    "the official scorers are not installed; get them with\n"
    "  pip install git+https://github.com/Video-Reason/VBVR-EvalKit.git@275472ffe5ccf76f3a41fb55379ce170397c0c12"
)


def _scorers() -> ModuleType:
    try:
        return import_module("vbvr_bench.evaluators")
    except ImportError as error:
        # Where the package is there but one of its own imports is not, advice to install it would mislead.
        if (error.name or "").partition(".")[0] == "vbvr_bench":
            raise TaskError(_HOW_TO_GET) from None
        raise TaskError(f"the official scorers cannot be imported: {error}") from None


def official_scores(
    results: str | Path,
    folder: str | Path,
    tasks: Sequence[str] | None = None,
    *,
    weighted: bool = False,
    skip_missing: bool = False,
    device: str = "cpu",
) -> pd.DataFrame:
    """Score results by the rule scorers of VBVR-EvalKit.

    It calls ``vbvr_bench.evaluators.get_evaluator(task, device).evaluate(...)`` with what ``run_evaluation.py`` passes
    (VBVR-EvalKit at commit 275472f, which has no releases). That script counts the rules of the task alone; the class
    ``VBVRBench`` of the same package gives another number, in which they are worth .25 and likeness of the last frame
    .35, so a score must say which it is.

    The official scorers resize results to the benchmark's size and take any length. They count a result on which they
    fail as 0; here the column ``error`` says so.

    Parameters
    ----------
    results, folder : str or Path
        Of the results, and of the benchmark.
    tasks : list of str, optional
        Names of tasks, in full or short ("O-39").
    weighted : bool
        The five dimensions of ``VBVRBench`` instead of the rules alone.
    skip_missing : bool
        Score what is there. By default a missing result is an error.

    Returns
    -------
    DataFrame with columns split, task, index, score, error

    Raises
    ------
    TaskError
        VBVR-EvalKit is not installed (the message says how to get it), it has no scorer for a task, or results are
        missing.
    """
    scorers, samples = _scorers(), read_bench(folder, tasks)
    unknown = sorted({s.task for s in samples} - set(scorers.TASK_EVALUATOR_MAP))
    if unknown:
        raise TaskError(f"VBVR-EvalKit has no scorer for {', '.join(unknown)}; our own tasks: score_results")
    missing = [str(result_path(results, s)) for s in samples if not result_path(results, s).is_file()]
    if len(missing) == len(samples) or (missing and not skip_missing):
        raise TaskError("\n".join([f"{len(missing)} of {len(samples)} results are missing", *missing]))
    rows = []
    for sample in samples:
        if result_path(results, sample).is_file():
            scorer = scorers.get_evaluator(sample.task, device)
            given = scorer.evaluate(_asked(results, sample), task_specific_only=not weighted)
            rows.append((sample.split, sample.task, sample.index, float(given["score"]), given.get("error") or ""))
    return pd.DataFrame(rows, columns=["split", "task", "index", "score", "error"])


def _asked(results: str | Path, sample: VbvrSample) -> dict[str, Any]:
    """What the scorers read; ``metafile_path`` is read by those of VBVR-Pro-Bench, which have the same interface."""
    return {
        "video_path": str(result_path(results, sample)),
        "task_name": sample.task,
        "split": sample.split,
        "video_idx": sample.index,
        "gt_path": str(sample.folder),
        "gt_video_path": str(sample.folder / TRUTH),
        "gt_first_frame": str(sample.folder / FIRST),
        "gt_final_frame": str(sample.folder / FINAL),
        "metafile_path": [str(sample.folder / METADATA)],
        "prompt": sample.prompt,
        "no_ssim_fallback": True,
    }


def beside_floors(scores: pd.DataFrame, floors: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean scores of each task beside those of null videos, and normalised: (score - floor) / (1 - floor).

    Parameters
    ----------
    scores : DataFrame
        Of `official_scores`.
    floors : mapping from a kind of null video to its scores
        The highest of their means is a task's floor.

    Returns
    -------
    DataFrame with columns split, task, n, score, one for each kind, floor, normalised

    Raises
    ------
    TaskError
        A null video was not scored on the same samples.
    """
    samples, by = ["split", "task", "index"], ["split", "task"]
    if not floors:
        raise TaskError("no null videos given; null_results writes them")
    for kind, table in floors.items():
        if set(map(tuple, table[samples].to_numpy())) != set(map(tuple, scores[samples].to_numpy())):
            raise TaskError(f"the null videos {kind!r} were scored on other samples")
    of_task = scores.groupby(by)["score"]
    table = pd.DataFrame({"n": of_task.size(), "score": of_task.mean()})
    for kind, nulls in floors.items():
        table[kind] = nulls.groupby(by)["score"].mean()
    table["floor"] = table[list(floors)].max(axis=1)
    # Where even a null video has every point there is nothing left to earn.
    table["normalised"] = ((table["score"] - table["floor"]) / (1 - table["floor"])).where(table["floor"] < 1)
    return table.reset_index()
