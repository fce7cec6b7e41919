"""Features for probes, collected from runs of a task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.errors import EvidenceError
from dit_lens.model import VideoDiT
from dit_lens.probing.rows.data import ProbeData, Source
from dit_lens.probing.rows.readers import CONTROLS, Sink, Visit, require_controls
from dit_lens.probing.rows.rows import Pool, Rows, frames_of
from dit_lens.probing.rows.sources import require_source
from dit_lens.probing.rows.targets import targets_of
from dit_lens.sites.select import Select, indices
from dit_lens.tasks.base import Level, Task


def collect(
    model: VideoDiT,
    task: Task,
    instances: Sequence[Any],
    *,
    steps: Select = "all",
    layers: Select = "all",
    frames: Select | None = None,
    level: Level = "cell",
    labels: Sequence[str] | None = None,
    pool: str | Pool = "mean",
    source: Source = "sample",
    controls: Sequence[str] = CONTROLS,
    seed: int = 0,
    batch: int = 32,
    decode: bool = False,
    random_seed: int = 0,
) -> dict[int, ProbeData]:
    """Run a task's instances and keep the residual stream at every layer, with the controls' features.

    Instance i runs with seed ``seed + i``. Readouts: "embed" (before block 0), "L00" ... (after each block), and the
    controls "input" (the full model input of the same rows, conditioning channels included), "position" (which row it
    is, see `Rows.positions`) and "random/embed", "random/L00" ... (a twin with random weights, given the very same
    inputs).

    Parameters
    ----------
    steps, layers : Select
    frames : Select, optional
        Latent frames that are read, each a row of its own (of a clip, pooled together). By default the last one for
        cells and tokens, which shows the answer, and all for frames and clips.
    level : "cell", "token", "frame" or "clip"
        What a row is; see `dit_lens.probing.rows.rows.Rows`.
    labels : sequence of str, optional
        By default all labels of that level.
    pool : "mean", "max" or callable from (B, n, D) to (B, D)
        How the tokens of a frame or clip become one vector.
    source : "sample", "forward-noise" or "invert"
        Where the states come from; see `dit_lens.probing.rows.sources`.
    controls : sequence of str
        Which of "input", "position" and "random" to collect.
    decode : bool
        Also decode every run, for labels of what it shows ("drawn", the answer that a maze's run shows).
    random_seed : int
        Of the twin's weights.

    Returns
    -------
    dict from step to ProbeData

    Raises
    ------
    EvidenceError
        Labels, levels or controls that there are not.
    UnsupportedModel
        A source that this model cannot be given.
    """
    visit = plan_visit(
        model,
        task,
        instances,
        steps=steps,
        layers=layers,
        frames=frames,
        level=level,
        pool=pool,
        source=source,
        controls=controls,
        seed=seed,
        batch=batch,
        random_seed=random_seed,
    )
    targets = None if decode else targets_of(task, instances, visit.rows, labels)  # refused before anything runs
    found: dict[int, dict[str, list[NDArray[np.float32]]]] = defaultdict(lambda: defaultdict(list))
    shown = []
    for run in visit.runs(model, task, instances, lambda _: _keeping(found), decode=decode):
        shown.append(run.frames)
        last = run
    if targets is None:
        targets = targets_of(task, instances, visit.rows, labels, np.concatenate([f for f in shown if f is not None]))
    still = {}
    if "position" in visit.controls:
        positions = visit.rows.positions()
        still["position"] = np.broadcast_to(positions, (len(instances), *positions.shape))
    names = [instance.id for instance in instances]
    return {
        step: ProbeData(
            features={name: np.concatenate(parts) for name, parts in found[step].items()} | still,
            labels=targets,
            groups=names,
            source=source,
            level=level,
            sigma=last.schedule.sigma(step),
            expert=last.experts[step],
        )
        for step in visit.steps
    }


def plan_visit(
    model: VideoDiT,
    task: Any,
    instances: Sequence[Any],
    *,
    steps: Select,
    layers: Select,
    frames: Select | None,
    level: Level,
    pool: str | Pool,
    source: Source,
    controls: Sequence[str],
    seed: int,
    batch: int,
    random_seed: int,
) -> Visit:
    """What is read in the runs of a task's instances, checked before anything runs."""
    if not instances:
        raise EvidenceError("no instances to probe")
    if batch < 1:
        raise EvidenceError(f"batch must be at least 1, got {batch}")
    require_controls(controls)
    geometry = model.geometry(instances[0])
    require_source(model, source, geometry)
    rows = Rows.of(geometry, task, level, frames_of(level) if frames is None else frames, pool)
    chosen = indices(steps, geometry.steps, "step")
    return Visit(chosen, rows, layers, tuple(controls), source, seed, batch, random_seed=random_seed)


def _keeping(found: dict[int, dict[str, list[NDArray[np.float32]]]]) -> Sink:
    """Collects features on the CPU."""

    def keep(step: int, readout: str, features: Tensor) -> None:
        found[step][readout].append(features.cpu().numpy())

    return keep
