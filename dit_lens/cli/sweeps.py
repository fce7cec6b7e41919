"""``dit-lens sweep``: what patching each layer's update does, with what it costs."""

from __future__ import annotations

import argparse
from pathlib import Path

from dit_lens.cli.common import Commands, Printed, common_options, load, model_options, task_of


def add_commands(commands: Commands) -> None:
    sweep = commands.add_parser(
        "sweep",
        parents=[common_options(), model_options()],
        help="patch one layer after the other over the task's pairs",
        epilog="example: dit-lens sweep --model puzzles --task sort --metrics share donor_answer --folder sweep",
    )
    sweep.add_argument("--component", default="delta", help="what is patched of each layer; by default its update")
    sweep.add_argument("--step", type=int, default=0, help="the denoising step that is patched")
    sweep.add_argument("--metrics", nargs="+", default=["share", "distance"], metavar="METRIC")
    sweep.add_argument("--count", type=int, default=24, help="number of pairs")
    sweep.add_argument("--folder", type=Path, help="keep what is finished here; the same command then goes on")
    sweep.set_defaults(command=_sweep)


def _sweep(options: argparse.Namespace) -> Printed:
    from dit_lens.interventions.patch import Patch
    from dit_lens.sites.sites import Sites
    from dit_lens.sweeps.plan import plan_sweep
    from dit_lens.sweeps.sweep import carry_out

    count = min(options.count, 8) if options.quick else options.count
    patch = Patch("pair", Sites(options.component, steps=options.step))
    plan = plan_sweep(
        load(options.model),
        task_of(options),
        patch,
        {"layers": "each"},
        options.metrics,
        instances=count,
        seed=options.seed,
    )
    forecast = plan.forecast()
    found = carry_out(plan, folder=options.folder)
    data = found.to_json()
    data["plan"] |= {"seconds": forecast.seconds}
    return f"{plan.describe(forecast)}\n\n{found}\n\nin {found.seconds:.0f} s", data
