"""A run is data: copied, pickled, saved and loaded it gives and resumes as it was; so do some of its rows."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dit_lens as dl
from dit_lens.engine.dispatcher import velocities
from dit_lens.engine.recorder import Recorder
from dit_lens.errors import DonorError, InputError, StoreError, UnsupportedModel
from dit_lens.families.base import Architecture
from dit_lens.families.tiny.pipelines import TINY
from dit_lens.files.video import read_video
from tests.subjects import Edit, Subject

#: Separate calls, batched branches with text in the state, joint attention; pictures that re-enter, several streams.
SEPARATE, BATCHED, JOINT = "wan2.1-t2v", "cogvideox-1.5", "hunyuanvideo"
SOME = [SEPARATE, BATCHED, JOINT, "wan2.2-ti2v-image", "ltx-2"]


@cache
def model_of(name: str) -> dl.VideoDiT:
    return dl.VideoDiT(TINY[name].build())


def run(name: str, inputs: Any = None, seeds: Any = (0, 1, 2), **more: Any) -> dl.Run:
    tiny = TINY[name]
    first, second = tiny.inputs()
    given = [first, second, first] if inputs is None else list(inputs)
    return model_of(name).run(
        given, seeds if isinstance(seeds, bool) else list(seeds), **{**dict(tiny.settings), "decode": False, **more}
    )


@cache
def recorded(name: str) -> dl.Run:
    keep = [dl.Capture(dl.Sites("resid", layers=1, stream="all")), dl.Capture(dl.Sites("guided"), name="g")]
    return run(name, record=True, interventions=keep)


def leaves(value: Any, path: str = "run") -> Iterator[tuple[str, Any]]:
    """Everything within a value, through dataclasses, mappings and lists."""
    yield path, value
    inner: Mapping[Any, Any] = {}
    if is_dataclass(value):
        inner = {f.name: getattr(value, f.name) for f in fields(value)}
    elif isinstance(value, Mapping):
        inner = value
    elif isinstance(value, list | tuple):
        inner = dict(enumerate(value))
    for name, item in inner.items():
        yield from leaves(item, f"{path}.{name}")


def plain(value: Any) -> dict[str, Any]:
    """All numbers, texts and tensors of a run by their places."""
    return {path: x for path, x in leaves(value) if isinstance(x, int | float | str | Tensor | np.ndarray | None)}


def same(a: dl.Run, b: dl.Run) -> bool:
    one, other = plain(a), plain(b)
    return list(one) == list(other) and all(equal(one[path], other[path]) for path in one)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


@pytest.mark.parametrize("name", SOME)
def test_nothing_in_a_run_computes(name: str) -> None:
    forbidden = (nn.Module, FunctionType, MethodType, Recorder, Architecture, dl.VideoDiT, torch.Generator)
    assert [path for path, value in leaves(recorded(name)) if isinstance(value, forbidden)] == []


@pytest.mark.parametrize("name", SOME)
def test_a_run_comes_back_from_copies_pickles_and_folders(name: str, tmp_path: Path) -> None:
    whole = recorded(name)
    loaded = dl.Run.load(whole.save(tmp_path / "run"))
    for other in (loaded, copy.deepcopy(whole), pickle.loads(pickle.dumps(whole)), whole.to("cpu")):
        assert same(other, replace(whole, inputs=other.inputs))
        assert other.id == whole.id
        step = whole.geometry.steps - 1
        assert torch.equal(run(name, resume=dl.Resume(other, step)).latents, whole.latents)
        replay, again = (model_of(name).replay(x, step) for x in (whole, other))
        assert torch.equal(again.guided, replay.guided)
        assert torch.equal(again.x0hat, replay.x0hat)
        sites = dl.Sites("resid", steps=0, layers=1)
        assert torch.equal(*(run(name, interventions=[dl.Patch(x, sites)]).latents for x in (whole, other)))


def test_a_loaded_run_resumes_from_its_own_inputs(tmp_path: Path, organism: Subject) -> None:
    """A task instance comes back as its id, prompt and picture, of which a run makes the same rows."""
    mazes = dl.tasks.Maze(4).sample(2)
    settings = {"num_inference_steps": 3, "decode": False}
    whole = organism.model.run(mazes, [3, 4], record=True, **settings)
    loaded = dl.Run.load(whole.save(tmp_path / "run"))
    assert [given["id"] for given in loaded.inputs] == [maze.id for maze in mazes]
    seeds = [row.seed for row in loaded.rows]
    again = organism.model.run(list(loaded.inputs), seeds, resume=dl.Resume(loaded, 2), **settings)
    assert again.rows == whole.rows
    assert torch.equal(again.latents, whole.latents)
    assert torch.equal(organism.model.run(mazes, seeds, resume=dl.Resume(loaded, 1), **settings).latents, whole.latents)


def test_an_input_may_have_an_id() -> None:
    first, second = TINY[SEPARATE].inputs()
    named = run(SEPARATE, [{**first, "id": "one"}, second], [0, 1])
    assert [row.instance for row in named.rows] == ["one", second["prompt"]]
    with pytest.raises(InputError, match="an input's id must be a string, got 3"):
        run(SEPARATE, [{**first, "id": 3}], [0])


def test_two_inputs_of_one_id_are_refused() -> None:
    first, second = TINY[SEPARATE].inputs()
    with pytest.raises(InputError, match="two inputs with another prompt or picture have the id 'one'"):
        run(SEPARATE, [{**first, "id": "one"}, {**second, "id": "one"}], [0, 1])
    run(SEPARATE, [{**first, "id": "one"}, {**first, "id": "one"}], [0, 1], stop_after=0)


def test_a_run_keeps_what_it_was_given() -> None:
    """A mapping, a picture or a tensor that the caller changes afterwards is not the run's."""
    first, _ = TINY["wan2.1-i2v"].inputs()
    given = {**first, "image": first["image"].copy(), "id": "one"}
    geometry = model_of("wan2.1-i2v").geometry(given, **TINY["wan2.1-i2v"].settings)
    latents = torch.randn(1, *geometry.shapes["latents"])
    made = run("wan2.1-i2v", [given], [0], latents=latents, record=True)
    same = {"latents": latents.clone()}
    given["prompt"] = "the circle"
    given["image"].putpixel((0, 0), (255, 0, 0))
    latents.zero_()
    assert made.inputs[0]["prompt"] == first["prompt"]
    assert made.inputs[0]["image"] == first["image"]
    for record in (made, made.select([0])):
        run("wan2.1-i2v", made.inputs, [0], resume=dl.Resume(record, 1), **same)
        with pytest.raises(InputError, match="the record is of other prompts or pictures"):
            run("wan2.1-i2v", [given], [0], resume=dl.Resume(record, 1), **same)


