"""Features for probes, collected from runs of a task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.interventions.base import Intervention
from dit_lens.model import VideoDiT
from dit_lens.probing.rows.data import Place, ProbeData
from dit_lens.probing.rows.readers import Visit
from dit_lens.probing.rows.readout import Readout
from dit_lens.probing.rows.targets import targets_of
from dit_lens.runs.run import Run
from dit_lens.tasks.base import Label, Task
from dit_lens.tasks.draw import draw_instances


def collect(
    model: VideoDiT,
    task: Task,
    instances: int | Sequence[Any],
    readout: Readout | None = None,
    *,
    labels: Sequence[str] | None = None,
    seed: int | Sequence[int] = 0,
    interventions: Iterable[Intervention] = (),
    decode: bool = False,
    **run_arguments: Any,
) -> dict[int, ProbeData]:
    """Run a task's instances and keep what is read at every site, with the controls' features.

    Features are named by the canonical strings of their sites. The controls are the full model input of the same rows,
    conditioning channels included, which row it is (see `Rows.positions`), and the same sites in a twin with random
    weights that is given the very same inputs.

    Parameters
    ----------
    instances : int or sequence of instances
        A number draws so many of the task's test split.
    readout : Readout, optional
        By default cells of the last latent frame, in embed and resid at all steps and layers.
    labels : sequence of str, optional
        By default all labels of that level.
    seed : int or one per instance
        As in `VideoDiT.runs`; an int also draws the instances.
    interventions : iterable of Intervention
        In every run, before anything is read.
    decode : bool
        Also decode every run, for labels of what it shows ("drawn", the answer that a maze's run shows).
    **run_arguments
        As in `VideoDiT.runs`: ``batch``, ``num_inference_steps``, ``guidance_scale`` ...

    Returns
    -------
    dict from step to ProbeData

    Raises
    ------
    EvidenceError
        Labels or levels that there are not.
    UnsupportedModel
        A source that this model cannot be given.
    """
    problems = draw_instances(task, instances, seed, who="collect")
    visit = Visit(model, task, readout or Readout(), problems[0], interventions, run_arguments)
    targets = None if decode else targets_of(task, problems, visit.rows, labels)  # refused before anything runs
    found: dict[Place, list[NDArray[np.float32]]] = defaultdict(list)

    def keep(_: slice, place: Place, features: Tensor) -> None:
        if place.control != "position":  # the same for every instance: kept once
            found[place].append(features.cpu().numpy())

    shown = []
    for run in visit.runs(problems, seed, keep, decode=decode):
        shown.append(run.frames)
        last = run
    if targets is None:
        targets = targets_of(task, problems, visit.rows, labels, np.concatenate([f for f in shown if f is not None]))
    groups = [instance.id for instance in problems]
    features = {place: np.concatenate(parts) for place, parts in found.items()}
    return {step: _data(visit, step, features, targets, groups, last) for step in visit.steps}


def _data(
    visit: Visit,
    step: int,
    features: Mapping[Place, NDArray[np.float32]],
    labels: Mapping[str, Label],
    groups: Sequence[str],
    run: Run,
) -> ProbeData:
    """What was read at one step."""
    position = visit.rows.positions()
    every = np.broadcast_to(position, (len(groups), *position.shape))
    return ProbeData(
        features={p.site: x for p, x in features.items() if (p.step, p.control) == (step, "none")},
        labels=labels,
        groups=groups,
        source=visit.readout.source,
        level=visit.readout.level,
        sigma=run.schedule.sigma(step),
        expert=run.experts[step],
        input=features.get(Place(step, "", "input")),
        position=every if "position" in visit.controls else None,
        random={p.site: x for p, x in features.items() if (p.step, p.control) == (step, "random")},
    )
