"""Our own tasks in the benchmark's format, and our own scorers on the results."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from dit_lens.errors import TaskError
from dit_lens.files.video import FPS, write_video
from dit_lens.tasks.base import Problem, Task
from dit_lens.tasks.evidence import scores_of
from dit_lens.tasks.vbvr.bench import (
    FINAL,
    FIRST,
    METADATA,
    PROMPT,
    SPLITS,
    TASK_NAME,
    TRUTH,
    VbvrSample,
    read_bench,
)
from dit_lens.tasks.vbvr.results import read_result


def export(
    instances: Sequence[Problem],
    folder: str | Path,
    task: str,
    split: str = SPLITS[0],
    fps: float = FPS,
    crf: int | None = None,
) -> list[VbvrSample]:
    """Write instances as samples of the benchmark, numbered from 00000.

    ``metadata.json`` has the keys of the generators' own: "task_id" (the instance's id), "generator", "parameters" (its
    variables), "param_hash".

    Parameters
    ----------
    task : str
        Name of the task's folder, such as "G-900_permanence_data-generator". Under the name of one of the benchmark's
        own tasks the official scorer of that task can judge them (`official_scores`).
    crf : int, optional
        See `write_video`. By default videos are lossless: what is read back is the true video bit for bit.

    Raises
    ------
    TaskError
        Before anything is written: nothing to export, a name the format does not have, or samples that exist already.
    """
    if not instances:
        raise TaskError("no instances to export")
    if not TASK_NAME.fullmatch(task) or Path(task).name != task:
        raise TaskError(f"{task!r} is no name of a task; one looks like 'G-900_permanence_data-generator'")
    if split not in SPLITS:
        raise TaskError(f"unknown split {split!r}; one of {', '.join(SPLITS)}")
    home = Path(folder) / split / task
    samples = [VbvrSample(split, task, f"{i:05d}", home / f"{i:05d}") for i in range(len(instances))]
    for sample in samples:
        if sample.folder.exists():
            raise TaskError(f"{sample.folder}: exists already; export to another folder")
    for sample, instance in zip(samples, instances, strict=True):
        _write(sample, instance, fps, crf)
    return samples


def _write(sample: VbvrSample, instance: Problem, fps: float, crf: int | None) -> None:
    """Write all files under a temporary name, then rename the folder: a sample is there whole or not at all."""
    video, part = instance.video, sample.folder.with_name(f".{sample.index}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        instance.image.convert("RGB").save(part / FIRST)
        Image.fromarray(video[-1]).save(part / FINAL)
        write_video(part / TRUTH, video, fps, crf)
        (part / PROMPT).write_text(instance.prompt, encoding="utf-8")
        metadata = json.dumps(_metadata(sample.task, instance), indent=2)
        (part / METADATA).write_text(metadata, encoding="utf-8")
        part.rename(sample.folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _metadata(task: str, instance: Problem) -> dict[str, Any]:
    parameters = {name: _plain(value) for name, value in instance.variables.items()}
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
    return {"task_id": instance.id, "generator": task, "parameters": parameters, "param_hash": digest}


def _plain(value: Any) -> Any:
    """JSON types of numpy's and of containers."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def score_results(
    folder: str | Path, results: str | Path, task: Task, instances: Sequence[Problem], name: str | None = None
) -> pd.DataFrame:
    """Score results of exported instances by our own scorer.

    Parameters
    ----------
    folder, results : str or Path
        Of the exported samples, and of the results.
    instances : list of Instance
        The exported ones in any order, such as ``task.sample`` draws them again; samples find theirs by its id.
    name : str, optional
        Name of the exported task, where the folder holds several.

    Returns
    -------
    DataFrame with columns split, task, index, id, total, strict, and one for each rule

    Raises
    ------
    TaskError
        A sample of no given instance, or results that are missing, broken, or of another length or size. The message
        names every such file.
    """
    samples = read_bench(folder, None if name is None else [name])
    by_id = {instance.id: instance for instance in instances}
    matched, videos, problems = list[Problem](), [], list[str]()
    for sample in samples:
        instance_id = sample.metadata.get("task_id")
        if instance_id not in by_id:
            raise TaskError(f"{sample.folder}: is of instance {instance_id!r}, which is not among those given")
        matched.append(by_id[instance_id])
        try:
            videos.append(read_result(results, sample, matched[-1].video.shape))
        except TaskError as error:
            problems.append(str(error))
    if problems:
        raise TaskError("\n".join([f"{len(problems)} of {len(samples)} results cannot be scored", *problems]))
    scores = scores_of(task, np.stack(videos), matched, who="score_results")
    places = {
        "split": [s.split for s in samples],
        "task": [s.task for s in samples],
        "index": [s.index for s in samples],
        "id": [i.id for i in matched],
    }
    return pd.DataFrame(places | {"total": scores.total, "strict": scores.strict} | dict(scores.rules))
