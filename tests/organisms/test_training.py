"""Training is a function of its seed, whether it was interrupted or not, and its optimiser does what it says."""

from __future__ import annotations

import copy
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_lens.errors import InputError, StoreError, TaskError
from dit_lens.families.tiny.text import build_text_encoder
from dit_lens.organisms.build import OrganismConfig, build_pipeline, build_transformer, build_vae, separate_frames
from dit_lens.organisms.load import load_organism, save_organism
from dit_lens.organisms.training.data import draw, encode, encode_condition, source, still_then_gray, to_tensor
from dit_lens.organisms.training.denoiser import Trainer, train_denoiser
from dit_lens.organisms.training.loop import Loop, stage_at, total_steps, unpacked
from dit_lens.organisms.training.optim import Ema, Muon, MuonAdamW, learning_rate_at, orthogonalise
from dit_lens.organisms.training.presets import PRESETS, DenoiserRecipe, Phase, Preset, Stage, VaeRecipe
from dit_lens.organisms.training.vae import decode_unclamped, train_vae
from dit_lens.runs.seeds import derive

State = dict[str, Tensor]

MICRO = Preset(
    config=OrganismConfig(layers=2, heads=2, head_width=12, ffn=24, vae_base=8),
    vae=VaeRecipe(
        phases=(
            Phase("vae", (Stage(3, {"maze:4": 1.0}, 3e-3),)),
            Phase("decoder", (Stage(2, {"maze:4": 1.0}, 1e-3),), decoder_only=True),
        ),
        batch=4,
        warmup=1,
    ),
    # Every batch is used twice and a stage ends in the middle of a pair: resuming at step 3 must find the same half.
    denoiser=DenoiserRecipe(
        stages=(Stage(3, {"maze:4": 1.0}), Stage(4, {"maze:4": 0.5, "maze:5": 0.5})),
        batch=4,
        reuse=2,
        warmup=2,
        check_every=3,
        check_count=2,
    ),
)


class Interrupted(RuntimeError):
    """Somebody pulled the plug."""


def interrupt_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, step: int) -> None:
    """Make a method that takes a step fail at one."""
    original: Callable[..., Any] = getattr(owner, name)

    def method(self: Any, now: int, *rest: Any) -> Any:
        if now == step:
            raise Interrupted
        return original(self, now, *rest)

    monkeypatch.setattr(owner, name, method)


def same(one: State, two: State) -> bool:
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def checkpoint(folder: Path, name: str = "denoiser") -> Any:
    return unpacked(folder / f"{name}.ckpt")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> AutoencoderKLWan:
    return train_vae(MICRO, tmp_path_factory.mktemp("vae")).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def trained(vae: AutoencoderKLWan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State, Any]:
    """Folder, averaged weights and pipeline of a training that ran through."""
    folder = tmp_path_factory.mktemp("whole")
    pipeline = train_denoiser(MICRO, vae, folder)
    return folder, pipeline.transformer.state_dict(), pipeline


def test_an_interrupted_training_goes_on_to_the_same_bits(
    vae: AutoencoderKLWan, trained: tuple[Path, State, Any], tmp_path: Path
) -> None:
    folder, weights, _ = trained
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_at(monkeypatch, Trainer, "advance", 5)
        with pytest.raises(Interrupted):
            train_denoiser(MICRO, vae, tmp_path)
    assert checkpoint(tmp_path)["step"] == 3
    torch.manual_seed(1234)
    resumed = train_denoiser(MICRO, vae, tmp_path).transformer.state_dict()
    assert same(resumed, weights)
    one, two = (checkpoint(place)["parts"] for place in (tmp_path, folder))
    assert same(one["model"], two["model"])
    assert [r["step"] for r in checkpoint(tmp_path)["log"]] == [3, 6, 7]


def test_training_is_a_function_of_its_seed(
    vae: AutoencoderKLWan, trained: tuple[Path, State, Any], tmp_path: Path
) -> None:
    _, weights, _ = trained
    torch.manual_seed(99)
    again, other = (
        train_denoiser(replace(MICRO, seed=seed), vae, tmp_path / str(seed)).transformer.state_dict() for seed in (0, 1)
    )
    assert same(again, weights)
    assert not same(other, weights)


