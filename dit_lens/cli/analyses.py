"""``dit-lens localize`` and ``dit-lens steps``: look into a model that solves a task."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from dit_lens.cli.common import Commands, Printed, common_options, load, model_options, task_of


def add_commands(commands: Commands) -> None:
    common, model = common_options(), model_options()
    localize = commands.add_parser(
        "localize", parents=[common, model], help="say which layers perceive, reason, consolidate"
    )
    localize.add_argument("--out", type=Path, default=Path("localization"), help="folder for report, figures and table")
    localize.add_argument(
        "--permute", action="store_true", help="the null: labels and pairs permuted between instances"
    )
    localize.set_defaults(command=_localize)

    steps = commands.add_parser("steps", parents=[common, model], help="draw x0hat at every denoising step")
    steps.add_argument("--count", type=int, default=4, help="number of instances")
    steps.add_argument("--out", type=Path, default=Path("steps.png"))
    steps.set_defaults(command=_steps)


def _localize(options: argparse.Namespace) -> Printed:
    from dit_lens.analysis.localization.localize import localize
    from dit_lens.analysis.localization.result import LocalizeConfig

    started = time.perf_counter()
    config = LocalizeConfig.quick() if options.quick else LocalizeConfig()
    config = replace(config, seed=options.seed, permute=options.permute)
    result = localize(load(options.model), task_of(options), config)
    report = result.report(options.out / "localization.html")
    seconds = time.perf_counter() - started
    files = {"report": str(report), "table": str(report.with_suffix(".csv"))}
    text = f"{result}\n\n{report} and {report.with_suffix('.csv').name}, in {seconds:.0f} s"
    return text, result.to_json() | {"files": files, "seconds": seconds}


def _steps(options: argparse.Namespace) -> Printed:
    from dit_lens.files.atomic import write_atomic
    from dit_lens.lens.steps import step_lens
    from dit_lens.results.frames import plot_chain_of_steps
    from dit_lens.results.page import png_bytes
    from dit_lens.runs.seeds import row_seeds

    model, task = load(options.model), task_of(options)
    count = min(options.count, 2) if options.quick else options.count
    instances = task.sample(count, seed=options.seed)
    run = model.run(instances, row_seeds(options.seed, count), record=True)
    lens, strict = step_lens(model, run), task.score(run.decoded, instances).strict
    titles = [f"length {i.steps}\n{'solved' if ok else 'failed'}" for i, ok in zip(instances, strict, strict=True)]
    figure = plot_chain_of_steps(lens.decode(model), lens.sigmas, titles)
    path = write_atomic(options.out, png_bytes(figure))
    data = {
        "picture": str(path),
        "sigmas": list(lens.sigmas),
        "strict": strict.tolist(),
        "instances": [i.id for i in instances],
    }
    return f"{path}: {count} of {task.title}, {int(strict.sum())} solved, {len(lens.sigmas)} steps", data
