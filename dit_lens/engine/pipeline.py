"""Driving the stock pipeline under a dispatcher: what a run borrows of it, and gives back whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dit_lens.engine.dispatcher import Dispatcher
from dit_lens.engine.sampler import Sampler
from dit_lens.engine.traversal import Enough
from dit_lens.runs.inputs import Inputs, split_rows

#: Attributes of the pipeline that a run replaces and gives back.
_BORROWED = ("prepare_latents", "encode_image", "_progress_bar_config")


def drive(pipeline: Any, dispatcher: Dispatcher, inputs: Inputs, settings: Mapping[str, Any], decode: bool) -> Any:
    """Call the pipeline; its first result, or None where the run ended early.

    Parameters
    ----------
    decode : bool
        Whether to let the pipeline decode its latents to frames in [0, 1].
    """
    arguments = dispatcher.architecture.pipeline_arguments(dict(settings), len(inputs.rows))
    generators = inputs.generators()
    dispatcher.sampler = Sampler(pipeline.scheduler, generators)
    with (
        borrowed(pipeline, *_BORROWED),
        dispatcher.sampler.active(),
        _stepping(pipeline, dispatcher) as callback,
    ):
        prepare = pipeline.prepare_latents
        pipeline.set_progress_bar_config(disable=True)
        pipeline.prepare_latents = dispatcher.prepared(
            split_rows(prepare, shared_image=dispatcher.architecture.shared_image)
        )
        if inputs.several_images and hasattr(pipeline, "encode_image"):
            pipeline.encode_image = _encoding(pipeline.encode_image, inputs.images)
        try:
            with dispatcher.active():
                return pipeline(
                    prompt=inputs.prompts,
                    generator=generators,
                    return_dict=False,
                    output_type="np" if decode else "latent",
                    **callback,
                    **inputs.image_argument(),
                    **arguments,
                )[0]
        except BaseException as error:
            # What an early end leaves on the accelerator goes back as at the end of the pipeline.
            pipeline.maybe_free_model_hooks()
            if isinstance(error, Enough):
                return None
            raise


@contextmanager
def _stepping(pipeline: Any, dispatcher: Dispatcher) -> Iterator[dict[str, Any]]:
    """Let the dispatcher see the end of every step; yields what the pipeline must be called with."""
    if dispatcher.architecture.step_callback:
        yield {"callback_on_step_end": dispatcher.on_step_end, "callback_on_step_end_tensor_inputs": ["latents"]}
        return
    scheduler = pipeline.scheduler
    with borrowed(scheduler, "step"):
        scheduler.step = dispatcher.stepped(scheduler.step)
        yield {}


def _encoding(encode: Callable[..., Any], images: Any) -> Callable[..., Any]:
    """``pipeline.encode_image`` given the pictures themselves: it would scale a batch in [0, 1] once more."""

    def encode_image(image: Any, *args: Any, **kwargs: Any) -> Any:
        return encode(images, *args, **kwargs)

    return encode_image


@contextmanager
def borrowed(thing: Any, *names: str) -> Iterator[None]:
    """Put instance attributes back as they were, or absent, when the block ends."""
    before = {name: thing.__dict__[name] for name in names if name in thing.__dict__}
    try:
        yield
    finally:
        for name in names:
            thing.__dict__.pop(name, None)
        thing.__dict__.update(before)
