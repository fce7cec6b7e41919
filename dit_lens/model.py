"""`VideoDiT`: a diffusers video pipeline whose inside can be addressed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dit_lens.engine.dispatcher import Body, Dispatcher
from dit_lens.engine.envoys import Tree
from dit_lens.engine.gradients import Gradients, Metric, Watch, derive, detached, frozen, require_finite
from dit_lens.engine.loan import holding, on_loan
from dit_lens.engine.loop import ForBatch, for_batch, in_batches, require_batch
from dit_lens.engine.modes import refuse_modes
from dit_lens.engine.pipeline import drive
from dit_lens.engine.plan import check_reached, check_stop, edits_of, listed, make_plan, require_within
from dit_lens.engine.read_out import read_out
from dit_lens.engine.replaying import make_again
from dit_lens.engine.settings import gather_settings, geometry_of, scales_of
from dit_lens.engine.vae import decode, encode, to_bytes, video_shape
from dit_lens.errors import InputError, MadeForAnother, UnsupportedModel
from dit_lens.families.at_hand import bringing
from dit_lens.families.notices import without_notices
from dit_lens.families.registry import architecture_of
from dit_lens.files.video import Video
from dit_lens.interventions.base import Intervention
from dit_lens.runs.call import Call, Context
from dit_lens.runs.identity import model_id, of_latents, replay_id, run_id, setup_of
from dit_lens.runs.inputs import Inputs, gather, paired
from dit_lens.runs.replay import Replay, Resume, place
from dit_lens.runs.run import Run
from dit_lens.sites.geometry import Geometry
from dit_lens.sites.select import Select
from dit_lens.sites.sites import Sites


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
            with without_notices():
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

    @property
    def id(self) -> str:
        """Hash of the transformers' configuration, of a sample of their weights and of the adapters that are on.

        The sample meets every row and every column of every weight, and is read anew each time.
        """
        return model_id(self.experts.values())

    @property
    def setup(self) -> dict[str, str]:
        """What makes a run besides the transformers' weights: a hash of every other part of the pipeline, by name."""
        return setup_of(self.pipeline, self.experts.values())

    def full_id(self) -> str:
        """The same of every value of the weights: what changes with any of them, and takes as long as reading them."""
        return model_id(self.experts.values(), whole=True)

    def require_own(self, run: Run) -> str:
        """Return the model's own id.

        Raises
        ------
        InputError
            What is no run.
        MadeForAnother
            A run of other weights, adapters or another model.
        """
        if not isinstance(run, Run):
            raise InputError(f"expected a Run, as model.run makes it, got {type(run).__name__}")
        if run.model_id != (own_id := self.id):
            raise MadeForAnother(f"the run was made by model {run.model_id}, this is {own_id}")
        return own_id

    def run(
        self,
        inputs: Any,
        seed: int | Sequence[int] = 0,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        interventions: Iterable[Intervention] = (),
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
        num_inference_steps : int, optional
            Denoising steps S.
        guidance_scale : float, optional
            Above 1, the run has a branch "uncond" besides "cond" (in the families that guide so).
        interventions : iterable of Intervention
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
            Passed to the pipeline (``height``, ``width``, ``num_frames``, ``negative_prompt`` ...). ``latents``, the
            first state, has a row for each row of the run, in the layout of the pipeline.

        Raises
        ------
        SiteError, DonorError, InputError, UnsupportedModel
            Before the run, naming the valid values.
        DidNotFire, NotFinite
            As soon as it is known, naming the sites visited.
        PipelineBusy
            The pipeline is in a run or replay already: this one is made inside of it, or in another thread.
        """
        started, own_id, interventions = time.perf_counter(), self.id, listed(interventions)
        refuse_modes(self.experts.values(), pipeline=self.pipeline)
        gathered = gather(inputs, seed)
        whole_setup = self.setup
        setup = of_latents(whole_setup, pictures=gathered.images is not None)
        arguments = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale} | pipeline_arguments
        settings = gather_settings(self.pipeline, self.architecture, self.defaults, gathered, arguments)
        geometry = geometry_of(self.pipeline, self.architecture, settings)
        context = Context(self.architecture.family, geometry, gathered.rows)
        plan = make_plan(interventions, geometry, gathered.rows)
        check_stop(stop_after, geometry, plan)
        if resume is not None:
            if not isinstance(resume, Resume):
                raise InputError(f"resume needs a Resume, such as Resume(run, step=3), got {type(resume).__name__}")
            resume.check(own_id, setup, gathered.content, context, settings)
            check_reached(resume, plan)
        dispatcher = Dispatcher(
            pipeline=self.pipeline,
            architecture=self.architecture,
            context=context,
            trees=self._trees,
            plan=plan,
            calls=self.architecture.calls(self.pipeline, settings),
            scales=scales_of(self.pipeline, self.architecture, settings, self.experts),
            body=body,
            record=record,
            stop_after=stop_after,
            resume=resume,
        )
        own_name = run_id(
            own_id, whole_setup, gathered, settings, [dispatcher.scales, *interventions, body, stop_after, resume]
        )
        frames, ended = self._generate(dispatcher, gathered, settings, decode and stop_after is None)
        recorder = dispatcher.recorder
        recorder.ledger.seconds = time.perf_counter() - started
        assert context.schedule is not None
        return Run(
            id=own_name,
            model_id=own_id,
            setup=setup,
            inputs=gathered.given,
            rows=gathered.rows,
            content=gathered.content,
            frames=frames,
            latents=cast(Tensor, dispatcher.latents),
            family=context.family,
            schedule=context.schedule,
            geometry=geometry,
            settings=settings,
            captures=recorder.captures,
            calls=tuple(recorder.calls),
            states=tuple(recorder.states),
            prepared=recorder.prepared,
            ledger=recorder.ledger,
            fixed=context.fixed,
            edited=edits_of(plan, body, resume, geometry),
            ended=ended and (isinstance(stop_after, str | None) or stop_after == geometry.steps - 1),
            text_valid=recorder.text_valid,
        )

    def runs(
        self,
        inputs: Any,
        seed: int | Sequence[int] = 0,
        *,
        batch: int = 32,
        progress: str | None = "runs",
        interventions: Iterable[Intervention] | ForBatch = (),
        **run_arguments: Any,
    ) -> Iterator[Run]:
        """Generate from many inputs, ``batch`` rows at a time.

        A run's ``inputs`` are those of its rows. The pipeline is free for other runs until the next one is asked for; a
        run that is refused, as by `PipelineBusy`, is made when it is asked for again.

        Parameters
        ----------
        inputs
            As in `run`.
        seed : int or sequence of int
            A sequence has one seed per row; one input and K seeds make K rows. An int gives every input a seed of its
            own, drawn by numpy's ``SeedSequence``, and another int shares none of them.
        batch : int
            Rows that are run at once.
        progress : str or None
            Title of the progress bar, None for none.
        interventions : iterable of Intervention, or callable (inputs, seeds) -> iterable of Intervention
            The same for every run, or made for each from the inputs and seeds of its rows.
        **run_arguments
            As in `run`. Those with an entry for each row (``latents``, a list of ``negative_prompt`` ...) are of all
            rows, and each run is given its own.

        Raises
        ------
        InputError
            Before the first run: no inputs, numbers of inputs, seeds and entries that do not fit, or a batch below 1.
        """
        require_batch(batch)
        rows = paired(inputs, seed)
        return in_batches(self.run, rows, batch, progress, for_batch(interventions, len(rows), batch), run_arguments)

    def _generate(
        self, dispatcher: Dispatcher, inputs: Inputs, settings: Mapping[str, Any], decode: bool
    ) -> tuple[Video | None, bool]:
        """Drive the pipeline; the frames, where they are to be decoded, and whether it came back by itself."""
        at_once = self.architecture.decodes_batches or len(inputs.rows) == 1
        make = partial(drive, self.pipeline, dispatcher, inputs, settings, decode and at_once)
        output = on_loan(self.pipeline, self._trees.values(), make, sampling=True)
        dispatcher.require_fired()
        if not decode:
            return None, output is not None
        return to_bytes(np.asarray(output)) if at_once else self.decode(cast(Tensor, dispatcher.latents)), True

    def replay(self, run: Run, step: int, interventions: Iterable[Intervention] = (), *, from_layer: int = 0) -> Replay:
        """Do one denoising step of a recorded run again, alone, with other interventions.

        Without interventions the velocities are the run's, bit for bit, if none acted within its calls (`Run.edited`).
        Those that acted between its calls are in the recorded states.

        Parameters
        ----------
        run : Run made with ``record=True``
        step : int
        interventions : iterable of Intervention
        from_layer : int
            Answer the blocks before this one with the residual streams that the run captured after block
            ``from_layer - 1`` (see `Resume`).

        Raises
        ------
        InputError, MadeForAnother
            The run was not made with ``record=True``, has no such step, or is of another model.
        SiteError
            An intervention at ``latents`` or ``guided`` of this step, which lie between denoiser calls.
        """

        def work() -> Replay:
            with torch.no_grad():
                return self._replay(run, step, interventions, from_layer)

        return on_loan(self.pipeline, self._trees.values(), work)

    def _replay(self, run: Run, step: int, interventions: Iterable[Intervention], from_layer: int) -> Replay:
        own_id, step, from_layer = self.require_own(run), place("step", step), place("from_layer", from_layer)
        calls = run.recorded(step)
        refuse_modes(self.experts.values(), gradients=torch.is_grad_enabled(), pipeline=self.pipeline)
        context: Context = calls[0].context
        interventions = listed(interventions)
        plan = make_plan(interventions, run.geometry, run.rows)
        require_within(plan, [step])
        own_name = replay_id(run.id, step, interventions, from_layer)
        resume = Resume(run, step, from_layer) if from_layer else None
        if resume is not None:
            resume.check(run.model_id, run.setup, run.content, context, run.settings)
            check_reached(resume, plan, first=step)
        dispatcher = Dispatcher(None, self.architecture, context, self._trees, plan, resume=resume)
        for tree in self._trees.values():
            tree.refresh()
        device = self.pipeline._execution_device
        started = time.perf_counter()
        predicted, conditioning = make_again(dispatcher, calls, self.experts, device)
        dispatcher.require_fired()
        dispatcher.recorder.ledger.seconds = time.perf_counter() - started
        state, recorder = run.states[step].to(device), dispatcher.recorder
        guided = self.architecture.guide(predicted, calls[0].scales, state, calls[0].sigma)
        return Replay(
            id=own_name,
            model_id=own_id,
            rows=run.rows,
            geometry=run.geometry,
            step=step,
            velocities=predicted,
            guided=guided,
            x0hat=context.clean(step, state, guided),
            conditioning=conditioning,
            captures=recorder.captures,
            ledger=recorder.ledger,
            text_valid=recorder.text_valid,
        )

    def gradients(
        self,
        run: Run,
        step: int,
        metric: Metric,
        sites: Sites,
        interventions: Iterable[Intervention] = (),
        *,
        from_layer: int = 0,
    ) -> Gradients:
        """Derivative of a metric of one denoising step with respect to the activations at some sites.

        The step is replayed alone with gradients switched on, every other with none: what attribution patching needs
        (Nanda 2023; Syed et al. 2023, arXiv 2310.10348).

        Parameters
        ----------
        run : Run made with ``record=True``
        step : int
        metric : callable (Replay) -> Tensor of no shape
            From its ``x0hat``, ``guided`` or ``velocities``.
        sites : Sites
            Activations to differentiate with respect to, after the interventions.
        interventions, from_layer
            As in `replay`.

        Raises
        ------
        InputError, MadeForAnother
            The step was not recorded, the metric is no scalar, or another model made the run.
        NotFinite
            The metric or a derivative.
        UnsupportedModel
            Gradient checkpointing is enabled.
        """
        watch = Watch(sites.at(steps=step))

        def work() -> Gradients:
            with torch.enable_grad(), frozen(self.experts.values()):
                replay = self._replay(run, step, [*listed(interventions), watch], from_layer)
                value = metric(replay)
                found = derive(watch, value)
            require_finite(value, found)
            return Gradients(value.detach(), watch.activations, found, detached(replay))

        return on_loan(self.pipeline, self._trees.values(), work, parameters=True)

    def read_out(self, call: Call, residual: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
        """A residual stream (B, F, H, W, D) through this model's own output head: velocity (B, C, F, H, W).

        Parameters
        ----------
        call : Call
            The denoiser call that the residual is of.
        conditioning : mapping
            What the head needs besides, from `Replay.conditioning` of the residual's branch.

        Raises
        ------
        PipelineBusy
            The transformer is offloaded, and in a run or replay.
        """
        expert = self.experts[call.expert]
        work = partial(read_out, self.architecture, expert, call, residual, conditioning)
        return holding([expert], work) if bringing(expert) else work()

    @torch.no_grad()
    def decode(self, latents: Tensor, batch: int = 32, frames: Select = "all") -> Video:
        """Frames of sampler latents, as the pipeline decodes them: uint8 (B, T, height, width, 3).

        Parameters
        ----------
        latents : Tensor of shape (B, C, F, H, W)
        batch : int
            Videos that the VAE is given at once.
        frames : Select
            Return only these pixel frames, in order. Where the VAE's decoder is causal in time, no later latent frame
            is decoded than they need; other decoders must see the whole video. Fewer latent frames are another shape,
            for which other kernels may be chosen: the frames are those of the whole video to the rounding of the VAE's
            dtype, and now and then a pixel is rounded to the next of the 256 levels.

        Raises
        ------
        InputError
            Latents of another number of axes, or none.
        NotFinite
            NaN or infinity in the latents.
        SiteError
            A frame that the video does not have.
        """
        return decode(self.pipeline, self.architecture, latents, batch, frames)

    @torch.no_grad()
    def encode(self, frames: Video, batch: int = 32) -> Tensor:
        """Sampler latents (B, C, F, H, W) of videos: the mean of the VAE's posterior, scaled as `Run.latents`, float32.

        Parameters
        ----------
        frames : uint8 array of shape (B, T, height, width, 3)
        batch : int
            Videos that the VAE is given at once.

        Raises
        ------
        InputError
            Anything but uint8 videos, or a size that a run could not have; the message names the nearest valid value.
        UnsupportedModel
            A size that the family's VAE cannot do, with the reason.
        """
        _, time, height, width, _ = video_shape(frames)
        self.geometry(num_frames=time, height=height, width=width)  # refuses what a run would refuse
        return encode(self.pipeline, self.architecture, frames, batch)

    def geometry(
        self,
        inputs: Any = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        **arguments: Any,
    ) -> Geometry:
        """What a run with these settings would offer to be addressed."""
        gathered = gather(inputs, 0) if inputs is not None else Inputs((), (), [], None, {})
        given = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale} | arguments
        settings = gather_settings(self.pipeline, self.architecture, self.defaults, gathered, given)
        return geometry_of(self.pipeline, self.architecture, settings)
