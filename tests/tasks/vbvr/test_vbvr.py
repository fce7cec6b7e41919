"""The benchmark's folders: read, checked, written, and scored by our scorers and through the adapter to its own."""

from __future__ import annotations

import json
import sys
import types
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dit_lens as dl
from dit_lens.errors import EvidenceError, TaskError
from dit_lens.runs.inputs import Row
from dit_lens.runs.seeds import derive
from dit_lens.tasks import declared, vbvr
from dit_lens.tasks.evidence import answer_masks, labels_of
from tests.subjects import Subject

MAZE, SORT = "O-39_maze_data-generator", "G-3_stable_sort_data-generator"
OWN = "G-900_permanence_data-generator"
IN, OUT = vbvr.SPLITS
FRAMES, HEIGHT, WIDTH = 5, 24, 32


def write_sample(folder: Path, *, seed: int = 0, truth: bool = True) -> None:
    """One sample as a generator writes it, by hand, so that nothing under test wrote it."""
    folder.mkdir(parents=True)
    video = np.random.default_rng(seed).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(video[0]).save(folder / "first_frame.png")
    (folder / "prompt.txt").write_text(f"Solve number {seed}.\n")
    if truth:
        Image.fromarray(video[-1]).save(folder / "final_frame.png")
        vbvr.write_video(folder / "ground_truth.mp4", video)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    for seed, place in enumerate((f"{IN}/{SORT}/00000", f"{IN}/{SORT}/00001", f"{OUT}/{MAZE}/00000")):
        write_sample(tmp_path / "bench" / place, seed=seed)
    (tmp_path / "bench" / IN / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / "bench" / "VBVR-Bench.json").write_text("[]")
    return tmp_path / "bench"


# Videos.


@pytest.mark.parametrize("size", [(24, 32), (31, 33)], ids=["even", "odd"])
def test_a_lossless_video_is_read_back_bit_for_bit(tmp_path: Path, size: tuple[int, int]) -> None:
    video = np.random.default_rng(0).integers(0, 256, (7, *size, 3), dtype=np.uint8)
    assert np.array_equal(vbvr.read_video(vbvr.write_video(tmp_path / "a.mp4", video)), video)


