"""`VideoDiT`: a diffusers video pipeline whose inside can be addressed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from dit_lens.checks import CheckReport
from dit_lens.compat import refuse_modes
from dit_lens.dispatch import Body, Dispatcher, velocities
from dit_lens.errors import InputError, SiteError, UnsupportedModel
from dit_lens.geometry import Geometry
from dit_lens.gradients import Gradients, Metric, Watch, derive, detached, frozen
from dit_lens.identity import model_id, run_id
from dit_lens.inputs import Inputs, gather, split_rows
from dit_lens.interventions.base import Intervention, check
from dit_lens.plan import Planned
from dit_lens.run import Call, Context, Replay, Resume, Row, Run
from dit_lens.settings import gather_settings, geometry_of, scales_of
from dit_lens.sites import READ_ONLY, Site, Sites
from dit_lens.walk import Enough

#: Attributes of the pipeline that a run replaces and gives back.
_BORROWED = ("prepare_latents", "encode_image", "_progress_bar_config")


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
    experts : dict from expert name (None in models of one) to transformer
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
        self.experts: dict[str | None, Any] = {None: self.pipeline.transformer}
        if second is not None:
            self.experts = {"high_noise": self.pipeline.transformer, "low_noise": second}
        self.layers = len(self.architecture.blocks(self.pipeline.transformer))

    def __repr__(self) -> str:
        name = type(self.pipeline).__name__
        return f"VideoDiT({name}, family={self.architecture.family}, layers={self.layers}, id={self.id})"

    @cached_property
    def _trees(self) -> dict[str | None, Tree]:
        return {name: Tree(module) for name, module in self.experts.items()}

    @cached_property
    def id(self) -> str:
        """Hash of the transformers' configuration and of a sample of their weights."""
        return model_id(self.experts.values())

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
        stop_after: int | str | None = None,
        resume: Resume | None = None,
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
            Above 1, the run has a branch "uncond" besides "cond" (in the families that guide so).
        interventions : list of Intervention
            At one site they apply in the order of the list; across sites the model's execution order rules.
        body : callable (call, dit), optional
            Plain nnsight code, run inside the trace of every denoiser call with ``dit`` the transformer's envoy. It
            sees what the interventions did.
        decode : bool
            Whether to decode the final latents to frames.
        record : bool
            Keep every call's arguments and output and every step's state, for `replay` and ``resume``.
        stop_after : int or "last site", optional
            Leave the loop after this step, or as soon as the last site of the interventions has been met: no later
            block or step is computed. Nothing is decoded.
        resume : Resume, optional
            Take the first steps, and at one step the first blocks, from an earlier run's record.
        **pipeline_arguments
            Passed to the pipeline (``height``, ``width``, ``num_frames``, ``negative_prompt`` ...).

        Raises
        ------
        SiteError, DonorError, InputError, UnsupportedModel
            Before the run, naming the valid values.
        DidNotFire, NotFinite
            As soon as it is known, naming the sites visited.
        """
        started = time.perf_counter()
        refuse_modes(self.experts.values())
        gathered = gather(inputs, seed)
        arguments = {"num_inference_steps": steps, "guidance_scale": guidance_scale} | pipeline_arguments
        settings = gather_settings(self.pipeline, self.architecture, self.defaults, gathered, arguments)
        geometry = geometry_of(self.pipeline, self.architecture, settings)
        context = Context(self.architecture, geometry, gathered.rows)
        context.finish = lambda state: self.architecture.finish(self.pipeline, state, context.prepared)
        plan = self._plan(interventions, geometry, gathered.rows)
        _check_stop(stop_after, geometry, plan)
        if resume is not None:
            resume.check(self.id, context, settings)
            _check_reached(resume, plan)
        dispatcher = Dispatcher(
            self.pipeline, context, self._trees, plan, self.architecture.calls(self.pipeline, settings),
            scales_of(self.pipeline, self.architecture, settings, self.experts), body, record, stop_after, resume,
        )  # fmt: skip
        decode = decode and stop_after is None
        frames = self._generate(dispatcher, gathered, settings, decode)
        dispatcher.require_fired()
        recorder = dispatcher.recorder
        recorder.ledger.seconds = time.perf_counter() - started
        assert context.schedule is not None
        return Run(
            id=run_id(self.id, gathered.rows, settings, [dispatcher.scales, *interventions, body]),
            model_id=self.id,
            rows=gathered.rows,
            frames=frames,
            latents=cast(Tensor, dispatcher.latents),
            schedule=context.schedule,
            geometry=geometry,
            settings=settings,
            captures=recorder.captures,
            calls=tuple(recorder.calls),
            states=tuple(recorder.states),
            ledger=recorder.ledger,
        )

    @torch.no_grad()
    def replay(self, run: Run, step: int, interventions: Sequence[Intervention] = (), *, from_layer: int = 0) -> Replay:
        """Do one denoising step of a recorded run again, alone, with other interventions.

        Without interventions the velocities are the run's, bit for bit.

        Parameters
        ----------
        run : Run made with ``record=True``
        step : int
        interventions : list of Intervention
        from_layer : int
            Answer the blocks before this one with the residual streams that the run captured after block
            ``from_layer - 1`` (see `Resume`).

        Raises
        ------
        InputError
            The run was not made with ``record=True``, or has no such step.
        """
        return self._replay(run, step, interventions, from_layer)

    def _replay(self, run: Run, step: int, interventions: Sequence[Intervention], from_layer: int) -> Replay:
        calls = run.recorded(step)
        refuse_modes(self.experts.values(), gradients=torch.is_grad_enabled())
        context: Context = calls[0].context
        plan = self._plan(interventions, run.geometry, run.rows)
        resume = Resume(run, step, from_layer) if from_layer else None
        if resume is not None:
            resume.check(self.id, context, run.settings)
            _check_reached(resume, plan, first=step)
        dispatcher = Dispatcher(None, context, self._trees, plan, resume=resume)
        predicted: dict[str, Tensor] = {}
        conditioning: dict[str, dict[str, Any]] = {}
        started = time.perf_counter()
        for call in calls:
            module: Any = self.experts[call.expert]
            with _outputs_of(module, self.architecture.conditioning) as outputs:
                output = dispatcher.run_call(call, module.forward, call.args, call.kwargs)
            predicted |= velocities(call, output)
            conditioning |= {b: _rows_of(outputs, call.rows(b), call) for b in call.branches}
        dispatcher.require_fired()
        dispatcher.recorder.ledger.seconds = time.perf_counter() - started
        guided = self.architecture.guide(predicted, calls[0].scales, run.states[step], calls[0].sigma)
        x0hat = context.clean(step, run.states[step], guided)
        captures, ledger = dispatcher.recorder.captures, dispatcher.recorder.ledger
        return Replay(step, predicted, guided, x0hat, conditioning, captures, ledger)

    def gradients(
        self,
        run: Run,
        step: int,
        metric: Metric,
        sites: Sites,
        interventions: Sequence[Intervention] = (),
        *,
        from_layer: int = 0,
    ) -> Gradients:
        """Derivative of a metric of one denoising step by the activations at some sites.

        The step is replayed alone with gradients switched on, every other with none: what attribution patching needs
        (Nanda 2023; Syed et al. 2023, arXiv 2310.10348).

        Parameters
        ----------
        run : Run made with ``record=True``
        step : int
        metric : callable (Replay) -> Tensor of no shape
            From its ``x0hat``, ``guided`` or ``velocities``.
        sites : Sites
            Activations by which to derive, after the interventions.
        interventions, from_layer
            As in `replay`.

        Raises
        ------
        InputError
            The step was not recorded, or the metric is no scalar.
        UnsupportedModel
            Gradient checkpointing is enabled.
        """
        watch = Watch(sites.at(steps=step))
        with torch.enable_grad(), frozen(self.experts.values()):
            replay = self._replay(run, step, [*interventions, watch], from_layer)
            value = metric(replay)
            if not isinstance(value, Tensor) or value.ndim:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f"gradients: the metric must give a tensor of no shape, got {shape}")
            found = derive(watch, value)
        return Gradients(value.detach(), watch.activations, found, detached(replay))

    @torch.no_grad()
    def decode(self, latents: Tensor, batch: int = 32) -> NDArray[np.uint8]:
        """Frames of sampler latents (B, C, F, H, W), as the pipeline decodes them: uint8 (B, T, height, width, 3)."""
        frames = []
        for part in latents.split(batch if self.architecture.decodes_batches else 1):
            decoded = self.architecture.decode(self.pipeline, part)
            pixels = self.pipeline.video_processor.postprocess_video(decoded, output_type="np")
            frames.append((pixels * 255).round().astype(np.uint8))
        return np.concatenate(frames)

    def geometry(
        self, inputs: Any = None, *, steps: int | None = None, guidance_scale: float | None = None, **arguments: Any
    ) -> Geometry:
        """What a run with these settings would offer to be addressed."""
        gathered = gather(inputs, 0) if inputs is not None else Inputs((), [], None, {})
        given = {"num_inference_steps": steps, "guidance_scale": guidance_scale} | arguments
        settings = gather_settings(self.pipeline, self.architecture, self.defaults, gathered, given)
        return geometry_of(self.pipeline, self.architecture, settings)

    def check(self, name: str = "", **settings: Any) -> CheckReport:
        """Check that this model does what its family's file says, on two rows of a small size, in seconds.

        Layer count and order, token grid, guidance branches, the sum rule, heads, identity patches, full swaps, the
        depth lens at the last layer, sigma and x0hat against the scheduler's own step, rows against single runs, and
        resuming. Real weights or random ones.

        Parameters
        ----------
        name : str
            For the report.
        **settings
            Arguments of the pipeline, such as ``height`` or ``guidance_scale``.

        Returns
        -------
        CheckReport
            Prints as a table; ``require()`` raises for the first check that does not hold.
        """
        from dit_lens.checks.check import check_model  # the checks are written against this class

        return check_model(self, name, **settings)

    def _plan(self, interventions: Sequence[Intervention], geometry: Geometry, rows: tuple[Row, ...]) -> list[Planned]:
        """Resolve every intervention's sites and let it refuse what cannot work."""
        plan = []
        for intervention in interventions:
            if not isinstance(getattr(intervention, "sites", None), Sites) or not callable(intervention):
                raise InputError(f"{intervention!r} is no intervention: it needs `sites` and a call (activation, at)")
            sites = intervention.sites.resolve(geometry)
            edited = [s for s in sites if s.component in READ_ONLY]
            if not getattr(intervention, "reads_only", False):
                if edited:
                    raise SiteError(f"{edited[0].component} is read only; edit velocity, or latents of the next step")
                _check_fixed(intervention.sites, sites, geometry)
            check(intervention, sites, geometry, rows)
            plan.append(Planned(intervention, sites))
        return plan

    def _generate(
        self, dispatcher: Dispatcher, inputs: Inputs, settings: Mapping[str, Any], decode: bool
    ) -> NDArray[np.uint8] | None:
        """Generate, and decode to frames where they are wanted."""
        whole = self.architecture.decodes_batches or len(inputs.rows) == 1
        output = self._drive(dispatcher, inputs, settings, decode and whole)
        if not decode:
            return None
        if not whole:
            return self.decode(cast(Tensor, dispatcher.latents))
        frames: NDArray[np.uint8] = (np.asarray(output) * 255).round().astype(np.uint8)
        return frames

    def _drive(self, dispatcher: Dispatcher, inputs: Inputs, settings: Mapping[str, Any], decode: bool) -> Any:
        """Call the stock pipeline under the dispatcher; everything is taken out again whatever happens."""
        pipeline = self.pipeline
        arguments = self.architecture.pipeline_arguments(dict(settings), len(inputs.rows))
        with _borrowed(pipeline, *_BORROWED), self._stepping(dispatcher) as callback:
            prepare = pipeline.prepare_latents
            pipeline.set_progress_bar_config(disable=True)
            pipeline.prepare_latents = dispatcher.prepared(split_rows(prepare))
            if inputs.several_images and hasattr(pipeline, "encode_image"):
                pipeline.encode_image = _encoding(pipeline.encode_image, inputs.images)
            try:
                with dispatcher.active():
                    return pipeline(
                        prompt=inputs.prompts, generator=inputs.generators(), return_dict=False,
                        output_type="np" if decode else "latent", **callback, **inputs.image_argument(), **arguments,
                    )[0]  # fmt: skip
            except Enough:
                return None
            finally:
                # What an early end leaves on the accelerator goes back as at the end of the pipeline.
                pipeline.maybe_free_model_hooks()

    @contextmanager
    def _stepping(self, dispatcher: Dispatcher) -> Iterator[dict[str, Any]]:
        """Let the dispatcher see the end of every step; yields what the pipeline must be called with."""
        if self.architecture.step_callback:
            yield {
                "callback_on_step_end": dispatcher.on_step_end,
                "callback_on_step_end_tensor_inputs": ["latents"],
            }
            return
        scheduler = self.pipeline.scheduler
        with _borrowed(scheduler, "step"):
            scheduler.step = dispatcher.stepped(scheduler.step)
            yield {}


