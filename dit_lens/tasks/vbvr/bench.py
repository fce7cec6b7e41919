"""The folders of VBVR-Bench and of its generators, read lazily and checked sample by sample."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dit_lens.errors import TaskError
from dit_lens.files.video import Video, read_video

SPLITS = ("In-Domain_50", "Out-of-Domain_50")
#: The split of what `read_questions` reads.
QUESTIONS = "questions"
TASK_NAME = re.compile(r"[A-Z]-\d+_.+_data-(generator|pipeline)")
#: The official scorers take no result whose name is not five digits.
INDEX = re.compile(r"\d{5}")
FIRST, FINAL, TRUTH, PROMPT, METADATA = (
    "first_frame.png",
    "final_frame.png",
    "ground_truth.mp4",
    "prompt.txt",
    "metadata.json",
)


@dataclass(frozen=True)
class VbvrSample:
    """One problem of the benchmark. Files are read each time they are asked for, and nothing is kept in memory.

    It has what `VideoDiT.run` needs of an input: ``prompt``, ``image`` and ``id``.

    Attributes
    ----------
    split : str
        "In-Domain_50", "Out-of-Domain_50", or "questions" for those of a generator's own folder.
    task : str
        Name of the generator, such as "O-39_maze_data-generator".
    index : str
        Name of the sample's folder, such as "00003".
    folder : Path
    """

    split: str
    task: str
    index: str
    folder: Path

    @property
    def id(self) -> str:
        return f"{self.task}/{self.index}"

    @property
    def prompt(self) -> str:
        """The prompt, without white space around it."""
        path = self.folder / PROMPT
        try:
            text = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise TaskError(f"{path}: no such file") from None
        except UnicodeDecodeError:
            raise TaskError(f"{path}: is not UTF-8") from None
        if not text:
            raise TaskError(f"{path}: is empty")
        return text

    @property
    def image(self) -> Image.Image:
        """The first frame, which the model is given."""
        return _read_picture(self.folder / FIRST)

    @property
    def final(self) -> Image.Image:
        """The true last frame."""
        return _read_picture(self.folder / FINAL)

    @property
    def video(self) -> Video:
        """The true video, uint8 of shape (T, height, width, 3)."""
        return read_video(self.folder / TRUTH)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the generator wrote down, its latent variables under "parameters"; empty where there is no such file."""
        path = self.folder / METADATA
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TaskError(f"{path}: is not JSON ({error})") from None
        if not isinstance(content, dict):
            raise TaskError(f"{path}: is not a JSON object")
        return content


@dataclass(frozen=True)
class Report:
    """What `validate` found.

    Attributes
    ----------
    samples : tuple of VbvrSample
        Those without a problem.
    problems : mapping from the id of a broken sample to what is wrong with it
    """

    samples: tuple[VbvrSample, ...]
    problems: Mapping[str, str]

    def __str__(self) -> str:
        total = len(self.samples) + len(self.problems)
        lines = (
            [f"{len(self.problems)} of {total} samples are broken"] if self.problems else [f"{total} samples, all good"]
        )
        return "\n".join([*lines, *(f"  {name}: {what}" for name, what in self.problems.items())])


def read_bench(folder: str | Path, tasks: Sequence[str] | None = None) -> list[VbvrSample]:
    """The samples of a benchmark folder, ``{split}/{task}/{index}/``, in order. No file is opened.

    Parameters
    ----------
    folder : str or Path
        Holds "In-Domain_50", "Out-of-Domain_50" or both.
    tasks : list of str, optional
        Names of tasks, in full or short ("O-39").

    Raises
    ------
    TaskError
        Not a folder of the benchmark, or no such task in it.
    """
    folder = Path(folder)
    splits = [split for split in SPLITS if (folder / split).is_dir()]
    if not splits:
        raise TaskError(f"{folder}: is no VBVR-Bench folder, it has neither {SPLITS[0]}/ nor {SPLITS[1]}/")
    samples = [
        VbvrSample(split, task.name, sample.name, sample)
        for split in splits
        for task in _folders(folder / split)
        for sample in _folders(task)
    ]
    for name in tasks or ():
        if not any(_is_named(sample.task, name) for sample in samples):
            known = ", ".join(sorted({sample.task for sample in samples}))
            raise TaskError(f"{folder}: has no task {name!r}; there are {known}")
    if tasks is not None:
        samples = [s for s in samples if any(_is_named(s.task, name) for name in tasks)]
    if not samples:
        raise TaskError(f"{folder}: holds no samples")
    return samples


