"""Samples of the benchmark as a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.files.video import Video
from dit_lens.tasks.base import Label, Split, generator
from dit_lens.tasks.vbvr.bench import VbvrSample


@dataclass(frozen=True)
class VbvrTask:
    """Samples of VBVR-Bench, with what their folders say of them.

    It declares ``render``, the true videos, and ``scene_labels``. It declares no ``score``, since the official scorers
    read files of results (`official_scores`), and no cells, pairs or answers, since the folders tell nothing of them.

    Parameters
    ----------
    samples : tuple of VbvrSample

    Raises
    ------
    TaskError
        No samples.
    """

    samples: tuple[VbvrSample, ...]
    name: ClassVar[str] = "vbvr"

    def __post_init__(self) -> None:
        if not self.samples:
            raise TaskError("VbvrTask: no samples given; read_bench finds those of a folder")

    @property
    def title(self) -> str:
        return self.name

    def sample(self, count: int, seed: int = 0, split: Split = "test") -> list[VbvrSample]:
        """Samples in the random order of a seed, none of them twice; all are of the split "test".

        Raises
        ------
        TaskError
            Another split, or more samples than there are.
        """
        rng, known = generator(seed, len(self.samples), split), len(self.samples) if split == "test" else 0
        if not 1 <= count <= known:
            raise TaskError(f"vbvr: asked for {count} of split {split!r}; there are {len(self.samples)} of test")
        return [self.samples[place] for place in rng.permutation(known)[:count]]

    def scene_labels(self, instances: Sequence[VbvrSample], latent_frames: int) -> dict[str, Label]:
        """Labels of clips, (B,): ``generator``, the class of problems that a sample is of."""
        names = sorted({sample.task for sample in self.samples})
        if foreign := [sample.id for sample in instances if sample.task not in names]:
            raise TaskError(f"vbvr: {', '.join(foreign)} are not of this task")
        values = np.array([names.index(sample.task) for sample in instances], dtype=np.int64)
        return {"generator": Label("generator", "perception", values, names=tuple(names))}

    def render(self, instances: Sequence[VbvrSample]) -> Video:
        """True videos, uint8 (B, T, height, width, 3).

        Raises
        ------
        TaskError
            None given, or samples whose videos differ in length or size.
        """
        videos = [sample.video for sample in instances]
        shapes = sorted({video.shape[:3] for video in videos})
        if len(shapes) != 1:
            told = " and ".join(f"{frames} frames of {width} x {height}" for frames, height, width in shapes)
            told = told or "no samples"
            raise TaskError(f"vbvr: true videos of {told} are not one array; render those that are alike")
        return np.stack(videos)