def test_equal_pictures_are_one_whoever_holds_them() -> None:
    """A picture that was loaded is another object than the one that was saved; its runs are the same."""
    first, _ = TINY["wan2.1-i2v"].inputs()
    copies = [{**first, "image": first["image"].copy()} for _ in range(2)]
    shared, apart = (run("wan2.1-i2v", given, [0, 1]) for given in ([first, first], copies))
    assert shared.content == apart.content
    assert torch.equal(shared.latents, apart.latents)


FRESH = """
import sys, torch
import dit_lens as dl
from dit_lens.families.tiny.pipelines import TINY
tiny, folder = TINY[sys.argv[1]], sys.argv[2]
model, run = dl.VideoDiT(tiny.build()), dl.Run.load(folder)
seeds = [row.seed for row in run.rows]
done = model.run(list(run.inputs), seeds, decode=False, record=True, resume=dl.Resume(run, 2), **tiny.settings)
done.save(folder + "-done")
patch = dl.Patch(run, dl.Sites("resid", steps=0, layers=1))
model.run(list(run.inputs), seeds, decode=False, interventions=[patch], **tiny.settings).save(folder + "-patched")
"""


@pytest.mark.parametrize("name", [SEPARATE, "wan2.2-ti2v-image"])
def test_a_run_goes_on_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    keep = [dl.Capture(dl.Sites("resid", steps=0, layers=1))]
    run(name, record=True, stop_after=1, interventions=keep).save(tmp_path / "run")
    subprocess.run([sys.executable, "-W", "ignore", "-c", FRESH, name, str(tmp_path / "run")], check=True)
    whole = recorded(name)
    assert torch.equal(dl.Run.load(tmp_path / "run-done").latents, whole.latents)
    patched = run(name, interventions=[dl.Patch(whole, dl.Sites("resid", steps=0, layers=1))])
    assert torch.equal(dl.Run.load(tmp_path / "run-patched").latents, patched.latents)