@pytest.mark.parametrize("size", [(24, 32), (31, 33)], ids=["even", "odd"])
def test_a_video_with_loss_is_smaller_and_near(tmp_path: Path, size: tuple[int, int]) -> None:
    ramp = np.linspace(0, 255, size[1]).astype(np.uint8)
    video = np.broadcast_to(ramp[None, None, :, None], (7, *size, 3)).copy()
    video += np.random.default_rng(0).integers(0, 3, video.shape).astype(np.uint8)
    lossless = vbvr.write_video(tmp_path / "a.mp4", video)
    lossy = vbvr.write_video(tmp_path / "b.mp4", video, crf=17)
    assert lossy.stat().st_size < lossless.stat().st_size
    read = vbvr.read_video(lossy)
    assert read.shape == video.shape
    # Up to 255 + 2 wraps around in the last column, which no codec follows.
    assert np.abs(read[:, :, :-2].astype(int) - video[:, :, :-2]).mean() < 4


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        (np.zeros((3, 8, 8, 3)), "float64"),
        (np.zeros((8, 8, 3), dtype=np.uint8), r"\(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), r"\(0, 8, 8, 3\)"),
        (np.zeros((3, 8, 8, 4), dtype=np.uint8), "3 channels"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_video_is_not_written(tmp_path: Path, frames: Any, told: str) -> None:
    with pytest.raises(dl.errors.TaskError, match=told):
        vbvr.write_video(tmp_path / "a.mp4", frames)
    with pytest.raises(dl.errors.TaskError, match="fps must be above 0"):
        vbvr.write_video(tmp_path / "a.mp4", np.zeros((3, 8, 8, 3), dtype=np.uint8), fps=0)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    path = vbvr.write_video(tmp_path / "a.mp4", video)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("dit_lens.files.atomic.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        vbvr.write_video(path, video + 9)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == before


def _move_index_first(path: Path) -> list[int]:
    """Put an mp4's index before its frames, as in files for the web, so that cutting the file loses only frames.

    Returns where each frame begins in the file.
    """
    import av

    first = path.with_name("first.mp4")
    with av.open(str(path)) as source, av.open(str(first), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    first.replace(path)
    with av.open(str(path)) as source:
        return [packet.pos for packet in source.demux(video=0) if packet.pos is not None]


@pytest.mark.parametrize("cut", ["before the index", "within a frame", "between frames"])
def test_truncated_videos_are_refused(tmp_path: Path, cut: str) -> None:
    video = np.random.default_rng(0).integers(0, 256, (9, 24, 32, 3), dtype=np.uint8)
    path = vbvr.write_video(tmp_path / "a.mp4", video)
    begins = _move_index_first(path) if cut != "before the index" else [path.stat().st_size // 2] * 9
    assert np.array_equal(vbvr.read_video(path), video)
    path.write_bytes(path.read_bytes()[: begins[6] + 10 * (cut == "within a frame")])
    told = "is cut short, 6 of its 9 frames" if cut == "between frames" else "cannot be read as a video .Invalid data"
    with pytest.raises(dl.errors.TaskError, match=rf"a\.mp4: {told}"):
        vbvr.read_video(path)


def test_a_file_of_sound_alone_is_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    with pytest.raises(dl.errors.TaskError, match="holds no video"):
        vbvr.read_video(tmp_path / "a.mp4")


def test_without_pyav_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(dl.errors.TaskError, match=r"pip install 'dit-lens\[video\]'"):
        vbvr.read_video(tmp_path / "a.mp4")


# Reading.


def test_read_bench_finds_every_sample_in_order(bench: Path) -> None:
    samples = dl.tasks.vbvr.read_bench(bench)
    assert [(s.split, s.task, s.index) for s in samples] == [
        (IN, SORT, "00000"), (IN, SORT, "00001"), (OUT, MAZE, "00000"),
    ]  # fmt: skip
    sample = samples[1]
    assert sample.id == f"{SORT}/00001"
    assert sample.prompt == "Solve number 1."
    assert sample.video.dtype == np.uint8
    assert sample.video.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert np.array_equal(np.asarray(sample.image), sample.video[0])
    assert np.array_equal(np.asarray(sample.final), sample.video[-1])
    assert sample.metadata == {}


def test_read_bench_of_some_tasks(bench: Path) -> None:
    assert {s.task for s in vbvr.read_bench(bench, ["O-39"])} == {MAZE}
    assert {s.task for s in vbvr.read_bench(bench, [SORT])} == {SORT}
    with pytest.raises(dl.errors.TaskError, match=rf"no task 'O-3'; there are {SORT}, {MAZE}"):
        vbvr.read_bench(bench, ["O-3"])


def test_what_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(dl.errors.TaskError, match="no VBVR-Bench folder"):
        vbvr.read_bench(tmp_path / "missing")
    (tmp_path / IN).mkdir()
    with pytest.raises(dl.errors.TaskError, match="holds no samples"):
        vbvr.read_bench(tmp_path)
    with pytest.raises(dl.errors.TaskError, match="no samples of a generator"):
        vbvr.read_questions(tmp_path)


@pytest.mark.parametrize("above", ["data/questions", "questions/G-174_circles_data-generator"])
def test_read_questions_of_a_generator_and_of_the_factory(tmp_path: Path, above: str) -> None:
    home = tmp_path / above / "circles_task"
    write_sample(home / "circles_00000000")
    write_sample(home / "circles_00000001", seed=1, truth=False)
    metadata = {"task_id": "circles_00000000", "parameters": {"count": 7}}
    (home / "circles_00000000" / "metadata.json").write_text(json.dumps(metadata))
    for folder in (tmp_path, home.parent, home):
        samples = vbvr.read_questions(folder)
        assert [s.index for s in samples] == ["circles_00000000", "circles_00000001"]
        assert {s.task for s in samples} == {"G-174_circles_data-generator" if "G-" in above else "circles"}
    assert samples[0].metadata["parameters"] == {"count": 7}
    # A question needs no truth; one that is there must be whole.
    assert len(vbvr.validate(samples).samples) == 2
    (home / "circles_00000000" / "first_frame.png").unlink()
    (home / "circles_00000001" / "final_frame.png").write_bytes(b"\x89PNG")
    problems = vbvr.validate(samples, skip=True).problems
    assert problems[samples[0].id] == "first_frame.png: no such file"
    assert problems[samples[1].id].startswith("final_frame.png: cannot be read as a picture")


# Checking.


def _rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return rewrite


def _resize(folder: Path) -> None:
    Image.new("RGB", (WIDTH, 2 * HEIGHT)).save(folder / "final_frame.png")


def _remake_video(folder: Path) -> None:
    vbvr.write_video(folder / "ground_truth.mp4", np.zeros((FRAMES, HEIGHT, HEIGHT, 3), dtype=np.uint8))


BREAKAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no first frame": (lambda f: (f / "first_frame.png").unlink(), "first_frame.png: no such file"),
    "no final frame": (lambda f: (f / "final_frame.png").unlink(), "final_frame.png: no such file"),
    "no video": (lambda f: (f / "ground_truth.mp4").unlink(), "ground_truth.mp4: no such file"),
    "no prompt": (lambda f: (f / "prompt.txt").unlink(), "prompt.txt: no such file"),
    "empty prompt": (_rewrite("prompt.txt", lambda _: b" \n"), "prompt.txt: is empty"),
    "prompt in another encoding": (_rewrite("prompt.txt", lambda _: b"\xff\xfe"), "prompt.txt: is not UTF-8"),
    "half a picture": (_rewrite("first_frame.png", lambda d: d[: len(d) // 2]), "first_frame.png: cannot be read"),
    "no picture": (_rewrite("final_frame.png", lambda _: b"hello"), "final_frame.png: cannot be read"),
    "half a video": (_rewrite("ground_truth.mp4", lambda d: d[: len(d) // 2]), "ground_truth.mp4: cannot be read"),
    "empty video": (_rewrite("ground_truth.mp4", lambda _: b""), "ground_truth.mp4: cannot be read"),
    "broken metadata": (lambda f: (f / "metadata.json").write_text("{"), "metadata.json: is not JSON"),
    "metadata of another kind": (lambda f: (f / "metadata.json").write_text("[]"), "metadata.json: is not a JSON ob"),
    "sizes of pictures": (_resize, "final_frame.png 32 x 48"),
    "size of the video": (_remake_video, "ground_truth.mp4 24 x 24"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_every_breakage_is_named(bench: Path, name: str) -> None:
    change, told = BREAKAGES[name]
    change(bench / IN / SORT / "00001")
    with pytest.raises(dl.errors.TaskError) as error:
        vbvr.validate(bench)
    heading, *lines = str(error.value).splitlines()
    assert heading == "1 of 3 samples are broken"
    assert len(lines) == 1
    assert f"{SORT}/00001: " in lines[0]
    assert told in lines[0]
    report = vbvr.validate(bench, skip=True)
    assert [s.id for s in report.samples] == [f"{SORT}/00000", f"{MAZE}/00000"]
    assert list(report.problems) == [f"{SORT}/00001"]


def test_all_broken_samples_are_listed_once_each(bench: Path) -> None:
    (bench / IN / SORT / "00000" / "prompt.txt").unlink()
    (bench / IN / SORT / "00000" / "first_frame.png").write_bytes(b"")
    (bench / OUT / MAZE / "00000").rename(bench / OUT / MAZE / "seven")
    write_sample(bench / OUT / "mazes" / "00000")
    with pytest.raises(dl.errors.TaskError) as error:
        vbvr.validate(bench)
    heading, *lines = str(error.value).splitlines()
    assert heading == "3 of 4 samples are broken"
    assert "first_frame.png" in lines[0]
    assert "prompt.txt: no such file" in lines[0]
    assert "five digits" in lines[1]
    assert "not named like" in lines[2]


def test_good_samples_pass(bench: Path) -> None:
    report = vbvr.validate(bench)
    assert len(report.samples) == 3
    assert report.problems == {}
    assert str(report) == "3 samples, all good"


def test_a_broken_sample_is_refused_by_a_run(bench: Path, organism: Subject) -> None:
    (bench / IN / SORT / "00000" / "prompt.txt").unlink()
    with pytest.raises(dl.errors.TaskError, match=r"00000/prompt\.txt: no such file"):
        organism.model.run(vbvr.read_bench(bench)[0])


# Results.


def test_results_lie_where_the_benchmark_wants_them(bench: Path, tmp_path: Path) -> None:
    samples = vbvr.read_bench(bench)
    videos = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16, 3), dtype=np.uint8)
    paths = vbvr.write_results(videos, samples, tmp_path / "out")
    assert [p.relative_to(tmp_path / "out").as_posix() for p in paths] == [
        f"{IN}/{SORT}/00000.mp4", f"{IN}/{SORT}/00001.mp4", f"{OUT}/{MAZE}/00000.mp4",
    ]  # fmt: skip
    assert np.array_equal(vbvr.read_result(tmp_path / "out", samples[1]), videos[1])


def test_results_that_do_not_fit_are_not_written(bench: Path, tmp_path: Path) -> None:
    samples = vbvr.read_bench(bench)
    videos = np.zeros((3, 5, 16, 16, 3), dtype=np.uint8)
    refused: list[tuple[Any, Any, str]] = [
        (videos[:2], samples, r"3 samples need 3 videos, got an array of shape \(2, 5"),
        (videos[0], samples, r"array of shape \(5, 16"),
        (videos, [samples[0], samples[1], samples[1]], "given twice"),
        (types.SimpleNamespace(frames=None), samples, "decoded frames"),
        (
            types.SimpleNamespace(frames=videos, rows=[Row(s.id, 0) for s in samples[::-1]]),
            samples,
            "not these samples",
        ),
    ]
    for given, of, told in refused:
        with pytest.raises(dl.errors.TaskError, match=told):
            vbvr.write_results(given, of, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@dataclass
class Player:
    """Stands in for a model: draws the true video, and counts how often it is asked."""

    id: str = "player"
    asked: list[str] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)
    setup: dict[str, str] = field(default_factory=dict)

    def runs(self, samples: Sequence[Any], seeds: Sequence[int], *, batch: int, **_: Any) -> Iterator[Any]:
        assert batch == 1
        for sample, seed in zip(samples, seeds, strict=True):
            if self.id == "tired" and self.asked:
                raise KeyboardInterrupt
            self.asked.append(sample.id)
            self.seeds[sample.id] = seed
            yield types.SimpleNamespace(frames=sample.video[None], rows=[Row(sample.id, seed)])


def test_an_interrupted_run_goes_on(bench: Path, tmp_path: Path) -> None:
    samples, out = vbvr.read_bench(bench), tmp_path / "out"
    tired, rested = Player("tired"), Player("tired")
    with pytest.raises(KeyboardInterrupt):
        vbvr.run_bench(tired, samples, out, seed=3, num_inference_steps=4)
    with pytest.raises(KeyboardInterrupt):
        vbvr.run_bench(rested, samples, out, seed=3, num_inference_steps=4)
    assert tired.asked + rested.asked == [s.id for s in samples[:2]]
    # Whichever samples are left, each has its own noise.
    whole = Player()
    vbvr.run_bench(whole, samples, tmp_path / "whole", seed=3, num_inference_steps=4)
    assert len(set(whole.seeds.values())) == len(samples)
    assert {**tired.seeds, **rested.seeds}.items() <= whole.seeds.items()
    assert not list(out.rglob("*.part"))


def test_results_of_different_runs_are_not_mixed(bench: Path, tmp_path: Path) -> None:
    samples, out = vbvr.read_bench(bench), tmp_path / "out"
    assert all(p.is_file() for p in vbvr.run_bench(Player(), samples, out, seed=3, num_inference_steps=4))
    again = Player()
    vbvr.run_bench(again, samples, out, seed=3, num_inference_steps=4)
    assert again.asked == []
    with pytest.raises(dl.errors.TaskError, match="seed 3, now 4"):
        vbvr.run_bench(Player(), samples, out, seed=4, num_inference_steps=4)
    with pytest.raises(dl.errors.TaskError, match="model 'player', now 'other'"):
        vbvr.run_bench(Player("other"), samples, out, seed=3, num_inference_steps=4)
    with pytest.raises(dl.errors.TaskError, match=r"num_inference_steps: 4.*num_inference_steps: 5"):
        vbvr.run_bench(Player(), samples, out, seed=3, num_inference_steps=5)


def test_null_videos(bench: Path, tmp_path: Path) -> None:
    samples = vbvr.read_bench(bench)
    vbvr.null_results(samples, tmp_path / "frozen", "frozen")
    vbvr.null_results(samples, tmp_path / "noise", "noise")
    frozen, noise = (vbvr.read_result(tmp_path / kind, samples[0]) for kind in ("frozen", "noise"))
    assert np.array_equal(frozen, np.repeat(samples[0].video[:1], FRAMES, axis=0))
    assert noise.shape == frozen.shape
    assert 120 < noise.mean() < 135
    assert not np.array_equal(noise, vbvr.read_result(tmp_path / "noise", samples[1]))
    with pytest.raises(dl.errors.TaskError, match="one of frozen, noise"):
        vbvr.null_results(samples, tmp_path / "blurred", "blurred")


# Our own tasks.


@pytest.mark.parametrize("name", sorted(dl.tasks.TASKS))
def test_exported_tasks_are_read_back_bit_for_bit_and_scored(tmp_path: Path, name: str) -> None:
    task = dl.tasks.TASKS[name]()
    instances = task.sample(3, seed=1)
    samples = vbvr.export(instances, tmp_path / "bench", f"G-900_{name}_data-generator")
    assert vbvr.read_bench(tmp_path / "bench") == samples
    assert len(vbvr.validate(tmp_path / "bench").samples) == 3
    for sample, instance in zip(samples, instances, strict=True):
        assert np.array_equal(sample.video, instance.video)
        assert np.array_equal(np.asarray(sample.image), np.asarray(instance.image))
        assert np.array_equal(np.asarray(sample.final), instance.video[-1])
        assert sample.prompt == instance.prompt
        assert sample.metadata["task_id"] == instance.id
        assert set(sample.metadata["parameters"]) == set(instance.variables)
    vbvr.write_results(task.render(instances), samples, tmp_path / "truth")
    vbvr.null_results(samples, tmp_path / "frozen", "frozen")
    truth, frozen = (
        vbvr.score_results(tmp_path / "bench", tmp_path / kind, task, instances[::-1]) for kind in ("truth", "frozen")
    )
    assert truth["strict"].all()
    assert truth["total"].tolist() == pytest.approx([1.0] * len(instances))
    assert truth["id"].tolist() == [i.id for i in instances]
    expected = task.score(np.repeat(task.render(instances)[:, :1], task.frames, axis=1), instances)
    assert frozen["total"].tolist() == expected.total.tolist()
    assert {rule: frozen[rule].tolist() for rule in task.weights} == {
        r: expected.rules[r].tolist() for r in task.weights
    }


def test_bad_exports_write_nothing(tmp_path: Path) -> None:
    instances = dl.tasks.Permanence().sample(2)
    for given, name, split, told in [
        ([], OWN, IN, "no instances"),
        (instances, "permanence", IN, "no name of a task"),
        (instances, "G-1_a/b_data-generator", IN, "no name of a task"),
        (instances, OWN, "test", "unknown split 'test'"),
    ]:
        with pytest.raises(dl.errors.TaskError, match=told):
            vbvr.export(given, tmp_path / "bench", name, split)
    assert not (tmp_path / "bench").exists()
    vbvr.export(instances[:1], tmp_path / "bench", OWN)
    with pytest.raises(dl.errors.TaskError, match="00000: exists already"):
        vbvr.export(instances, tmp_path / "bench", OWN)
    assert len(vbvr.read_bench(tmp_path / "bench")) == 1


def test_an_export_that_fails_leaves_no_half_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("dit_lens.tasks.vbvr.exported.write_video", fail)
    with pytest.raises(OSError, match="no space"):
        vbvr.export(dl.tasks.Permanence().sample(1), tmp_path / "bench", OWN)
    assert not [p for p in (tmp_path / "bench").rglob("*") if p.is_file()]
    assert list((tmp_path / "bench" / IN / OWN).iterdir()) == []


def test_results_of_another_length_or_size_name_the_file(tmp_path: Path) -> None:
    task = dl.tasks.Permanence()
    instances = task.sample(3)
    samples = vbvr.export(instances, tmp_path / "bench", OWN)
    videos = task.render(instances)
    vbvr.write_results(videos[:1, :5], samples[:1], tmp_path / "out")
    vbvr.write_results(videos[1:2, :, :16], samples[1:2], tmp_path / "out")
    with pytest.raises(dl.errors.TaskError) as error:
        vbvr.score_results(tmp_path / "bench", tmp_path / "out", task, instances)
    heading, *lines = str(error.value).splitlines()
    assert heading == "3 of 3 results cannot be scored"
    assert lines[0].endswith("00000.mp4: is 5 frames of 32 x 32, expected 9 frames of 32 x 32")
    assert lines[1].endswith("00001.mp4: is 9 frames of 32 x 16, expected 9 frames of 32 x 32")
    assert lines[2].endswith("00002.mp4: no such file")
    with pytest.raises(dl.errors.TaskError, match="not among those given"):
        vbvr.score_results(tmp_path / "bench", tmp_path / "out", task, instances[:2])


def test_a_model_runs_on_samples_as_on_the_instances_themselves(tmp_path: Path, organism: Subject) -> None:
    instances = dl.tasks.Maze(size=4, lengths=(3, 8)).sample(2)
    samples = vbvr.export(instances, tmp_path / "bench", MAZE, OUT)
    settings: dict[str, Any] = {"num_inference_steps": 2, "height": 32, "width": 32}
    vbvr.run_bench(organism.model, samples, tmp_path / "out", seed=7, **settings)
    for sample, instance in zip(samples, instances, strict=True):
        seed = derive(7, f"{sample.split}/{sample.id}")
        direct = organism.model.run(instance, seed=seed, **settings).frames
        assert direct is not None
        assert np.array_equal(vbvr.read_result(tmp_path / "out", sample), direct[0])


# The official scorers.


@pytest.fixture
def evalkit(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A package with the interface of VBVR-EvalKit at 275472f: what `official_scores` calls, and what that returns."""

    class Evaluator:
        def __init__(self, device: str = "cuda", task_name: str = "") -> None:
            self.device, self.task_name = device, task_name

        def evaluate(self, eval_info: dict[str, Any], **options: Any) -> dict[str, Any]:
            result: dict[str, Any] = {"score": 0.0, "dimensions": {}, "details": {}}
            assert self.task_name == eval_info["task_name"]
            try:
                drawn = vbvr.read_video(eval_info["video_path"])
                first, final, truth = (
                    np.asarray(Image.open(eval_info["gt_first_frame"])),
                    np.asarray(Image.open(eval_info["gt_final_frame"])),
                    vbvr.read_video(eval_info["gt_video_path"]),
                )
                assert eval_info["prompt"]
                dimensions = {
                    "first_frame_consistency": float(np.array_equal(drawn[0], first)),
                    "final_frame_accuracy": float(np.array_equal(drawn[-1], final)),
                    "temporal_smoothness": 0.5,
                    "visual_quality": 0.5,
                    "task_specific": float((drawn == truth).mean()),
                }
                if options.get("task_specific_only"):
                    result["score"] = dimensions["task_specific"]
                else:
                    result["score"] = float(np.dot([0.15, 0.35, 0.15, 0.1, 0.25], list(dimensions.values())))
            except ValueError as error:  # as there: what goes wrong is a zero
                result["error"] = str(error)
            return result

    package, module = types.ModuleType("vbvr_bench"), types.ModuleType("vbvr_bench.evaluators")
    scorers: dict[str, Any] = {SORT: Evaluator, MAZE: Evaluator}

    def get_evaluator(task_name: str, device: str = "cuda") -> Evaluator:
        built: Evaluator = scorers[task_name](device=device, task_name=task_name)
        return built

    vars(module).update(TASK_EVALUATOR_MAP=scorers, get_evaluator=get_evaluator)
    vars(package).update(evaluators=module, __path__=[])
    monkeypatch.setitem(sys.modules, "vbvr_bench", package)
    monkeypatch.setitem(sys.modules, "vbvr_bench.evaluators", module)
    return module


def _write_truth(bench: Path, out: Path) -> None:
    for sample in vbvr.read_bench(bench):
        vbvr.write_results(sample.video[None], sample, out)


def test_official_scores_beside_their_floors(bench: Path, tmp_path: Path, evalkit: types.ModuleType) -> None:
    samples = vbvr.read_bench(bench)
    _write_truth(bench, tmp_path / "truth")
    for kind in ("frozen", "noise"):
        vbvr.null_results(samples, tmp_path / kind, kind)
    scores = vbvr.official_scores(tmp_path / "truth", bench)
    assert scores.columns.tolist() == ["split", "task", "index", "score", "error"]
    assert scores[["split", "task", "index"]].to_numpy().tolist() == [[s.split, s.task, s.index] for s in samples]
    assert scores["score"].tolist() == [1, 1, 1]
    weighted = vbvr.official_scores(tmp_path / "truth", bench, ["O-39"], weighted=True)
    assert weighted["score"].tolist() == [pytest.approx(0.875)]
    floors = {kind: vbvr.official_scores(tmp_path / kind, bench) for kind in ("frozen", "noise")}
    table = vbvr.beside_floors(scores, floors).set_index("task")
    assert table["n"].to_dict() == {SORT: 2, MAZE: 1}
    assert table["floor"].tolist() == table[["frozen", "noise"]].max(axis=1).tolist()
    # One frame of five is right, and of the others one value in 256.
    frozen = float(table["frozen"][MAZE])
    assert 0.2 < frozen < 0.21
    assert table["normalised"].tolist() == [pytest.approx(1), pytest.approx(1)]
    halfway = scores.assign(score=(1 + float(table["floor"][MAZE])) / 2)
    assert vbvr.beside_floors(halfway, floors).set_index("task")["normalised"][MAZE] == pytest.approx(0.5)
    with pytest.raises(dl.errors.TaskError, match="'frozen' were scored on other samples"):
        vbvr.beside_floors(scores[:2], floors)
    with pytest.raises(dl.errors.TaskError, match="no null videos"):
        vbvr.beside_floors(scores, {})


def test_nothing_is_normalised_where_a_null_video_has_every_point() -> None:
    scores = pd.DataFrame({"split": [IN], "task": [SORT], "index": ["00000"], "score": [1.0], "error": [""]})
    worse = scores.assign(score=0.5)
    assert vbvr.beside_floors(scores, {"frozen": scores})["normalised"].isna().all()
    assert vbvr.beside_floors(worse, {"frozen": scores})["normalised"].isna().all()


def test_a_failure_of_an_official_scorer_is_told(bench: Path, tmp_path: Path, evalkit: types.ModuleType) -> None:
    _write_truth(bench, tmp_path / "out")
    (tmp_path / "out" / IN / SORT / "00001.mp4").write_bytes(b"")
    scores = vbvr.official_scores(tmp_path / "out", bench)
    assert scores["score"].tolist() == [1, 0, 1]
    assert [bool(error) for error in scores["error"]] == [False, True, False]


def test_missing_results_are_an_error_unless_skipped(bench: Path, tmp_path: Path, evalkit: types.ModuleType) -> None:
    with pytest.raises(dl.errors.TaskError, match="3 of 3 results are missing"):
        vbvr.official_scores(tmp_path / "out", bench, skip_missing=True)
    _write_truth(bench, tmp_path / "out")
    (tmp_path / "out" / IN / SORT / "00001.mp4").unlink()
    with pytest.raises(dl.errors.TaskError, match=rf"(?s)1 of 3 results are missing.*{SORT}/00001\.mp4"):
        vbvr.official_scores(tmp_path / "out", bench)
    assert len(vbvr.official_scores(tmp_path / "out", bench, skip_missing=True)) == 2


def test_a_task_without_official_scorer_is_refused(tmp_path: Path, evalkit: types.ModuleType) -> None:
    vbvr.export(dl.tasks.Permanence().sample(1), tmp_path / "bench", OWN)
    with pytest.raises(dl.errors.TaskError, match=f"no scorer for {OWN}"):
        vbvr.official_scores(tmp_path / "out", tmp_path / "bench")


def test_without_the_official_scorers_the_error_says_how_to_get_them(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vbvr_bench", None)
    with pytest.raises(dl.errors.TaskError, match=r"pip install git\+https://github.com/Video-Reason/VBVR-EvalKit"):
        vbvr.official_scores(bench, bench)


def test_a_missing_requirement_of_theirs_is_named(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site" / "vbvr_bench").mkdir(parents=True)
    (tmp_path / "site" / "vbvr_bench" / "__init__.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(dl.errors.TaskError, match="cannot be imported: No module named 'nowhere_to_be_found'"):
        vbvr.official_scores(bench, bench)


# As a task.


def test_samples_are_a_task_that_declares_what_their_folders_tell(bench: Path) -> None:
    task = vbvr.VbvrTask(tuple(vbvr.read_bench(bench)))
    assert declared(task) == ("scene_labels", "render")
    drawn = task.sample(3, seed=1)
    assert {sample.id for sample in drawn} == {sample.id for sample in task.samples}
    assert [sample.id for sample in task.sample(3, seed=1)] == [sample.id for sample in drawn]
    label = labels_of(task, drawn, 2)["generator"]
    assert [label.names[value] for value in label.values] == [sample.task for sample in drawn]
    assert np.array_equal(task.render(drawn), np.stack([sample.video for sample in drawn]))
    with pytest.raises(EvidenceError, match=r"patching_sweep needs answer_mask .* task 'vbvr' does not declare it"):
        answer_masks(task, [], who="patching_sweep")


def test_what_the_samples_cannot_give_is_refused(bench: Path) -> None:
    task = vbvr.VbvrTask(tuple(vbvr.read_bench(bench)[:2]))
    with pytest.raises(TaskError, match="no samples given"):
        vbvr.VbvrTask(())
    for count, split in ((3, "test"), (0, "test"), (1, "train")):
        with pytest.raises(TaskError, match=f"asked for {count} of split '{split}'; there are 2 of test"):
            task.sample(count, split=split)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match=f"{MAZE}/00000 are not of this task"):
        task.scene_labels(vbvr.read_bench(bench)[2:], 2)
    vbvr.write_video(bench / IN / SORT / "00000" / "ground_truth.mp4", np.zeros((4, 16, 16, 3), np.uint8))
    with pytest.raises(TaskError, match="true videos of 4 frames of 16 x 16 and 5 frames of 32 x 24 are not one array"):
        task.render(list(task.samples))
    with pytest.raises(TaskError, match="true videos of no samples"):
        task.render([])
