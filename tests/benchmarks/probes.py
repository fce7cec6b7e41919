"""``python -m tests.benchmarks.probes``: the grid of probes against loops of scikit-learn's Ridge, in pairs.

Both sides are given the same features, labels and folds, standardise with the training rows of each fold, and predict
every row by a probe that did not see its instance; their held-out predictions must be the same. The loop standardises
once for each layer, step and fold, so that what it repeats for every label is the fit alone. Making the data is not
counted, and neither are shuffled labels, which would double the loop's work and cost the grid a few columns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from dit_lens.probing.cross_validate import probe_grid
from dit_lens.probing.fit.scores import scores_by_group
from dit_lens.probing.probe_grid import Probe, ProbeGrid
from dit_lens.probing.rows.data import ProbeData, fold_of_runs
from dit_lens.sites.site import Site
from dit_lens.tasks import Label
from tests.benchmarks.machine import load, machine, versions
from tests.benchmarks.measure import ENOUGH, Ratio

ALPHA = 1e-3
#: Skills of a label with two classes move by this when one row in 5,000 falls on the other side of a threshold.
ROUNDING = {"float64": 1e-9, "float32": 2e-3}


@dataclass(frozen=True)
class Problem:
    """How much is fitted: S steps, L layers, and rows of width D in R runs of N."""

    steps: int = 10
    layers: int = 12
    labels: int = 6
    runs: int = 200
    cells: int = 25
    width: int = 256
    folds: int = 5
    seed: int = 0

    @cached_property
    def labelled(self) -> dict[str, Label]:
        """Four labels of two classes for each two numbers."""
        rng = np.random.default_rng(self.seed)
        made: dict[str, Label] = {}
        for k in range(self.labels):
            noise = rng.normal(size=(self.runs, self.cells))
            made[f"label {k}"] = Label(f"label {k}", "perception", noise if k % 3 == 2 else noise > 0.5)
        return made

    @cached_property
    def data(self) -> dict[int, ProbeData]:
        """float32 features in which every label can be read with some error, on directions of its own."""
        rng = np.random.default_rng(self.seed + 1)
        signal = np.stack([np.asarray(label.values, dtype=np.float32) for label in self.labelled.values()], axis=-1)
        made = {}
        for step in range(self.steps):
            features = {}
            for layer in range(self.layers):
                directions = rng.normal(size=(self.labels, self.width)).astype(np.float32) / 8
                noise = rng.standard_normal((self.runs, self.cells, self.width), dtype=np.float32)
                features[str(Site(step, "cond", layer, "resid"))] = signal @ directions + noise
            made[step] = ProbeData(features, self.labelled)
        return made

    @cached_property
    def double(self) -> dict[int, ProbeData]:
        """The same values in float64."""
        return {
            step: ProbeData({name: x.astype(np.float64) for name, x in part.features.items()}, part.labels)
            for step, part in self.data.items()
        }


def by_grid(problem: Problem, product: torch.dtype) -> ProbeGrid:
    data = problem.data if product == torch.float32 else problem.double
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # progress bars
        return probe_grid(data, folds=problem.folds, alpha=ALPHA, shuffled=False, product=product)


Fit = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[Any]]


def one_by_one(X: NDArray[Any], Y: NDArray[Any], unseen: NDArray[Any]) -> NDArray[Any]:
    """A fit for each label: scores of the training rows and of the unseen rows, both (n, K), one below the other."""
    every = np.concatenate([X, unseen])
    fits = (Ridge(alpha=ALPHA * len(X), solver="cholesky").fit(X, y) for y in Y.T)
    return np.stack([fit.predict(every) for fit in fits], axis=1)


def all_labels(X: NDArray[Any], Y: NDArray[Any], unseen: NDArray[Any]) -> NDArray[Any]:
    """One fit for all labels."""
    return np.asarray(Ridge(alpha=ALPHA * len(X), solver="cholesky").fit(X, Y).predict(np.concatenate([X, unseen])))


def by_loop(problem: Problem, fit: Fit) -> ProbeGrid:
    """The same probes by scikit-learn, one layer, step and fold after the other."""
    labels, count = problem.labelled, problem.runs
    fold = np.repeat(fold_of_runs(range(count), problem.folds), problem.cells)
    Y = np.stack([np.asarray(label.values, dtype=np.float64).ravel() for label in labels.values()], axis=1)
    grid = ProbeGrid(count, {name: label.role for name, label in labels.items()})
    with threadpool_limits(1, user_api="blas"):
        for part in problem.double.values():
            for site, features in part.features.items():
                answers = _answers(features.reshape(-1, problem.width), Y, fold, labels, fit)
                for k, (name, label) in enumerate(labels.items()):
                    target = Y[:, k].reshape(count, -1)
                    grid.scores[Probe(site, name)] = scores_by_group(
                        target, answers[:, k].reshape(1, count, -1), np.arange(count), label.is_regression, count
                    )[0]
    return grid


def _answers(
    X: NDArray[Any], Y: NDArray[Any], fold: NDArray[np.int64], labels: Mapping[str, Label], fit: Fit
) -> NDArray[Any]:
    """Held-out answers of every row and label, (rows, K), with thresholds halfway between the classes' means."""
    answers = np.empty_like(Y)
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        rows = X[train]
        mean, scale = rows.mean(axis=0), rows.std(axis=0)
        scores = fit((rows - mean) / scale, Y[train], (X[test] - mean) / scale)
        seen, unseen = scores[: len(rows)], scores[len(rows) :]
        for k, label in enumerate(labels.values()):
            answers[test, k] = unseen[:, k]
            if not label.is_regression:
                yes = Y[train, k] == 1
                answers[test, k] = unseen[:, k] > (seen[yes, k].mean() + seen[~yes, k].mean()) / 2
    return answers


