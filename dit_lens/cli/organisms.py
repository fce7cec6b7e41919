"""``dit-lens organism``: the small models that ship with the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dit_lens.cli.common import Commands, Printed, common_options, load, tasks_of

if TYPE_CHECKING:
    from dit_lens.tasks import BoardTask


def add_commands(commands: Commands) -> None:
    organism = commands.add_parser("organism", help="the small models that ship with the package")
    actions = organism.add_subparsers(required=True, metavar="action")
    evaluate = actions.add_parser("evaluate", parents=[common_options()], help="strict success on held-out instances")
    evaluate.add_argument("name", nargs="?", default="puzzles", help="an organism; by default puzzles")
    evaluate.add_argument("--count", type=int, default=300, help="instances of each task")
    which = evaluate.add_mutually_exclusive_group()
    which.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="such as maze:5 or move; by default those it was trained on"
    )
    which.add_argument("--sizes", type=int, nargs="+", metavar="N", help="short for --tasks maze:N ...")
    evaluate.add_argument("--prompts", action="store_true", help="also exchange prompts for their counterfactuals")
    evaluate.add_argument("--guidance", action="store_true", help="also compare guidance scales")
    evaluate.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> Printed:
    from dit_lens.analysis.guidance import compare_guidance
    from dit_lens.analysis.prompts import exchange_prompts, prompt_kinds
    from dit_lens.analysis.success import evaluate

    count = min(options.count, 40) if options.quick else options.count
    tasks, model = _tasks(options), load(options.name)
    found = evaluate(model, tasks, count, seed=options.seed)
    exchanged = [(task, kind) for task in tasks for kind in prompt_kinds(task)] if options.prompts else []
    prompts = [exchange_prompts(model, task, count, kind=kind, seed=options.seed) for task, kind in exchanged]
    compared = tasks if options.guidance else []
    guidance = [compare_guidance(model, task, count, seed=options.seed) for task in compared]
    data: dict[str, Any] = {"organism": options.name} | found.to_json()
    data |= {"prompts": [x.to_json() for x in prompts], "guidance": [x.to_json() for x in guidance]}
    return "\n".join(map(str, [found, *prompts, *guidance])), data | _sizes(tasks, data["tasks"])


def _tasks(options: argparse.Namespace) -> list[BoardTask]:
    """The tasks that were asked for, by default those of the organism."""
    from dit_lens.tasks import task_named

    if names := options.tasks or [f"maze:{size}" for size in options.sizes or ()]:
        return [task_named(name) for name in names]
    return tasks_of(options.name)


def _sizes(tasks: Sequence[BoardTask], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The key ``sizes`` of an evaluation of one task at several sizes, which says which of them is the default."""
    from dit_lens.tasks import task_named

    if len({task.title for task in tasks}) != 1:
        return {}
    default = task_named(tasks[0].title).size
    return {"sizes": [row | {"default": row["size"] == default, "by_path_length": row["by_steps"]} for row in rows]}