@pytest.mark.parametrize("name", list(TINY))
def test_chosen_rows_go_on_as_the_run_that_never_stopped(name: str) -> None:
    """A batch of other rows may take other kernels: as they take them alone, to the precision of the dtype."""
    tiny = TINY[name]
    stopped = run(name, record=True, stop_after=0)
    best = stopped.select([2, 0])
    assert best.rows == (stopped.rows[2], stopped.rows[0])
    seeds = [row.seed for row in best.rows]
    never, done = run(name), run(name, best.inputs, seeds, resume=dl.Resume(best, 1))
    alone = run(name, best.inputs, seeds)
    assert done.ledger.denoiser_forwards < alone.ledger.denoiser_forwards
    assert done.rows == best.rows
    assert done.latents.shape == never.latents[[2, 0]].shape
    assert torch.allclose(done.latents, never.latents[[2, 0]], rtol=1e-3, atol=1e-3), tiny.name
    assert torch.allclose(done.latents, alone.latents, rtol=1e-3, atol=1e-3), tiny.name


@pytest.mark.parametrize("name", list(TINY))
def test_a_selection_is_replayed_as_its_rows(name: str) -> None:
    whole = run(name, record=True)
    some = whole.select([2, 0])
    replay, of_all = (model_of(name).replay(x, 1) for x in (some, whole))
    assert torch.allclose(replay.guided, of_all.guided[[2, 0]], rtol=1e-3, atol=1e-3)
    assert torch.allclose(replay.x0hat, of_all.x0hat[[2, 0]], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [SEPARATE, BATCHED, JOINT])
def test_all_rows_selected_go_on_bit_for_bit(name: str) -> None:
    whole = recorded(name)
    same_rows = run(name, record=True, stop_after=1).select([0, 1, 2])
    assert torch.equal(run(name, resume=dl.Resume(same_rows, 2)).latents, whole.latents)
    assert torch.equal(run(name, resume=dl.Resume(same_rows, 1)).latents, whole.latents)


def test_a_selection_is_of_its_rows_alone() -> None:
    whole = recorded(JOINT)
    some = whole.select([-1])
    site = next(iter(whole.captured()))
    assert some.id != whole.id
    assert some.select([0]).id != some.id
    assert torch.equal(some[site], whole[site][2:])
    assert torch.equal(some.states[1], whole.states[1][2:])
    assert some.inputs == whole.inputs[2:]
    assert some.content == run(JOINT, [whole.inputs[2]], [2]).content
    assert all(len(valid) == 1 for valid in some.text_valid.values())
    assert all(some.calls[0].rows(branch) == slice(0, 1) for branch in some.calls[0].branches)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "name at least one"),
        ([3], r"select\(\[3\]\): the run has rows 0\.\.2"),
        ([0, -3], "a row is named twice"),
        ([0.5], "need a list of row numbers"),
        (1, "need a list of row numbers"),
    ],
)
def test_rows_that_a_run_does_not_have_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recorded(SEPARATE).select(rows)


def test_a_capture_without_rows_cannot_be_cut() -> None:
    total = Edit(dl.Sites("resid", steps=0, layers=1), lambda x, at: at.keep("sum", x.sum()))
    with pytest.raises(InputError, match=r"the capture of s00/cond/L01/resid/video of the name 'sum' has shape"):
        run(SEPARATE, interventions=[total]).select([0])


def test_per_row_settings_are_cut() -> None:
    negative = ["move", "draw", "the circle"]
    stopped = run(SEPARATE, record=True, stop_after=1, negative_prompt=negative)
    best = stopped.select([1, 2])
    assert best.settings["negative_prompt"] == negative[1:]
    done = run(SEPARATE, best.inputs, [1, 2], resume=dl.Resume(best, 2), negative_prompt=negative[1:])
    assert torch.allclose(done.latents, run(SEPARATE, negative_prompt=negative).latents[1:], rtol=1e-3, atol=1e-3)