def _check_fixed(selection: Sites, sites: Sequence[Site], geometry: Geometry) -> None:
    """Refuse an edit of frames of the state that the pipeline overwrites before the denoiser sees them."""
    site = next((s for s in sites if s.component == "latents"), None)
    if site is None or not geometry.fixed_frames:
        return
    frames, *_ = geometry.latent_grid
    cells = selection.tokens.resolve(geometry, component="latents").take(_frame_numbers(geometry), "latents")
    if overwritten := sorted(set(cells.flatten().tolist()) & set(geometry.fixed_frames)):
        free = [f for f in range(frames) if f not in geometry.fixed_frames]
        raise SiteError(
            f"{site}: the pipeline overwrites latent frames {overwritten} of the state at every step; choose among "
            f"tokens=Tokens(frames={free}), or edit model_input"
        )


def _frame_numbers(geometry: Geometry) -> Tensor:
    """The number of its frame in every cell of the latent grid: (1, 1, F, H, W)."""
    frames, rows, columns = geometry.latent_grid
    return torch.arange(frames).reshape(1, 1, frames, 1, 1).expand(1, 1, frames, rows, columns)


def _check_stop(stop_after: int | str | None, geometry: Geometry, plan: Sequence[Planned]) -> None:
    if stop_after is None:
        return
    if stop_after == "last site":
        if not plan:
            raise InputError("stop_after='last site': this run has no interventions, so it has no last site")
    elif not isinstance(stop_after, int) or isinstance(stop_after, bool) or not 0 <= stop_after < geometry.steps:
        raise InputError(
            f"stop_after={stop_after!r}: 'last site', or a step; this run has steps 0..{geometry.steps - 1}"
        )


