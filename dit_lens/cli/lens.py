"""``dit-lens lens``: what every layer would answer at every step."""

from __future__ import annotations

import argparse
from pathlib import Path

from dit_lens.cli.common import Commands, Printed, common_options, load, model_options, task_of


def add_commands(commands: Commands) -> None:
    lens = commands.add_parser(
        "lens", parents=[common_options(), model_options()], help="draw what every layer would answer at every step"
    )
    lens.add_argument("--out", type=Path, default=Path("lens.png"))
    lens.set_defaults(command=_lens)


def _lens(options: argparse.Namespace) -> Printed:
    from dit_lens.files.atomic import write_atomic
    from dit_lens.lens.depth import depth_lens
    from dit_lens.results.frames import plot_layers_by_steps
    from dit_lens.results.page import png_bytes
    from dit_lens.sites.sites import Sites

    model, task = load(options.model), task_of(options)
    instance = task.sample(1, seed=options.seed)[0]
    run = model.run(instance, seed=options.seed, record=True)
    strict = bool(task.score(run.decoded, [instance]).strict[0])
    lens = depth_lens(model, run, sites=Sites(steps=slice(None, None, 3 if options.quick else 1)))
    reading, frames = lens.reading, lens.decode(model, frames=-1)[:, :, 0, 0].swapaxes(0, 1)
    sigmas = [run.sigmas[step] for step in reading.steps]
    what = f"{task.title} of length {instance.steps}, {'solved' if strict else 'failed'}"
    title = f"Depth lens: the last frame as each layer would answer it ({what})"
    figure = plot_layers_by_steps(frames, reading.layers, reading.steps, sigmas, title)
    path = write_atomic(options.out, png_bytes(figure))
    data = {
        "picture": str(path),
        "layers": list(reading.layers),
        "steps": list(reading.steps),
        "sigmas": sigmas,
        "strict": strict,
        "instance": instance.id,
    }
    return f"{path}: {len(frames)} layers x {len(sigmas)} steps of one {what}", data