def test_a_record_without_the_state_cannot_be_resumed() -> None:
    stopped = run(SEPARATE, record=True, stop_after=0)
    with pytest.raises(InputError, match=r"resume at step 2: the record has states of steps 0\.\.1|step 1 was not"):
        run(SEPARATE, resume=dl.Resume(stopped, 2))
    assert torch.equal(run(SEPARATE, resume=dl.Resume(stopped, 1)).latents, recorded(SEPARATE).latents)


@pytest.mark.parametrize("value", [object(), print, lambda: 0])
def test_a_run_with_what_is_no_data_is_not_saved(value: Any, tmp_path: Path) -> None:
    odd = replace(recorded(SEPARATE), settings={"attention_kwargs": {"processor": value}})
    with pytest.raises(StoreError, match=r"attention_kwargs\.processor' is a \w+, which is not plain data"):
        odd.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "saved.json").write_text("{}")
    with pytest.raises(StoreError, match=r"saved\.json"):
        dl.Run.load(tmp_path)
    with pytest.raises(StoreError, match="No such file"):
        dl.Run.load(tmp_path / "none")


def test_frames_are_asked_for(tmp_path: Path, organism: Subject) -> None:
    decoded = organism.run(decode=True)
    assert decoded.decoded is decoded.frames
    with pytest.raises(InputError, match="this run was not decoded; run with decode=True"):
        organism.run(decode=False).write_video(tmp_path / "a.mp4")


def test_rows_stand_side_by_side_in_a_video(tmp_path: Path, organism: Subject) -> None:
    pytest.importorskip("av")
    two = organism.model.run(organism.inputs[0], [0, 1], num_inference_steps=1)
    frames = read_video(two.write_video(tmp_path / "a.mp4", crf=None))
    assert np.array_equal(frames, np.concatenate([two.decoded[0], two.decoded[1]], axis=2))


KEEP = dl.Capture(dl.Sites("resid", steps=1, layers=1, stream="all"))
AT = dl.Sites("resid", steps=1, layers=1)
DONATED: dict[str, Callable[[Any], Any]] = {
    "patch": lambda donor: dl.Patch(donor, AT),
    "patch by sigma": lambda donor: dl.Patch(donor, AT, pair="sigma"),
    "mean": lambda donor: dl.Ablate(AT, "mean", reference=donor),
    "resample": lambda donor: dl.Ablate(AT, "resample", reference=donor),
}


@pytest.mark.parametrize("name", [SEPARATE, JOINT])
@pytest.mark.parametrize("kind", list(DONATED))
def test_a_replay_is_a_donor_as_its_run_is(name: str, kind: str) -> None:
    if kind == "resample" and name == JOINT:
        pytest.skip("its prompts differ in length")
    whole = recorded(name)
    replay = model_of(name).replay(whole, 1, [KEEP])
    assert torch.equal(replay["s01/cond/L01/resid"], whole["s01/cond/L01/resid"])
    assert replay.sigma_at(dl.Site.parse("s01/cond/L01/resid")) == whole.schedule.sigma(1)
    from_run, from_replay = (run(name, interventions=[DONATED[kind](donor)]) for donor in (whole, replay))
    assert torch.equal(from_run.latents, from_replay.latents)
    assert from_run.id != from_replay.id
    again = model_of(name).replay(whole, 1, [KEEP])
    assert again.id == replay.id != model_of(name).replay(whole, 1).id


def test_a_replay_without_the_site_is_no_donor() -> None:
    replay = model_of(SEPARATE).replay(recorded(SEPARATE), 1)
    with pytest.raises(DonorError, match="the donor did not capture s01/cond/L01/resid/video"):
        run(SEPARATE, interventions=[dl.Patch(replay, AT)])