def test_a_finished_training_is_not_done_again(
    vae: AutoencoderKLWan, trained: tuple[Path, State, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, weights, _ = trained
    for step in range(7):
        interrupt_at(monkeypatch, Trainer, "advance", step)
    assert same(train_denoiser(MICRO, vae, folder).transformer.state_dict(), weights)


def test_the_log_is_kept_as_json_with_loss_time_and_solve_rate(trained: tuple[Path, State, Any]) -> None:
    folder, _, _ = trained
    log = json.loads((folder / "denoiser.json").read_text())
    assert [row["step"] for row in log] == [3, 6, 7]
    for row in log:
        assert set(row) >= {"step", "loss", "seconds", "maze:4 solved", "maze:4 score"}
        assert 0 < row["loss"] < 100
        assert 0 <= row["maze:4 solved"] <= row["maze:4 score"] <= 1
    assert "maze:5 solved" not in log[0]
    assert "maze:5 solved" in log[-1]
    assert sorted(p.name for p in folder.iterdir()) == ["denoiser.ckpt", "denoiser.json", "writer.lock"]


def test_training_ends_with_the_averaged_weights(trained: tuple[Path, State, Any]) -> None:
    folder, weights, _ = trained
    parts = checkpoint(folder)["parts"]
    averages = {name.removeprefix("transformer."): average for name, average in parts["ema"].items()}
    assert all(torch.equal(weights[name], average) for name, average in averages.items())
    assert not same({n: parts["model"][n] for n in parts["ema"]}, parts["ema"])


def test_measuring_the_solve_rate_leaves_the_weights_in_training_as_they_were(
    vae: AutoencoderKLWan, trained: tuple[Path, State, Any]
) -> None:
    pipeline = trained[2]
    trainer = Trainer(MICRO, pipeline, trained[0])
    with torch.no_grad():
        pipeline.transformer.blocks[0].ffn.net[2].bias.add_(1)
    before = {n: p.clone() for n, p in pipeline.transformer.state_dict().items()}
    assert 0 <= trainer.solve_rates(0)["maze:4 score"] <= 1
    assert same(pipeline.transformer.state_dict(), before)
    trainer.load_average()


def test_an_interrupted_training_of_the_autoencoder_goes_on_to_the_same_bits(
    vae: AutoencoderKLWan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("dit_lens.organisms.training.vae._normalise", lambda *_: (_ for _ in ()).throw(Interrupted()))
        with pytest.raises(Interrupted):
            train_vae(MICRO, tmp_path)
        (tmp_path / "decoder.ckpt").unlink()
    resumed = train_vae(MICRO, tmp_path)
    assert same(resumed.state_dict(), vae.state_dict())
    assert resumed.config.latents_mean == vae.config.latents_mean
    assert resumed.config.latents_std == vae.config.latents_std != [1.0] * 8


def test_the_latents_are_normalised_by_their_own_mean_and_deviation(vae: AutoencoderKLWan) -> None:
    video = batch_of({"maze:4": 1.0}, 16, seed=3)
    latents = vae.encode(video).latent_dist.mean.transpose(0, 1).flatten(1)
    normed = (latents - torch.tensor(vae.config.latents_mean)[:, None]) / torch.tensor(vae.config.latents_std)[:, None]
    assert normed.mean(dim=1).abs().max() < 0.3
    assert (normed.std(dim=1) - 1).abs().max() < 0.3


def test_decoding_without_the_clamp_is_the_autoencoders_own_decoding_before_it(vae: AutoencoderKLWan) -> None:
    latents = 3 * torch.randn(2, 8, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw, stock = decode_unclamped(vae, latents), vae.decode(latents).sample
    torch.testing.assert_close(raw.clamp(-1, 1), stock, rtol=0, atol=1e-6)


def test_a_saved_organism_is_the_pipeline_in_half_precision(trained: tuple[Path, State, Any], tmp_path: Path) -> None:
    _, _, pipeline = trained
    weights = pipeline.transformer.state_dict()
    save_organism(pipeline, MICRO.config, tmp_path / "micro", num_inference_steps=4)
    assert same(pipeline.transformer.state_dict(), weights), "saving changed what was saved"
    loaded = load_organism(folder=tmp_path / "micro")
    for name, tensor in loaded.pipeline.transformer.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, weights[name].half().float()), name
    assert loaded.defaults["num_inference_steps"] == 4
    assert loaded.pipeline.vae.config.latents_std == pipeline.vae.config.latents_std


# -- data --------------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_step_and_stream() -> None:
    mix = {"maze:4": 0.5, "permanence:4": 0.5}
    one = batch_of(mix, 4, seed=0, step=5)
    assert one.shape == (4, 3, 9, 32, 32)
    assert one.abs().max() <= 1
    assert torch.equal(one, batch_of(mix, 4, seed=0, step=5))
    others: list[dict[str, int]] = [
        {"seed": 1, "step": 5, "stream": 0},
        {"seed": 0, "step": 6, "stream": 0},
        {"seed": 0, "step": 5, "stream": 1},
    ]
    assert not any(torch.equal(one, batch_of(mix, 4, **other)) for other in others)


def test_kinds_of_video_are_drawn_by_their_shares() -> None:
    widths = [batch_of({"maze:4": 0.75, "maze:6": 0.25}, 1, step=step).shape[-1] for step in range(60)]
    assert set(widths) == {32, 48}
    assert 0.55 < np.mean([width == 32 for width in widths]) < 0.9


def test_a_batch_of_several_parts_holds_several_tasks_each_with_its_prompts() -> None:
    stage = Stage(1, {"permanence:4": 0.5, "sort:4": 0.5}, parts=8)
    videos = draw(stage, 16, 9, seed=0, step=0, stream=0)
    first = {prompt.split()[0] for prompt in videos.prompts}
    assert videos.pixels.shape[0] == len(videos.prompts) == 16
    assert first == {"the", "sort"}


@pytest.mark.parametrize("name", ["chess:4", "maze", "two-goal sort:4", "glyphs:"])
def test_unknown_kinds_of_video_are_refused_or_take_their_default_size(name: str) -> None:
    if name == "maze":
        assert source(name, 9).size == 5
        return
    with pytest.raises((TaskError, ValueError)):
        source(name, 9)


def batch_of(mix: dict[str, float], count: int, seed: int = 0, step: int = 0, stream: int = 0) -> Tensor:
    return to_tensor(draw(Stage(1, mix), count, 9, seed, step, stream).pixels)


def test_the_condition_is_the_first_frame_and_then_gray() -> None:
    video = torch.randn(2, 3, 9, 4, 4)
    condition = still_then_gray(video)
    assert torch.equal(condition[:, :, 0], video[:, :, 0])
    assert not condition[:, :, 1:].any()


# -- loop --------------------------------------------------------------------------------------------------------------


def test_a_loop_resumes_at_its_last_checkpoint_whole(tmp_path: Path) -> None:
    def loop(fail_at: int | None) -> list[int]:
        part, done = nn.Linear(1, 1), []

        def advance(step: int) -> float:
            if step == fail_at:
                raise Interrupted
            done.append(step)
            return float(step)

        Loop("toy", tmp_path, total=7, parts={"part": part}, recipe="toy", every=3).run(advance)
        return done

    with pytest.raises(Interrupted):
        loop(fail_at=5)
    assert loop(fail_at=None) == [3, 4, 5, 6]
    assert loop(fail_at=None) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.ckpt", "toy.json", "writer.lock"]
    assert [row["step"] for row in json.loads((tmp_path / "toy.json").read_text())] == [3, 6, 7]


def test_a_checkpoint_of_another_recipe_seed_or_start_is_refused_and_left(
    vae: AutoencoderKLWan, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_at(monkeypatch, Trainer, "advance", 5)
        with pytest.raises(Interrupted):
            train_denoiser(MICRO, vae, tmp_path)
    before = (tmp_path / "denoiser.ckpt").read_bytes()
    other_vae = copy.deepcopy(vae)
    next(other_vae.parameters()).data.add_(0.1)
    recipes = (
        (replace(MICRO, seed=1), vae),
        (replace(MICRO, denoiser=replace(MICRO.denoiser, drop_prompt=0.1)), vae),
        (replace(MICRO, denoiser=replace(MICRO.denoiser, stages=(Stage(7, {"maze:4": 1.0}),))), vae),
        (MICRO, other_vae),
    )
    for preset, start in recipes:
        with pytest.raises(InputError, match=r"denoiser\.ckpt is of recipe .*; train in another folder, or remove"):
            train_denoiser(preset, start, tmp_path)
    assert (tmp_path / "denoiser.ckpt").read_bytes() == before
    train_denoiser(MICRO, vae, tmp_path)
    assert checkpoint(tmp_path)["step"] == 7
    (tmp_path / "vae.ckpt").write_bytes(before)
    with pytest.raises(InputError, match=r"vae\.ckpt is of recipe"):
        train_vae(MICRO, tmp_path)


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_a_checkpoint_that_was_cut_short_is_refused_by_name(tmp_path: Path, left: int) -> None:
    def loop() -> Loop:
        return Loop("toy", tmp_path, total=4, parts={"part": nn.Linear(3, 3)}, recipe="toy", every=2)

    loop().run(float)
    path = tmp_path / "toy.ckpt"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(StoreError, match=r"toy\.ckpt is damaged or no checkpoint .*; remove it to train anew"):
        loop().run(float)


@given(st.data())
@settings(max_examples=40)
def test_no_bit_of_a_checkpoint_can_be_changed_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("bits")
    loop = Loop("toy", folder, total=2, parts={"part": nn.Linear(3, 3)}, recipe="toy", every=2)
    loop.run(float)
    content = bytearray(loop.checkpoint.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    loop.checkpoint.write_bytes(content)
    with pytest.raises(StoreError, match=r"toy\.ckpt is damaged or no checkpoint"):
        Loop("toy", folder, total=2, parts={"part": nn.Linear(3, 3)}, recipe="toy").run(float)


#: Trains without end and keeps a checkpoint at every step; both halves of the state tell the step.
TRAINER = """
import sys, torch
from pathlib import Path
from torch import nn
from dit_lens.organisms.training.loop import Loop
part = nn.Linear(200, 200)
def advance(step):
    with torch.no_grad():
        part.weight.fill_(step + 1)
    return float(step)
Loop("toy", Path(sys.argv[1]), total=10**9, parts={"part": part}, recipe="toy", every=1).run(advance)
"""


def test_a_killed_training_leaves_a_whole_checkpoint_and_one_at_a_time_trains(tmp_path: Path) -> None:
    chance, steps = random.Random(0), [0]
    for _ in range(3):
        trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(tmp_path)], stderr=subprocess.DEVNULL)
        path = tmp_path / "toy.ckpt"
        while trainer.poll() is None and (not path.exists() or checkpoint(tmp_path, "toy")["step"] == steps[-1]):
            time.sleep(0.02)
        time.sleep(chance.uniform(0.02, 0.3))
        with pytest.raises(StoreError, match=f"process {trainer.pid} on .* is writing to this folder"):
            Loop("toy", tmp_path, total=1, parts={}, recipe="toy").run(float)
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
        state = checkpoint(tmp_path, "toy")
        assert (state["parts"]["part"]["weight"] == state["step"]).all()
        assert state["step"] > steps[-1]
        steps.append(state["step"])


def test_a_step_belongs_to_its_stage() -> None:
    stages = (Stage(2, {"maze:4": 1.0}), Stage(3, {"maze:5": 1.0}))
    assert total_steps(stages) == 5
    assert [next(iter(stage_at(stages, step).mix)) for step in range(7)] == ["maze:4"] * 2 + ["maze:5"] * 5


@pytest.mark.parametrize(
    "preset", [p for presets in PRESETS.values() for p in presets.values()],
    ids=[f"{name}-{kind}" for name, presets in PRESETS.items() for kind in presets],
)  # fmt: skip
def test_presets_train_on_pictures_that_the_pipeline_takes(preset: Preset) -> None:
    phases = () if isinstance(preset.vae, str) else preset.vae.phases
    for stages in (*(phase.stages for phase in phases), preset.denoiser.stages):
        assert all(sum(stage.mix.values()) == pytest.approx(1) for stage in stages)
        for stage in stages:
            sides = {
                draw(replace(stage, mix={kind: 1.0}, parts=1), 1, 9, 0, 0, 0).pixels.shape[2:4] for kind in stage.mix
            }
            assert all(side % 16 == 0 for shape in sides for side in shape)
            assert stage.parts == 1 or len(sides) == 1


# -- prompts and frames ------------------------------------------------------------------------------------------------


WORDY = replace(
    MICRO,
    config=replace(MICRO.config, frame_local_vae=True),
    denoiser=replace(
        MICRO.denoiser, stages=(Stage(4, {"permanence:4": 0.5, "two-goal maze:4": 0.5}, parts=2),), drop_prompt=0.5,
        train_text=True, keep=(2, 4),
    ),
)  # fmt: skip


def test_the_text_encoder_is_trained_averaged_kept_and_saved(tmp_path: Path) -> None:
    vae = build_vae(WORDY.config).eval().requires_grad_(False)
    pipeline = train_denoiser(WORDY, vae, tmp_path)
    averaged = checkpoint(tmp_path)["parts"]["ema"]
    words = "text_encoder.shared.weight"
    assert torch.equal(pipeline.text_encoder.shared.weight, averaged[words])
    torch.manual_seed(derive(WORDY.seed, "transformer"))
    fresh = build_text_encoder(WORDY.config.text_width, words=WORDY.config.words)
    assert not torch.equal(pipeline.text_encoder.shared.weight, fresh.shared.weight)
    kept = load_file(tmp_path / "step-00004.safetensors")
    assert kept.keys() == averaged.keys()
    assert all(torch.equal(values, averaged[name].half()) for name, values in kept.items())
    assert (tmp_path / "step-00002.safetensors").exists()


def test_dropped_prompts_are_empty_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = build_vae(WORDY.config).eval().requires_grad_(False)
    config = WORDY.config
    torch.manual_seed(0)
    pipeline = build_pipeline(config, vae, build_transformer(config), build_text_encoder(config.text_width))
    asked: list[str] = []
    trainer = Trainer(replace(WORDY, denoiser=replace(WORDY.denoiser, batch=64)), pipeline, tmp_path)
    original = trainer._text
    monkeypatch.setattr(trainer, "_text", lambda prompts: (asked.extend(prompts), original(prompts))[1])
    trainer.advance(0)
    assert 0.3 < np.mean([prompt == "" for prompt in asked]) < 0.7
    text = original(["", "sort the bars up", ""])
    stock = pipeline.encode_prompt(["sort the bars up"], do_classifier_free_guidance=False, max_sequence_length=16)[0]
    assert torch.equal(text[0], text[2])
    torch.testing.assert_close(text[1], stock[0], rtol=0, atol=1e-6)


def test_an_autoencoder_that_mixes_no_frames_mixes_none_and_its_condition_is_what_the_pipeline_encodes() -> None:
    vae = build_vae(OrganismConfig(vae_base=8, frame_local_vae=True)).eval()
    video = batch_of({"permanence:4": 1.0}, 2)
    other = video.clone()
    other[:, :, 3:5] = -other[:, :, 3:5]
    with torch.no_grad():
        one, two = encode(vae, video), encode(vae, other)
        same_frames = [f for f in range(5) if torch.equal(one[:, :, f], two[:, :, f])]
        assert same_frames == [0, 1, 3, 4]
        decoded = [vae.decode(z).sample for z in (one, torch.cat([one[:, :, :2], two[:, :, 2:3], one[:, :, 3:]], 2))]
        same_pixels = [t for t in range(9) if torch.equal(decoded[0][:, :, t], decoded[1][:, :, t])]
        assert same_pixels == [0, 1, 2, 5, 6, 7, 8]
        short = encode_condition(vae, video, one, frame_local=True)
        torch.testing.assert_close(short, encode(vae, still_then_gray(video)), rtol=0, atol=1e-6)
        assert torch.equal(short[0, :, 1:], short[1, :, 1:])


def test_training_keeps_the_frames_of_an_autoencoder_apart(tmp_path: Path) -> None:
    assert isinstance(MICRO.vae, VaeRecipe)
    vae = train_vae(replace(WORDY, vae=MICRO.vae), tmp_path)
    before = {name: p.clone() for name, p in vae.named_parameters()}
    separate_frames(vae)
    assert all(torch.equal(p, before[name]) for name, p in vae.named_parameters())


# -- optimiser ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one_and_keep_their_directions(
    shape: tuple[int, int, int],
) -> None:
    left, _ = torch.linalg.qr(
        torch.randn(shape[0], shape[1], min(shape[1:]), generator=torch.Generator().manual_seed(0))
    )
    right, _ = torch.linalg.qr(
        torch.randn(shape[0], shape[2], min(shape[1:]), generator=torch.Generator().manual_seed(1))
    )
    spread = torch.linspace(0.2, 5, min(shape[1:]))
    matrices = left * spread @ right.mT
    result = orthogonalise(matrices)
    assert result.shape == shape
    values = torch.linalg.svdvals(result)
    # Five iterations of these coefficients bring singular values into this band and not to one exactly.
    assert values.min() > 0.6
    assert values.max() < 1.3
    turned = left.mT @ result @ right
    assert (turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3
    assert (turned.diagonal(dim1=1, dim2=2) > 0.6).all()
    torch.testing.assert_close(orthogonalise(7 * matrices), result, rtol=1e-3, atol=1e-3)


def test_muon_moves_every_direction_of_a_matrix_alike() -> None:
    parameter = nn.Parameter(torch.zeros(8, 8))
    parameter.grad = torch.diag(torch.linspace(0.2, 5, 8))
    Muon([parameter], lr=0.1, decay=0.0).step()
    moved = -parameter.detach() / (0.1 * 0.2 * 8**0.5)
    assert (moved.diagonal() - 1).abs().max() < 0.4
    assert (moved - torch.diag(moved.diagonal())).abs().max() < 1e-4


def test_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    module = nn.ModuleDict({"a": nn.Linear(4, 4), "out": nn.Linear(4, 4), "c": nn.Conv3d(2, 4, 3)})
    optimiser = MuonAdamW(module, 0.1, keep_adamw=("out",))
    names = {id(p): n for n, p in module.named_parameters()}
    groups = {k: {names[id(p)] for g in o.param_groups for p in g["params"]} for k, o in optimiser.optimisers.items()}
    assert groups == {"muon": {"a.weight", "c.weight"}, "adamw": {"a.bias", "c.bias", "out.weight", "out.bias"}}


def test_a_step_of_the_optimiser_lowers_a_loss_and_clears_the_gradients() -> None:
    torch.manual_seed(0)
    module, inputs = nn.Linear(6, 3), torch.randn(64, 6)
    target = inputs @ torch.randn(6, 3)
    optimiser, losses = MuonAdamW(module, 0.1), []
    for _ in range(150):
        loss = (module(inputs) - target).square().mean()
        loss.backward()
        optimiser.step(0.1)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_average_warms_up_and_then_follows_slowly() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.0)
    ema = Ema(module, decay=0.9)
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema.update(module, step=0)
    assert float(ema.values["weight"]) == pytest.approx(1 - 1 / 10)
    ema.values["weight"].zero_()
    ema.update(module, step=10_000)
    assert float(ema.values["weight"]) == pytest.approx(0.1)


def test_the_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    rates = [learning_rate_at(step, total=100, peak=2.0, warmup=10, decay=0.3) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:70] == [2.0] * 61
    assert rates[70:] == pytest.approx([2.0 * (100 - step) / 30 for step in range(70, 100)])
