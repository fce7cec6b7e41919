"""`VideoDiT`: a diffusers video pipeline whose inside can be addressed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from torch import Tensor, nn

from dit_lens.architectures import architecture_of
from dit_lens.bridge import Tree
from dit_lens.dispatch import Body, Dispatcher, Planned
from dit_lens.errors import InputError, SiteError, UnsupportedModel
from dit_lens.flow import clean_estimate
from dit_lens.inputs import Inputs, check_size, gather, split_rows
from dit_lens.interventions.base import Intervention, check
from dit_lens.run import Replay, Row, Run
from dit_lens.sites import READ_ONLY, Geometry, Sites


class VideoDiT:
    """A video diffusion transformer inside its stock diffusers pipeline.

    Parameters
    ----------
    model : str, Path or DiffusionPipeline
        Hub id or folder of a diffusers pipeline, or a pipeline that is in memory. The pipeline is used as it is: while
        no run is active nothing of dit_lens stands in it.
    defaults : mapping, optional
        Arguments of the pipeline that `run` passes unless told otherwise, such as ``num_inference_steps``.
    **from_pretrained
        Passed to ``DiffusionPipeline.from_pretrained``.

    Raises
    ------
    UnsupportedModel
        The pipeline is no video diffusion transformer of a known family.

    Attributes
    ----------
    pipeline : DiffusionPipeline
    architecture : Architecture
    layers : int
        Blocks L on the one layer axis.
    """

    def __init__(
        self,
        model: str | Path | DiffusionPipeline,
        *,
        defaults: Mapping[str, Any] | None = None,
        **from_pretrained: Any,
    ) -> None:
        if isinstance(model, str | Path):
            model = DiffusionPipeline.from_pretrained(str(model), **from_pretrained)
        elif not isinstance(model, DiffusionPipeline):
            raise UnsupportedModel(f"expected a hub id, a folder or a diffusers pipeline, got {type(model).__name__}")
        self.pipeline: Any = model
        self.architecture = architecture_of(model)
        self.defaults = dict(defaults or {})
        second = getattr(model, "transformer_2", None)
        self.experts: dict[str | None, Any] = {None: model.transformer}
        if second is not None:
            self.experts = {"high_noise": model.transformer, "low_noise": second}
        self.layers = len(self.architecture.blocks(model.transformer))

    def __repr__(self) -> str:
        name = type(self.pipeline).__name__
        return f"VideoDiT({name}, family={self.architecture.family}, layers={self.layers}, id={self.id})"

    @cached_property
    def _trees(self) -> dict[str | None, Tree]:
        return {name: Tree(module) for name, module in self.experts.items()}

    @cached_property
    def id(self) -> str:
        """Hash of the transformers' configuration and of a sample of their weights."""
        digest = hashlib.sha256()
        for module in self.experts.values():
            # Private entries say where and by which version it was loaded, not what it is.
            config = {k: v for k, v in module.config.items() if not k.startswith("_")}
            digest.update(json.dumps(config, sort_keys=True, default=str).encode())
            for parameter in module.parameters():
                digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    @torch.no_grad()
    def run(
        self,
        inputs: Any,
        seed: int | Sequence[int] = 0,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        interventions: Sequence[Intervention] = (),
        body: Body | None = None,
        decode: bool = True,
        record: bool = False,
        stop_after: int | None = None,
        **pipeline_arguments: Any,
    ) -> Run:
        """Generate with interventions.

        Parameters
        ----------
        inputs : task instance, prompt, mapping with "prompt" (and "image"), or a list of them
        seed : int or one per row
            One input and K seeds make K rows. A seed's noise is drawn on the CPU.
        steps : int, optional
            Denoising steps S.
        guidance_scale : float, optional
            Above 1, the run has a branch "uncond" besides "cond".
        interventions : list of Intervention
            At one site they apply in the order of the list; across sites the model's execution order rules.
        body : callable (call, dit), optional
            Plain nnsight code, run inside the trace of every denoiser call with ``dit`` the transformer's envoy.
        decode : bool
            Whether to decode the final latents to frames.
        record : bool
            Keep every call's arguments and every step's state, for `replay`.
        stop_after : int, optional
            Leave the loop after this step; nothing is decoded.
        **pipeline_arguments
            Passed to the pipeline (``height``, ``width``, ``num_frames``, ``negative_prompt`` ...).

        Raises
        ------
        SiteError, DonorError, InputError
            Before the run, naming the valid values.
        DidNotFire, NotFinite
            As soon as it is known, naming the sites visited.
        """
        started = time.perf_counter()
        gathered = gather(inputs, seed)
        settings = self._settings(gathered, steps, guidance_scale, pipeline_arguments)
        geometry = self._geometry(settings)
        if stop_after is not None and not 0 <= stop_after < geometry.steps:
            raise InputError(f"stop_after={stop_after}: this run has steps 0..{geometry.steps - 1}")
        dispatcher = Dispatcher(
            self.pipeline, self.architecture, self._trees, geometry, gathered.rows,
            self._plan(interventions, geometry, gathered.rows),
            self._guidance(settings), body, record, stop_after,
        )  # fmt: skip
        decode = decode and stop_after is None
        output = self._generate(dispatcher, gathered, settings, decode)
        dispatcher.require_fired()
        recorder = dispatcher.recorder
        recorder.ledger.seconds = time.perf_counter() - started
        return Run(
            id=self._run_id(gathered, settings, interventions),
            rows=gathered.rows,
            frames=(output * 255).round().astype(np.uint8) if decode else None,
            latents=cast(Tensor, dispatcher.latents),
            sigmas=tuple(float(s) for s in self.pipeline.scheduler.sigmas),
            geometry=geometry,
            guidance_scale=settings["guidance_scale"],
            captures=recorder.captures,
            calls=tuple(recorder.calls),
            states=tuple(recorder.states),
            ledger=recorder.ledger,
        )

    @torch.no_grad()
    def replay(self, run: Run, step: int, interventions: Sequence[Intervention] = ()) -> Replay:
        """Do one denoising step of a recorded run again, alone, with other interventions.

        Without interventions the velocities are the run's, bit for bit.

        Raises
        ------
        InputError
            The run was not made with ``record=True``, or has no such step.
        """
        calls = [c for c in run.calls if c.step == step]
        if not calls or not calls[0].kwargs:
            raise InputError(f"step {step} was not recorded; run with record=True, steps 0..{run.geometry.steps - 1}")
        plan = self._plan(interventions, run.geometry, run.rows)
        dispatcher = Dispatcher(None, self.architecture, self._trees, run.geometry, run.rows, plan)
        velocities, conditioning, started = {}, {}, time.perf_counter()
        for call in calls:
            module: Any = self.experts[call.expert]
            with _output_of(module.get_submodule(self.architecture.conditioning)) as outputs:
                velocities[call.branch] = dispatcher.run_call(call, module.forward, call.args, call.kwargs)[0]
            conditioning[call.branch] = outputs[-1]
        dispatcher.require_fired()
        dispatcher.recorder.ledger.seconds = time.perf_counter() - started
        guided = self.architecture.guide(velocities, calls[0].guidance_scale)
        x0hat = clean_estimate(self.pipeline.scheduler, run.states[step], guided, calls[0].sigma)
        captures, ledger = dispatcher.recorder.captures, dispatcher.recorder.ledger
        return Replay(step, velocities, guided, x0hat, conditioning, captures, ledger)

    @torch.no_grad()
    def decode(self, latents: Tensor, batch: int = 32) -> NDArray[np.uint8]:
        """Frames of sampler latents (B, C, F, H, W), as the pipeline decodes them: uint8 (B, T, height, width, 3)."""
        frames = []
        for part in latents.split(batch):
            decoded = self.pipeline.vae.decode(self.architecture.denormalise(self.pipeline, part), return_dict=False)[0]
            pixels = self.pipeline.video_processor.postprocess_video(decoded, output_type="np")
            frames.append((pixels * 255).round().astype(np.uint8))
        return np.concatenate(frames)

    def geometry(
        self, inputs: Any = None, *, steps: int | None = None, guidance_scale: float | None = None
    ) -> Geometry:
        """What a run with these settings would offer to be addressed."""
        gathered = gather(inputs, 0) if inputs is not None else Inputs((), [], None, {})
        return self._geometry(self._settings(gathered, steps, guidance_scale, {}))

    def _settings(
        self, inputs: Inputs, steps: int | None, guidance_scale: float | None, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        """All pipeline arguments: the pipeline's own defaults, the model's, the inputs', the call's."""
        signature = inspect.signature(type(self.pipeline).__call__).parameters
        names = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")
        settings = {n: signature[n].default for n in names if n in signature} | self.defaults
        if inputs.images is not None:
            settings |= {"height": inputs.images[0].height, "width": inputs.images[0].width}
        settings |= dict(inputs.options) | dict(arguments)
        given = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
        settings |= {k: v for k, v in given.items() if v is not None}
        self._check_settings(settings, inputs, set(signature))
        return settings

    def _check_settings(self, settings: Mapping[str, Any], inputs: Inputs, known: set[str]) -> None:
        if unknown := set(settings) - known:
            raise InputError(f"{type(self.pipeline).__name__} takes no {', '.join(sorted(unknown))}")
        steps = settings["num_inference_steps"]
        if not isinstance(steps, int) or steps < 1:
            raise InputError(f"steps={steps!r}: need a whole number of at least 1")
        check_size(self.pipeline, settings["height"], settings["width"], settings["num_frames"])
        takes_image = "image" in known
        if takes_image != (inputs.images is not None) and inputs.rows:
            wants = "needs an image" if takes_image else "takes no image"
            raise InputError(f"{type(self.pipeline).__name__} {wants}")
        sizes = {image.size for image in inputs.images or []}
        if len(sizes) > 1:
            raise InputError(f"images of one run must share a size, got {sorted(sizes)}")

    def _geometry(self, settings: Mapping[str, Any]) -> Geometry:
        pipeline, transformer = self.pipeline, self.pipeline.transformer
        latent = (
            transformer.config.out_channels,
            (settings["num_frames"] - 1) // pipeline.vae_scale_factor_temporal + 1,
            settings["height"] // pipeline.vae_scale_factor_spatial,
            settings["width"] // pipeline.vae_scale_factor_spatial,
        )
        branches = self.architecture.branches(pipeline, settings["guidance_scale"])
        grid = self.architecture.grid(transformer, latent)
        tokens = (*grid, self.architecture.width(transformer))
        shapes = dict.fromkeys(("latents", "velocity", "guided"), latent)
        shapes |= dict.fromkeys(("embed", "delta", "resid"), tokens)
        shapes["model_input"] = (transformer.config.in_channels, *latent[1:])
        return Geometry(settings["num_inference_steps"], self.layers, branches, grid, shapes=shapes)

    def _guidance(self, settings: Mapping[str, Any]) -> dict[str | None, float]:
        """Guidance scale of each expert; the second may have its own."""
        first, second = settings["guidance_scale"], settings.get("guidance_scale_2")
        return {name: second if name == "low_noise" and second is not None else first for name in self.experts}

    def _plan(self, interventions: Sequence[Intervention], geometry: Geometry, rows: tuple[Row, ...]) -> list[Planned]:
        """Resolve every intervention's sites and let it refuse what cannot work."""
        plan = []
        for intervention in interventions:
            if not isinstance(getattr(intervention, "sites", None), Sites) or not callable(intervention):
                raise InputError(f"{intervention!r} is no intervention: it needs `sites` and a call (activation, at)")
            sites = intervention.sites.resolve(geometry)
            edited = [s for s in sites if s.component in READ_ONLY]
            if edited and not getattr(intervention, "reads_only", False):
                raise SiteError(f"{edited[0].component} is read only; edit velocity, or latents of the next step")
            check(intervention, sites, geometry, rows)
            plan.append(Planned(intervention, sites))
        return plan

    def _generate(self, dispatcher: Dispatcher, inputs: Inputs, settings: Mapping[str, Any], decode: bool) -> Any:
        """Drive the stock pipeline under the dispatcher; everything is taken out again whatever happens."""
        pipeline = self.pipeline
        prepare = pipeline.prepare_latents
        with _borrowed(pipeline, "prepare_latents", "_progress_bar_config"), dispatcher.active():
            pipeline.set_progress_bar_config(disable=True)
            pipeline.prepare_latents = dispatcher.prepared(split_rows(prepare))
            return pipeline(
                prompt=inputs.prompts, generator=inputs.generators(), output_type="np" if decode else "latent",
                callback_on_step_end=dispatcher.on_step_end, callback_on_step_end_tensor_inputs=["latents"],
                return_dict=False, **inputs.image_argument(), **settings,
            )[0]  # fmt: skip

    def _run_id(self, inputs: Inputs, settings: Mapping[str, Any], interventions: Sequence[Intervention]) -> str:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "nnsight")}
        content = [
            self.id,
            repr(inputs.rows),
            [f"{name}={describe(value)}" for name, value in sorted(settings.items())],
            [describe(i) for i in interventions],
            versions,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def describe(value: Any) -> str:
    """A short text that is the same for the same intervention: runs by their id, tensors by a hash of their bytes."""
    if isinstance(value, Run):
        return f"run:{value.id}"
    if isinstance(value, Tensor):
        return f"tensor:{hashlib.sha256(value.detach().float().cpu().numpy().tobytes()).hexdigest()[:12]}"
    if isinstance(value, Sites):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = ", ".join(f"{f.name}={describe(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__name__}({parts})"
    return getattr(value, "__qualname__", repr(value))


@contextmanager
def _borrowed(thing: Any, *names: str) -> Iterator[None]:
    """Put instance attributes back as they were, or absent, when the block ends."""
    before = {name: thing.__dict__[name] for name in names if name in thing.__dict__}
    try:
        yield
    finally:
        for name in names:
            thing.__dict__.pop(name, None)
        thing.__dict__.update(before)


@contextmanager
def _output_of(module: nn.Module) -> Iterator[list[Any]]:
    """Collect a module's outputs while the block runs."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