def shown() -> Iterator[Any]:
    whole = recorded(SEPARATE)
    donor = dl.Patch(whole, AT)
    yield from (whole, whole.calls[0], whole.schedule, whole.geometry, whole.ledger, whole.rows[0], whole.select([0]))
    yield from (model_of(SEPARATE).replay(whole, 1, [KEEP]), dl.Resume(whole, 1), donor, KEEP, KEEP.sites)
    yield from (dl.Ablate(AT, "mean", reference=whole), dl.Steer(AT, torch.ones(24)), dl.Patch(torch.ones(1, 9), AT))
    yield dl.Noise(dl.Sites("latents"), "add")
    tokens = dl.Tokens(mask=np.ones((5, 30, 52), dtype=bool))
    yield from (tokens, dl.Sites("resid", steps=list(range(50)), layers=list(range(60)), tokens=tokens))
    yield model_of(SEPARATE).gradients(whole, 1, lambda replay: replay.guided.sum(), AT)


def test_every_repr_is_short() -> None:
    for thing in shown():
        text = repr(thing)
        assert len(text) < 1000, text[:2000]
        assert len(text.splitlines()) <= 5, text
        assert type(thing).__name__ in text or isinstance(thing, dl.Sites)


def test_a_run_of_a_family_that_is_not_known_here_is_refused() -> None:
    """A saved run names its family; one that is registered by hand has to be registered where it is loaded too."""
    other = replace(recorded(SEPARATE), family="mine")
    other = replace(other, calls=tuple(replace(call, context=None) for call in other.calls))
    with pytest.raises(UnsupportedModel, match="no family is named 'mine'; register it first, known are wan, "):
        velocities(other.calls[0], other.calls[0].output)


@pytest.mark.parametrize(
    "rows", [[True, False, True], torch.tensor([True, False, True]), np.array([True, False, True])]
)
def test_a_mask_is_no_list_of_rows(rows: Any) -> None:
    whole = recorded(SEPARATE)
    with pytest.raises(InputError, match="need a list of row numbers"):
        whole.select(rows)
    with pytest.raises(InputError, match="need whole numbers, the numbers of rows"):
        dl.Patch(whole, KEEP.sites, rows=rows)
    with pytest.raises(InputError, match="need whole numbers, the numbers of rows"):
        dl.Ablate(KEEP.sites, "mean", reference=whole, rows=rows)


def test_a_truth_is_no_number() -> None:
    with pytest.raises(InputError, match="a seed must be a whole number, or one per row; got True"):
        run(SEPARATE, [TINY[SEPARATE].inputs()[0]], True)
    with pytest.raises(InputError, match=r"Patch\(rows=\[True\]\): need whole numbers"):
        dl.Patch(recorded(SEPARATE), KEEP.sites, rows=True)
    assert dl.Patch(recorded(SEPARATE), KEEP.sites, rows=np.int64(1)).rows == 1


def test_complex_donors_are_refused() -> None:
    donor = torch.zeros(1, 1, dtype=torch.complex64)
    with pytest.raises(DonorError, match="a donor of complex64: give real numbers"):
        run(SEPARATE, interventions=[dl.Patch(donor, dl.Sites("resid", steps=0, layers=0))])


@pytest.mark.parametrize("step", [None, "1", 1.0, True])
def test_a_step_is_a_whole_number(step: Any) -> None:
    with pytest.raises(InputError, match=r"step .*: need a whole number"):
        dl.Resume(recorded(SEPARATE), step)
    with pytest.raises(InputError, match=r"step .*: need a whole number"):
        model_of(SEPARATE).replay(recorded(SEPARATE), step)


def test_what_is_no_run_is_neither_resumed_nor_replayed() -> None:
    replay = model_of(SEPARATE).replay(recorded(SEPARATE), np.int64(1))
    for given in (replay, None, "run"):
        with pytest.raises(InputError, match="resume needs a Run, got"):
            dl.Resume(given, 1)
        with pytest.raises(InputError, match=r"expected a Run, as model\.run makes it, got"):
            model_of(SEPARATE).replay(given, 1)
    with pytest.raises(InputError, match=r"resume needs a Resume, such as Resume\(run, step=3\), got Run"):
        run(SEPARATE, resume=recorded(SEPARATE))