def _check_reached(resume: Resume, plan: Sequence[Planned], first: int = 0) -> None:
    """Refuse sites from step ``first`` on that a resumed run does not compute."""
    for planned in plan:
        for site in planned.sites:
            skipped = (site.layer is not None and site.layer < resume.layer) or site.component == "embed"
            if first <= site.step < resume.step or (resume.layer and site.step == resume.step and skipped):
                raise SiteError(
                    f"{site} lies before step {resume.step}, layer {resume.layer}, from where this run resumes"
                )


def _encoding(encode: Callable[..., Any], images: Any) -> Callable[..., Any]:
    """``pipeline.encode_image`` given the pictures themselves: its preprocessing would scale a batch in [0, 1] again."""

    def encode_image(image: Any, *args: Any, **kwargs: Any) -> Any:
        return encode(images, *args, **kwargs)

    return encode_image


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
def _outputs_of(transformer: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Collect the outputs of some modules while the block runs; paths that a model lacks are left out."""
    outputs: dict[str, Any] = {}
    with ExitStack() as stack:
        for path in paths:
            module = _submodule(transformer, path)
            if module is not None:
                hook = _keeping(outputs, path)
                stack.callback(module.register_forward_hook(hook).remove)
        yield outputs


def _submodule(module: Any, path: str) -> nn.Module | None:
    for part in path.split("."):
        module = getattr(module, part, None)
    return module if isinstance(module, nn.Module) else None


def _keeping(outputs: dict[str, Any], path: str) -> Callable[..., None]:
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[path] = output

    return keep


def _rows_of(outputs: Any, rows: slice, call: Call) -> Any:
    """One branch's rows of everything in a nest of dicts and tuples; flattened batches have several entries a row."""
    if isinstance(outputs, dict):
        return {k: _rows_of(v, rows, call) for k, v in outputs.items()}
    if isinstance(outputs, tuple | list):
        return tuple(_rows_of(v, rows, call) for v in outputs)
    batch = len(call.context.rows) * len(call.branches)
    if not isinstance(outputs, Tensor) or not outputs.ndim or outputs.shape[0] % batch:
        return outputs
    each = outputs.shape[0] // batch
    return outputs[rows.start * each : rows.stop * each]
