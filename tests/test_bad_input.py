"""What cannot work is refused with an error of this package that names what would, and leaves nothing behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DModel,
)
from PIL import Image

import dit_lens as dl
from dit_lens.errors import DidNotFire, DonorError, InputError, NotFinite, SiteError, UnsupportedModel
from dit_lens.organisms.build import OrganismConfig, random_pipeline
from tests.subjects import STEPS, Edit, Subject, capture, forward_hooks, leftovers, subject_of

S = dl.Sites


@dataclass(frozen=True)
class Case:
    """A run that must be refused, and what the message must name."""

    error: type[dl.DitLensError]
    names: str
    arguments: Callable[[Subject], dict[str, Any]]
    before: bool = True
    """Whether no denoiser call may have happened by then."""


def see(**select: Any) -> Callable[[Subject], dict[str, Any]]:
    return lambda subject: {"interventions": [dl.Capture(S(**select))]}


def edit(function: Callable[..., Any], **select: Any) -> Callable[[Subject], dict[str, Any]]:
    return lambda subject: {"interventions": [Edit(S(**select), function)]}


def patch(donor: Callable[[Subject], Any], rows: Any = None, **select: Any) -> Callable[[Subject], dict[str, Any]]:
    return lambda subject: {"interventions": [dl.Patch(donor(subject), S(**select), rows=rows)]}


def give(**arguments: Any) -> Callable[[Subject], dict[str, Any]]:
    return lambda subject: arguments


def donor_of(*components: str, rows: int = 1, **arguments: Any) -> Callable[[Subject], dl.Run]:
    def make(subject: Subject) -> dl.Run:
        settings = {
            "num_inference_steps": STEPS,
            "guidance_scale": 1.0,
            "decode": False,
            "interventions": [capture(*components)],
        }
        return subject.model.run(subject.inputs[1], list(range(rows)), **settings | arguments)

    return make


def renamed_donor(subject: Subject) -> dl.Run:
    named = dl.Capture(S("delta"), name="mine")
    return subject.run(1, interventions=[named])


def large_donor(subject: Subject) -> dl.Run:
    maze = dl.tasks.Maze(size=6).sample(1)[0]
    return subject.model.run(
        maze, num_inference_steps=STEPS, guidance_scale=1.0, decode=False, interventions=[capture("delta")]
    )


def wide_donor(subject: Subject) -> dl.Run:
    """A run with the same sites and grid whose residual stream is of another width."""
    model = dl.VideoDiT(random_pipeline(OrganismConfig(layers=4, heads=2)), defaults=subject.model.defaults)
    settings = {
        "num_inference_steps": STEPS,
        "guidance_scale": 1.0,
        "decode": False,
        "interventions": [capture("delta")],
    }
    return model.run(subject.inputs[0], **settings)


def recorded(subject: Subject, **select: Any) -> dl.Run:
    """A record of the run that these calls make, with the residual stream captured where it is asked for."""
    captures = [dl.Capture(S("resid", **select))] if select else []
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "decode": False}
    return subject.model.run(subject.inputs[0], record=True, interventions=captures, **settings)


def shaped(*shape: int) -> Callable[[Subject], torch.Tensor]:
    return lambda subject: torch.zeros(shape)


def nan(x: torch.Tensor, at: dl.At) -> torch.Tensor:
    return torch.full_like(x, float("nan"))


def smaller(x: torch.Tensor, at: dl.At) -> torch.Tensor:
    return x[:, :1]


def number(x: torch.Tensor, at: dl.At) -> Any:
    return 0.5


def unchanged(x: torch.Tensor, at: dl.At) -> torch.Tensor:
    return x


CASES: dict[str, Case] = {
    # Sites
    "layer": Case(SiteError, r"no layer 4; .*layers 0\.\.3", see(layers=4)),
    "negative layer": Case(SiteError, r"no layer -5; .*layers 0\.\.3", see(layers=-5)),
    "step": Case(SiteError, r"no step 3; .*steps 0\.\.2", see(steps=3)),
    "branch of an unguided run": Case(SiteError, r"'uncond'.*has cond .*guidance_scale", see(branches="uncond")),
    "branch": Case(SiteError, "'stg'; this run has cond", see(branches="stg")),
    "stream": Case(SiteError, "'text'; this model has video", see(stream="text")),
    "latent frame": Case(SiteError, r"no latent frame 5; .*0\.\.4", see(tokens=dl.Tokens(frames=5))),
    "tokens": Case(SiteError, r"columns 0\.\.3", see(tokens=dl.Tokens(columns=(0, 9)))),
    "component": Case(SiteError, r"layer 0 \(single\) has no bias .* modulation, attn, cross_attn, ffn, delta, resid",
                      see(component="bias")),
    "head": Case(SiteError, r"no head 4; .*heads 0\.\.3", see(component="head", heads=4)),
    "mask": Case(SiteError, r"mask of shape \(2, 2\) does not fit the grid \(5, 4, 4\)",
                 see(tokens=dl.Tokens(mask=np.ones((2, 2), dtype=bool)))),
    "box of pixels": Case(SiteError, r"\(0, 0, 33, 32\).*leaves 32 x 32 pixels",
                          see(tokens=dl.Tokens(box=(0, 0, 33, 32)))),
    "pixel frames": Case(SiteError, r"9:10 do not fit; the video has frames 0\.\.8",
                         see(tokens=dl.Tokens(pixel_frames=(9, 10)))),
    "positions of video": Case(SiteError, "positions=0 select in a text stream", see(tokens=dl.Tokens(positions=0))),
    "edit of guided": Case(SiteError, "read only", edit(unchanged, component="guided")),
    "patch of guided": Case(SiteError, "read only", patch(donor_of("guided"), component="guided")),
    "one bad among good": Case(SiteError, r"layers 0\.\.3", see(component=("latents", "delta"), layers=[0, 7])),
    # Donors
    "donor without the site": Case(DonorError, r"s00/cond/L00/delta.*there are s00/cond/L00/resid",
                                   patch(donor_of("resid"), component="delta")),
    "donor of another name": Case(DonorError, "whole and unnamed", patch(renamed_donor, component="delta")),
    "donor of fewer steps": Case(DonorError, "s02/cond/L00/delta",
                                 patch(donor_of("delta", num_inference_steps=2), component="delta")),
    "donor of no uncond": Case(DonorError, "uncond", lambda s: {
        "interventions": [dl.Patch(donor_of("delta")(s), S("delta"))], "guidance_scale": 2.0}),
    "donor of another grid": Case(DonorError, r"\(5, 6, 6\).*\(5, 4, 4\)", patch(large_donor, component="delta")),
    "donor of another width": Case(DonorError, "64.*128", patch(wide_donor, component="delta")),
    "donor of two rows": Case(DonorError, "2 rows.*1", patch(donor_of("delta", rows=2), component="delta")),
    "donor rows, too many": Case(DonorError, "2 donor rows for 1", patch(donor_of("delta"), (0, 0), component="delta")),
    "donor row that is not there": Case(DonorError, r"rows 0\.\.0", patch(donor_of("delta"), (1,), component="delta")),
    "donor tensor of another shape": Case(DonorError, r"\(1, 5, 4, 4, 7\)", patch(shaped(1, 5, 4, 4, 7))),
    "donor tensor of no shape": Case(DonorError, r"\(\)", patch(shaped())),
    "donor of another kind": Case(DonorError, "Run, a Replay or a tensor.*list", patch(lambda s: [1.0])),
    # What interventions return
    "wrong shape": Case(DonorError, r"Edit.*\(1, 1, 4, 4, 128\) at s00/cond/L00/resid.*\(1, 5, 4, 4, 128\)",
                        edit(smaller), before=False),
    "wrong shape of latents": Case(DonorError, r"s00/-/-/latents", edit(smaller, component="latents")),
    "not a tensor": Case(DonorError, r"Edit.*float.*s00/cond/L00/resid", edit(number), before=False),
    "NaN in a block": Case(NotFinite, r"s01/cond/L02/delta.*visited so far: s01/cond/L02/delta",
                           edit(nan, component="delta", steps=1, layers=2), before=False),
    "NaN in the state": Case(NotFinite, r"s00/-/-/latents", edit(nan, component="latents")),
    "one capture twice": Case(InputError, r"s00/cond/L00/resid.*twice.*''", lambda s: {
        "interventions": [dl.Capture(S(layers=0)), dl.Capture(S("resid"))]}, before=False),
    "no intervention": Case(InputError, "sites.*call", give(interventions=["Capture"])),
    "a class and no intervention": Case(InputError, "sites.*call", give(interventions=[dl.Capture])),
    # Merges
    "merge of one row": Case(InputError, "1 rows", give(interventions=[dl.Merge(S("delta"), group=3)])),
    "merge of groups of one": Case(InputError, "two or more", give(interventions=[dl.Merge(S("delta"), group=1)])),
    "merge into no row": Case(InputError, r"'all'.*0\.\.1", lambda s: {
        "seed": [1, 2], "interventions": [dl.Merge(S("delta"), group=2, receiver=2)]}),
    "merge of two instances": Case(InputError, "2 instances", lambda s: {
        "inputs": list(s.inputs), "interventions": [dl.Merge(S("delta"), group=2)]}),
    # Settings
    "height": Case(InputError, "height=40.*16.*(32|48)", give(height=40)),
    "width": Case(InputError, "width=30.*16.*nearest valid value is 32", give(width=30)),
    "no height": Case(InputError, "height=0.*nearest valid value is 16", give(height=0)),
    "frames": Case(InputError, "num_frames=8.*nearest valid value is (5|9)", give(num_frames=8)),
    "no frames": Case(InputError, "num_frames=0.*nearest valid value is 1", give(num_frames=0)),
    "steps": Case(InputError, "steps=0.*at least 1", give(num_inference_steps=0)),
    "a selection of steps": Case(InputError, "takes no steps; the number of denoising steps is num_inference_steps",
                                 give(steps=[0, 1])),
    "half a step": Case(InputError, "steps=1.5.*whole", give(num_inference_steps=1.5)),
    "frames that are none": Case(InputError, "num_frames='5' is not", give(num_frames="5")),
    "height that is none": Case(InputError, "height=32.0 is not a multiple", give(height=32.0)),
    "guidance that is none": Case(InputError, "guidance_scale='high': need a finite number",
                                  give(guidance_scale="high")),
    "infinite guidance": Case(InputError, "guidance_scale=inf.*finite", give(guidance_scale=float("inf"))),
    "a step that is true": Case(InputError, "steps=True.*whole", give(num_inference_steps=True)),
    "stop where": Case(InputError, r"stop_after='soon'.*'last site'.*0\.\.2", give(stop_after="soon")),
    "stop at no site": Case(InputError, "no interventions, so it has no last site", give(stop_after="last site")),
    "stop before the start": Case(InputError, r"stop_after=-1.*0\.\.2", give(stop_after=-1)),
    # Resuming
    "resume of no record": Case(InputError, "step 0 was not recorded.*record=True",
                                lambda s: {"resume": dl.Resume(s.run(), 1), "seed": 5}),
    "resume of other rows": Case(InputError, "the record has rows.*seed=5.*seed=6",
                                 lambda s: {"resume": dl.Resume(s.run(record=True), 1), "seed": 6}),
    "resume of other settings": Case(InputError, "num_inference_steps=3, this 4",
                                     lambda s: {"resume": dl.Resume(recorded(s), 1), "num_inference_steps": 4}),
    "resume of another model": Case(InputError, "the record is of model", lambda s: {
        "resume": dl.Resume(subject_of("shipped").run(record=True), 1)}),
    "resume at no step": Case(InputError, r"step 3, layer 0: this run has steps 0\.\.2, layers 0\.\.3",
                              lambda s: {"resume": dl.Resume(recorded(s), 3)}),
    "resume at no layer": Case(InputError, r"layer 4: this run has .*layers 0\.\.3",
                               lambda s: {"resume": dl.Resume(recorded(s), 1, 4)}),
    "resume at a layer that was not captured": Case(InputError, "no capture of s01/cond/L01/resid",
                                                    lambda s: {"resume": dl.Resume(recorded(s), 1, 2)}),
    "a site before the resumed step": Case(SiteError, "s00/cond/L00/resid.*lies before step 1, layer 0", lambda s: {
        "resume": dl.Resume(recorded(s), 1), "interventions": [dl.Capture(S("resid"))]}),
    "a site before the resumed layer": Case(SiteError, "s01/cond/L00/resid.*lies before step 1, layer 1", lambda s: {
        "resume": dl.Resume(recorded(s, layers=0), 1, 1), "interventions": [dl.Capture(S("resid", steps=1))]}),
    "stop after no step": Case(InputError, r"stop_after=3.*0\.\.2", give(stop_after=3)),
    "a pipeline argument": Case(InputError, "WanImageToVideoPipeline takes no speed", give(speed=2)),
    # Inputs
    "no inputs": Case(InputError, "no inputs", give(inputs=[])),
    "a number": Case(InputError, "int.*prompt", give(inputs=[3])),
    "no prompt": Case(InputError, "prompt", give(inputs={"image": None})),
    "no image": Case(InputError, "needs an image", give(inputs="draw the path")),
    "an image that is none": Case(InputError, "PIL image.*str", give(inputs={"prompt": "draw", "image": "maze.png"})),
    "an image in some": Case(InputError, "every input", lambda s: {"inputs": [s.inputs[0], "draw"]}),
    "images of two sizes": Case(InputError, r"\(32, 32\), \(48, 48\)", lambda s: {
        "inputs": [s.inputs[0], {"prompt": "draw", "image": Image.new("RGB", (48, 48))}]}),
    "options that differ": Case(InputError, "every option", lambda s: {
        "inputs": [s.inputs[0], {**s.inputs[1], "num_frames": 5}]}),
    "an option that is none": Case(InputError, "takes no colour", lambda s: {
        "inputs": {**s.inputs[0], "colour": "red"}}),
    "seeds": Case(InputError, "3 seeds for 2 inputs", lambda s: {"inputs": list(s.inputs), "seed": [1, 2, 3]}),
    "no seeds": Case(InputError, "0 seeds", give(seed=[])),
    "a negative seed": Case(InputError, "negative.*-1", give(seed=-1)),
    "half a seed": Case(InputError, "seed.*0.5", give(seed=0.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_what_cannot_work_is_refused_by_name_and_leaves_nothing_behind(organism: Subject, name: str) -> None:
    case, calls = CASES[name], []
    settings = {"inputs": organism.inputs[0], "num_inference_steps": STEPS, "guidance_scale": 1.0, "decode": False}
    arguments = settings | case.arguments(organism)
    with forward_hooks(organism.pipeline.transformer, lambda *_: calls.append(1)), pytest.raises(case.error) as caught:
        organism.model.run(**arguments)
    # The message must name it: matched here so that a failure shows the whole of it.
    assert re.search(case.names, str(caught.value)), str(caught.value)
    assert leftovers(organism.pipeline) == []
    assert not (case.before and calls), "refused only after the long work had begun"


def test_errors_of_this_package_are_also_what_python_calls_them() -> None:
    kinds = {SiteError: ValueError, InputError: ValueError, DonorError: ValueError, UnsupportedModel: TypeError}
    assert all(issubclass(error, kind) and issubclass(error, dl.DitLensError) for error, kind in kinds.items())
    assert issubclass(NotFinite, ArithmeticError)
    assert issubclass(DidNotFire, SiteError)


def test_an_unknown_component_is_refused_when_it_is_named() -> None:
    known = r"latents, model_input, embed, context, modulation, mask, head, .*attn, cross_attn, .*ffn, .*delta, resid"
    with pytest.raises(SiteError, match=known):
        S("mlp")


@pytest.mark.parametrize("component", ["delta", "guided", "latents"])
def test_an_intervention_whose_sites_a_stopped_run_never_visits_did_not_fire(subject: Subject, component: str) -> None:
    late = dl.Capture(S(component, steps=2), name="late")
    with pytest.raises(DidNotFire, match=rf"{component}, step 2.*visited so far: s00/cond/L00/resid"):
        subject.run(stop_after=0, interventions=[capture("resid", steps=0), late])
    assert leftovers(subject.pipeline) == []


def test_an_intervention_at_another_step_did_not_fire_in_a_replay(subject: Subject) -> None:
    run = subject.run(record=True)
    with pytest.raises(DidNotFire, match=r"delta, step 0.*no site visited yet"):
        subject.model.replay(run, 1, [capture("delta", steps=0)])


def test_a_replay_of_what_was_not_recorded_is_refused(organism: Subject) -> None:
    with pytest.raises(InputError, match="record=True"):
        organism.model.replay(organism.run(), 0)
    with pytest.raises(InputError, match=r"steps 0\.\.2"):
        organism.model.replay(organism.run(record=True), 3)


GRADIENTS: dict[str, tuple[type[dl.DitLensError], str, dict[str, Any]]] = {
    "no scalar": (InputError, r"tensor of no shape, got \(1, 8, 5, 4, 4\)", {"metric": lambda r: r.x0hat}),
    "no tensor": (InputError, "tensor of no shape, got float", {"metric": lambda r: 1.0}),
    "no step": (InputError, r"step 3 was not recorded.*0\.\.2", {"step": 3}),
    "no layer": (SiteError, r"layers 0\.\.3", {"sites": S(layers=4)}),
    "guided": (SiteError, "read only", {"sites": S("guided")}),
}


@pytest.mark.parametrize("name", list(GRADIENTS))
def test_gradients_of_what_has_none_are_refused(organism: Subject, name: str) -> None:
    error, names, changes = GRADIENTS[name]
    run = organism.run(record=True)
    arguments: dict[str, Any] = {"step": 1, "metric": lambda r: r.x0hat.sum(), "sites": S("delta")}
    with pytest.raises(error, match=names):
        organism.model.gradients(run, **arguments | changes)
    assert leftovers(organism.pipeline) == []
    assert all(p.requires_grad for p in organism.pipeline.transformer.parameters())


def test_a_capture_that_was_not_made_is_refused_with_those_that_were(organism: Subject) -> None:
    run = organism.run(interventions=[capture("delta", steps=0, layers=1)])
    for read in (lambda: run["s00/cond/L02/delta/video"], lambda: run.stack("resid", step=0)):
        with pytest.raises(SiteError, match="s00/cond/L01/delta/video"):
            read()
    with pytest.raises(SiteError, match="no capture is named 'mine'"):
        run.captured("mine")


def test_text_to_video_takes_no_image(text_to_video: Subject) -> None:
    image = Image.fromarray(np.zeros((32, 64, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="WanPipeline takes no image"):
        text_to_video.model.run({"prompt": "blue", "image": image})


# -- models ------------------------------------------------------------------------------------------------------------


def image_pipeline() -> DDPMPipeline:
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    return DDPMPipeline(unet, DDIMScheduler())


def image_transformer_pipeline() -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8,
                                        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
                                        pooled_projection_dim=16, out_channels=4)  # fmt: skip
    rest = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    return StableDiffusion3Pipeline(transformer, FlowMatchEulerDiscreteScheduler(), **rest)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (image_pipeline, "DDPMPipeline has no transformer"),
        (image_transformer_pipeline, "SD3Transformer2DModel.*WanTransformer3DModel"),
        (object, "pipeline, got object"),
        (lambda: None, "pipeline, got NoneType"),
        (lambda: subject_of("organism").pipeline.transformer, "pipeline, got WanTransformer3DModel"),
    ],
)
def test_what_is_no_video_dit_pipeline_is_refused(make: Callable[[], Any], names: str) -> None:
    with pytest.raises(UnsupportedModel, match=names):
        dl.VideoDiT(make())
