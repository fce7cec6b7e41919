"""Features for probes, collected from runs of a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from dit_lens.interventions import Capture
from dit_lens.model import VideoDiT
from dit_lens.probing.grid import ProbeData
from dit_lens.run import Run
from dit_lens.selection import Select, indices
from dit_lens.sites import Sites
from dit_lens.tasks.base import Label, Task
from dit_lens.tokens import Tokens

Floats = NDArray[np.float64]


def collect(
    model: VideoDiT,
    task: Task,
    instances: Sequence[Any],
    *,
    steps: Select = "all",
    frame: int = -1,
    seed: int = 0,
    batch: int = 32,
    decode: bool = False,
) -> dict[int, ProbeData]:
    """Run a task's instances and keep the residual stream of one latent frame at every layer.

    Instance i runs with seed ``seed + i``. Readouts: "embed" (before block 0), "L00" ... (after each block), "input"
    (the full model input at the same token), "position" (one-hot).

    Parameters
    ----------
    frame : int
        Latent frame whose tokens are read, from the end where negative.
    decode : bool
        Also decode every run and add the label "drawn" (the answer that this run shows).

    Returns
    -------
    dict from step to ProbeData
    """
    geometry = model.geometry(instances[0])
    chosen = indices(steps, geometry.steps, "step")
    kept = indices(frame, geometry.grid[0], "latent frame")[0]
    runs = [
        _run(model, instances[i : i + batch], range(seed + i, seed + i + batch), chosen, kept, decode)
        for i in tqdm(range(0, len(instances), batch), desc="runs for probes", unit="batch")
    ]
    labels = _labels(task, instances, geometry.grid[0], kept, [r.frames for r in runs])
    n = task.size
    position = np.broadcast_to(np.eye(n * n), (len(instances), n * n, n * n))
    data = {}
    for step in chosen:
        features = {name: np.concatenate(parts) for name, parts in _by_readout(runs, step, n)}
        data[step] = ProbeData(features | {"position": position}, labels)
    return data


def _run(model: VideoDiT, instances: Sequence[Any], seeds: range, steps: list[int], frame: int, decode: bool) -> Run:
    here = Tokens(frames=frame)
    captures = [
        Capture(Sites(("embed", "resid"), steps=steps, branches="cond", tokens=here)),
        Capture(Sites("model_input", steps=steps, branches="cond"), reduce=lambda x: x[:, :, frame].movedim(1, -1)),
    ]
    stop = None if decode else max(steps)
    return model.run(list(instances), seed=list(seeds[: len(instances)]), interventions=captures, stop_after=stop)


def _by_readout(runs: Sequence[Run], step: int, n: int) -> Iterator[tuple[str, list[Floats]]]:
    """Name and per-run features (rows, n * n, D) of every readout of one step."""
    sites = [s for s in runs[0].captured() if s.step == step]
    for site in sites:
        name = {"embed": "embed", "model_input": "input"}.get(site.component, f"L{site.layer or 0:02d}")
        yield name, [_cells(run[site], n) for run in runs]


def _cells(captured: Tensor, n: int) -> Floats:
    """Capture (B, [1,] H, W, D) to the task's cells, (B, n * n, D): a board may be smaller than the picture."""
    grid = captured.squeeze(1) if captured.ndim == 5 else captured
    return grid[:, :n, :n].flatten(1, 2).to(torch.float64).cpu().numpy()


def _labels(
    task: Task, instances: Sequence[Any], latent_frames: int, frame: int, frames: list[Any]
) -> dict[str, Label]:
    drawn = {} if frames[0] is None else {"frames": np.concatenate(frames)}
    labels = task.labels(instances, latent_frames, **drawn)
    flat = {name: label.values[:, frame].reshape(len(instances), -1) for name, label in labels.items()}
    return {name: replace(label, values=flat[name]) for name, label in labels.items()}
