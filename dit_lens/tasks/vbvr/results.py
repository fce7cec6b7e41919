"""What a model drew: one mp4 for each sample, ``{split}/{task}/{index}.mp4``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.files.atomic import write_atomic
from dit_lens.files.video import FPS, Video, read_video, write_video
from dit_lens.runs.describe import describe
from dit_lens.runs.seeds import derive
from dit_lens.tasks.vbvr.bench import VbvrSample


def result_path(folder: str | Path, sample: VbvrSample) -> Path:
    """Where the result of a sample lies."""
    return Path(folder) / sample.split / sample.task / f"{sample.index}.mp4"


def write_results(
    videos: Any,
    samples: VbvrSample | Sequence[VbvrSample],
    folder: str | Path,
    fps: float = FPS,
    crf: int | None = None,
) -> list[Path]:
    """Write videos where the official scorers look for them.

    Parameters
    ----------
    videos : Run, or uint8 array of shape (B, T, height, width, 3)
        One row for each sample, in order.
    crf : int, optional
        See `write_video`; by default the files are lossless.

    Raises
    ------
    TaskError
        Before anything is written: not as many videos as samples, a sample given twice, or a run of other samples.
    """
    samples = [samples] if isinstance(samples, VbvrSample) else list(samples)
    frames = videos if isinstance(videos, np.ndarray) else getattr(videos, "frames", None)
    if frames is None:
        raise TaskError("expected a run with decoded frames, or uint8 videos (B, T, height, width, 3)")
    if frames.ndim != 5 or len(frames) != len(samples):
        raise TaskError(f"{len(samples)} samples need {len(samples)} videos, got an array of shape {frames.shape}")
    paths = [result_path(folder, sample) for sample in samples]
    if len(set(paths)) < len(paths):
        raise TaskError("a sample is given twice; its results need folders of their own, such as one for each seed")
    for row, sample in zip(getattr(videos, "rows", ()), samples, strict=False):
        if row.instance != sample.id:
            raise TaskError(f"the run's rows are not these samples: {row.instance!r} where {sample.id!r} is expected")
    return [write_video(path, video, fps, crf) for path, video in zip(paths, frames, strict=True)]


def run_bench(
    model: Any,
    samples: Sequence[VbvrSample],
    folder: str | Path,
    seed: int = 0,
    fps: float = FPS,
    crf: int | None = None,
    **arguments: Any,
) -> list[Path]:
    """Run a model over samples, one at a time, and write each result as soon as it is there.

    Samples whose result exists are left out: an interrupted run goes on when it is started again. Each sample has noise
    of its own, drawn from the seed and its name. What made the results stands in ``run.json`` beside them.

    Parameters
    ----------
    model : VideoDiT
    **arguments
        Passed to `VideoDiT.run`, interventions among them.

    Raises
    ------
    TaskError
        The folder holds results of another model, seed or settings.
    """
    folder, arguments = Path(folder), {n: tuple(v) if isinstance(v, Iterator) else v for n, v in arguments.items()}
    made_by = {"model": model.id, "seed": seed, "fps": fps, "crf": crf, "arguments": describe(arguments)} | model.setup
    record = folder / "run.json"
    if record.exists() and (before := json.loads(record.read_text())) != made_by:
        differ = ", ".join(f"{k} {before.get(k)!r}, now {v!r}" for k, v in made_by.items() if before.get(k) != v)
        raise TaskError(f"{folder}: holds results of another run ({differ}); take another folder")
    write_atomic(record, json.dumps(made_by, indent=2).encode())
    missing = [sample for sample in samples if not result_path(folder, sample).exists()]
    # A sample's noise is its own, whichever others are run.
    seeds = [derive(seed, f"{sample.split}/{sample.id}") for sample in missing]
    runs = model.runs(missing, seeds, batch=1, progress="bench", **arguments) if missing else ()
    for sample, run in zip(missing, runs, strict=True):
        write_results(run, sample, folder, fps, crf)
    return [result_path(folder, sample) for sample in samples]


def null_results(
    samples: Sequence[VbvrSample],
    folder: str | Path,
    kind: str,
    seed: int = 0,
    fps: float = FPS,
    crf: int | None = None,
) -> list[Path]:
    """Write videos that cannot have solved anything, of the true ones' length and size, so that scorers give the floor.

    Rule scorers reward much that is no solution: a frozen first frame scores .26 to .75 on scenes like the benchmark's.

    Parameters
    ----------
    kind : "frozen" or "noise"
        The first frame throughout, or uniform random pixels.
    crf : int, optional
        See `write_video`. Noise without loss takes 3 bytes a pixel.

    Raises
    ------
    TaskError
        No such kind.
    """
    if kind not in ("frozen", "noise"):
        raise TaskError(f"unknown kind of null video {kind!r}; one of frozen, noise")
    paths = []
    for number, sample in enumerate(samples):
        truth = sample.video
        if kind == "frozen":
            video = np.repeat(truth[:1], len(truth), axis=0)
        else:
            video = np.random.default_rng([seed, number]).integers(0, 256, truth.shape, dtype=np.uint8)
        paths.append(write_video(result_path(folder, sample), video, fps, crf))
    return paths


def read_result(folder: str | Path, sample: VbvrSample, shape: tuple[int, ...] | None = None) -> Video:
    """The result of a sample, uint8 (T, height, width, 3).

    Raises
    ------
    TaskError
        No such file, one that cannot be read, or not of ``shape``; the message names the file.
    """
    path = result_path(folder, sample)
    video = read_video(path)
    if shape is not None and video.shape != shape:
        raise TaskError(f"{path}: is {_size(video.shape)}, expected {_size(shape)}")
    return video


def _size(shape: tuple[int, ...]) -> str:
    frames, height, width, _ = shape
    return f"{frames} frames of {width} x {height}"
