"""Driving the stock pipeline under a dispatcher: what a run borrows of it, and gives back whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from dit_lens.engine.dispatcher import Dispatcher
from dit_lens.engine.loan import BORROWED
from dit_lens.engine.sampler import Sampler
from dit_lens.engine.traversal import Enough
from dit_lens.runs.inputs import Inputs, split_rows


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
        torch.no_grad(),
        borrowed(pipeline, *BORROWED),
        dispatcher.sampler.active(),
        borrowed(pipeline.scheduler, *BORROWED),
    ):
        callback = _callback(pipeline, dispatcher)
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
        except Enough:
            return None


def _callback(pipeline: Any, dispatcher: Dispatcher) -> dict[str, Any]:
    """Let the dispatcher see the end of every step; returns what the pipeline must be called with."""
    if dispatcher.architecture.step_callback:
        return {"callback_on_step_end": dispatcher.on_step_end, "callback_on_step_end_tensor_inputs": ["latents"]}
    pipeline.scheduler.step = dispatcher.stepped(pipeline.scheduler.step)
    return {}


def _encoding(encode: Callable[..., Any], images: Any) -> Callable[..., Any]:
    """``pipeline.encode_image`` given the pictures themselves: it would scale a batch in [0, 1] once more."""

    def encode_image(image: Any, *args: Any, **kwargs: Any) -> Any:
        return encode(images, *args, **kwargs)

    return encode_image


def borrowed(thing: Any, *names: str) -> ExitStack:
    """Puts instance attributes back as they were, or absent, when the stack is closed."""
    before = {name: thing.__dict__[name] for name in names if name in thing.__dict__}

    def give_back() -> None:
        for name in names:
            thing.__dict__.pop(name, None)
        thing.__dict__.update(before)

    stack = ExitStack()
    stack.callback(give_back)
    return stack