def read_questions(folder: str | Path) -> list[VbvrSample]:
    """The samples that generators wrote, in order. No file is opened.

    A generator of its own writes ``{domain}_task/{id}/``, the data factory ``{generator}/{domain}_task/{id}/``. Only
    first_frame.png and prompt.txt need to be in a sample's folder.

    Parameters
    ----------
    folder : str or Path
        Any folder above those of the samples.

    Raises
    ------
    TaskError
        Nothing of that form in it.
    """
    folder = Path(folder)
    domains = [folder] if folder.name.endswith("_task") else sorted(p for p in folder.rglob("*_task") if p.is_dir())
    samples = []
    for domain in domains:
        task = next((p.name for p in domain.parents if TASK_NAME.fullmatch(p.name)), domain.name.removesuffix("_task"))
        samples += [VbvrSample(QUESTIONS, task, path.name, path) for path in _folders(domain)]
    if not samples:
        raise TaskError(f"{folder}: holds no samples of a generator, such as maze_task/maze_00000000/")
    return samples


def validate(samples: str | Path | Sequence[VbvrSample], skip: bool = False) -> Report:
    """Open every file of every sample.

    Parameters
    ----------
    samples : folder of the benchmark, or list of VbvrSample
    skip : bool
        Go on without the broken samples instead of raising.

    Raises
    ------
    TaskError
        Some samples are broken; the message has one line for each.
    """
    samples = read_bench(samples) if isinstance(samples, str | Path) else samples
    found = {sample: _problems(sample) for sample in samples}
    report = Report(
        tuple(sample for sample, problems in found.items() if not problems),
        {sample.id: "; ".join(problems) for sample, problems in found.items() if problems},
    )
    if report.problems and not skip:
        raise TaskError(str(report))
    return report


def _problems(sample: VbvrSample) -> list[str]:
    """What is wrong with a sample."""
    problems = []
    if sample.split != QUESTIONS and not TASK_NAME.fullmatch(sample.task):
        problems.append("the task's folder is not named like G-3_stable_sort_data-generator")
    if sample.split != QUESTIONS and not INDEX.fullmatch(sample.index):
        problems.append("the sample's folder is not named by five digits")
    sizes: dict[str, tuple[int, int]] = {}
    readers: dict[str, Callable[[], Any]] = {
        FIRST: lambda: sample.image.size,
        FINAL: lambda: sample.final.size,
        TRUTH: lambda: sample.video.shape[2:0:-1],
        PROMPT: lambda: sample.prompt,
        METADATA: lambda: sample.metadata,
    }
    for name, read in readers.items():
        optional = name == METADATA or (sample.split == QUESTIONS and name in (FINAL, TRUTH))
        if optional and not (sample.folder / name).exists():
            continue
        try:
            value = read()
        except TaskError as error:
            problems.append(str(error).replace(f"{sample.folder}/", ""))
            continue
        if isinstance(value, tuple):
            sizes[name] = value
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {width} x {height}" for name, (width, height) in sizes.items())
        problems.append(f"sizes disagree: {shown}")
    return problems


def _read_picture(path: Path) -> Image.Image:
    if not path.is_file():
        raise TaskError(f"{path}: no such file")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise TaskError(f"{path}: cannot be read as a picture ({str(error).replace(str(path), path.name)})") from None


def _folders(folder: Path) -> Iterator[Path]:
    return iter(sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _is_named(task: str, name: str) -> bool:
    return task == name or task.startswith(f"{name}_")