@dataclass(frozen=True)
class Pair:
    """Two ways to the same skills, and how many times faster the first is to be."""

    name: str
    measured: str
    against: str
    target: float
    rounding: float


PAIRS = (
    Pair("float64 : loop", "grid float64", "loop", 10.0, ROUNDING["float64"]),
    Pair("float32 : loop", "grid float32", "loop", 20.0, ROUNDING["float32"]),
    Pair("float64 : multi-output", "grid float64", "multi-output", 1.0, ROUNDING["float64"]),
)


def sides(problem: Problem) -> dict[str, Callable[[], ProbeGrid]]:
    return {
        "grid float64": lambda: by_grid(problem, torch.float64),
        "grid float32": lambda: by_grid(problem, torch.float32),
        "loop": lambda: by_loop(problem, one_by_one),
        "multi-output": lambda: by_loop(problem, all_labels),
    }


def difference(one: ProbeGrid, other: ProbeGrid) -> float:
    """Largest difference of a held-out skill."""
    weights = np.ones((1, one.groups))
    assert set(one.scores) == set(other.scores)
    return max(abs(float((one.scores[key].skill(weights) - other.scores[key].skill(weights))[0])) for key in one.scores)


def measured(problem: Problem, rounds: int, seed: int = 0) -> dict[str, Any]:
    """Everything that the result file holds.

    In every round all sides run once, in random order, and every pair gives one ratio of that round's seconds.
    """
    torch.set_num_threads(1)
    date, before = datetime.now(UTC).isoformat(timespec="seconds"), machine()
    ways, order = sides(problem), random.Random(seed)
    problem.data, problem.double  # noqa: B018 - made before the clock starts
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    found: dict[str, ProbeGrid] = {}
    with threadpool_limits(1):
        for number in range(rounds):
            for name in order.sample(list(ways), len(ways)):
                wall, processor = time.perf_counter(), time.process_time()
                found[name] = ways[name]()
                seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return {
        "schema": 1, "date": date, "machine": {**before, "load at the end": load()}, "versions": versions(),
        "problem": {name: getattr(problem, name) for name in Problem.__dataclass_fields__}, "rounds": rounds,
        "seed": seed, "seconds": {name: [wall for wall, _ in pairs] for name, pairs in seconds.items()},
        "processor seconds": {name: [cpu for _, cpu in pairs] for name, pairs in seconds.items()},
        "cases": [_case(pair, seconds, found) for pair in PAIRS],
    }  # fmt: skip


def _case(
    pair: Pair, seconds: Mapping[str, list[tuple[float, float]]], found: Mapping[str, ProbeGrid]
) -> dict[str, Any]:
    faster = [
        Ratio.of([b[i] / a[i] for a, b in zip(seconds[pair.measured], seconds[pair.against], strict=True)])
        for i in (0, 1)
    ]
    apart = difference(found[pair.measured], found[pair.against])
    if apart > pair.rounding:
        raise AssertionError(f"{pair.name}: held-out skills differ by {apart:.2g}, more than rounding")
    ratio = faster[0]
    verdict = "holds" if ratio.low >= pair.target else "missed" if ratio.high < pair.target else "open"
    verdict = verdict if ratio.rounds >= ENOUGH else "open"  # too few rounds for an interval of the median
    return {
        "case": pair.name, "measured": pair.measured, "against": pair.against, "times faster": vars(ratio),
        "times faster by processor time": vars(faster[1]), "target": pair.target, "verdict": verdict,
        "largest difference of a held-out skill": apart,
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    size, host = result["problem"], result["machine"]
    lines = [
        f"{size['steps']} steps x {size['layers']} layers x {size['labels']} labels, "
        f"{size['runs'] * size['cells']} rows of width {size['width']}, {size['folds']} folds",
        f"{host['processor']}, 1 thread, load {host['load'][0]} before and {host['load at the end'][0]} after, "
        f"{result['rounds']} rounds, {result['date']}",
        *(f"{name:<14}{np.median(values):>8.2f} s (processor {np.median(result['processor seconds'][name]):.2f} s)"
          for name, values in result["seconds"].items()),
        f"{'case':<24}{'times faster':>13}  {'95 % interval':<17}{'processor':>10}{'target':>8}  {'verdict':<8}"
        f"{'skills differ by':>17}",
    ]  # fmt: skip
    for case in result["cases"]:
        ratio, apart = case["times faster"], case["largest difference of a held-out skill"]
        lines.append(
            f"{case['case']:<24}{ratio['median']:>13.2f}  {'[{low:.2f}, {high:.2f}]'.format(**ratio):<17}"
            f"{case['times faster by processor time']['median']:>10.2f}{case['target']:>8.0f}  {case['verdict']:<8}"
            f"{apart:>17.1e}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.probes", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one step, two layers and one round: does it run")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--folds", type=int, default=Problem.folds)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    options = parser.parse_args(arguments)
    size = {"steps": 1, "layers": 2} if options.quick else {}
    result = measured(Problem(**size, folds=options.folds), 1 if options.quick else options.rounds, options.seed)
    print(table(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
