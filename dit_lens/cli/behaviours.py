"""``dit-lens behaviours``: working memory, perception before action, self-correction and multi-path, with intervals."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from dit_lens.cli.common import Commands, Printed, common_options, load, tasks_of

if TYPE_CHECKING:
    from dit_lens.tasks import BoardTask


def add_commands(commands: Commands) -> None:
    behaviours = commands.add_parser(
        "behaviours", parents=[common_options()], help="measure memory, order, self-correction and multi-path"
    )
    behaviours.add_argument(
        "--model",
        default="puzzles",
        help="organism of the package, random:NAME for random weights, or an organism's folder",
    )
    behaviours.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="such as permanence or maze:5; by default those of the organism"
    )
    behaviours.set_defaults(command=_behaviours)


def _behaviours(options: argparse.Namespace) -> Printed:
    from dit_lens.analysis.behaviours import BehaviourConfig, survey

    started = time.perf_counter()
    config = BehaviourConfig.quick() if options.quick else BehaviourConfig()
    found = survey(load(options.model), _tasks(options), replace(config, seed=options.seed))
    seconds = time.perf_counter() - started
    return f"{found}\n\nin {seconds:.0f} s", found.to_json() | {"model": options.model, "seconds": seconds}


def _tasks(options: argparse.Namespace) -> list[BoardTask]:
    """The tasks that were asked for; by default each of the organism's that lists its candidates, at its first size."""
    from dit_lens.tasks import declares, task_named

    if options.tasks:
        return [task_named(name) for name in options.tasks]
    tasks = tasks_of(options.model)
    first = {task.title: task for task in reversed(tasks) if declares(task, "alive")}
    return [task for task in tasks if first.get(task.title) is task]
