"""``dit-lens tasks``: what the tasks are, what videos earn that cannot have solved them, and how they look."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_lens.cli.common import Commands, Printed, common_options

if TYPE_CHECKING:
    from dit_lens.tasks import BoardTask

#: Names of the videos that cannot have solved a task, as `dit_lens.tasks.floors.null_floors` gives them.
NULLS = ("frozen", "noise", "shuffled", "counterfactual")


def add_commands(commands: Commands) -> None:
    tasks = commands.add_parser("tasks", parents=[common_options()], help="list the tasks and draw a contact sheet")
    tasks.add_argument("--floors", action="store_true", help="also score true videos and others that solve nothing")
    tasks.add_argument("--count", type=int, default=100, help="instances of each task for the floors")
    tasks.add_argument("--out", type=Path, default=Path("tasks.png"), help="the contact sheet")
    tasks.set_defaults(command=_tasks)


def _tasks(options: argparse.Namespace) -> Printed:
    from dit_lens.files.atomic import write_atomic
    from dit_lens.results.page import png_bytes
    from dit_lens.tasks.sheet import plot_tasks

    count = min(options.count, 20) if options.quick else options.count
    tasks = listed_tasks()
    told = {name: task.describe() | {"name": name} for name, task in tasks.items()}
    if options.floors:
        told = {name: told[name] | _floors(task, count, options.seed) for name, task in tasks.items()}
    path = write_atomic(options.out, png_bytes(plot_tasks(tasks, options.seed)))
    rows = list(told.values())
    parts = [
        "\n\n".join(map(_text, rows)),
        *([_floors_table(rows, count)] if options.floors else []),
        f"drawn in {path}",
    ]
    return "\n\n".join(parts), {"tasks": rows, "sheet": str(path)}


def listed_tasks() -> dict[str, BoardTask]:
    """Every task at its default size, and the maze whose prompt names one of two goals."""
    from dit_lens.tasks import TASKS, task_named

    return {name: task_named(name) for name in TASKS} | {"two-goal maze": task_named("two-goal maze:4")}


def _floors(task: BoardTask, count: int, seed: int) -> dict[str, Any]:
    """Mean partial scores and strict success of true videos and of each null; of kinds of pairs, the highest."""
    best = task.floors(count, seed).groupby("video")[["total", "strict"]].max()
    found: dict[str, Any] = {"n": count}
    for column, prefix, name in (("total", "", "oracle"), ("strict", "strict_", "oracle_strict")):
        # A sum of weights that falls short of 1 in the last digit is still 1.
        scores = {video: round(float(score), 12) for video, score in best[column].items()}
        found |= {name: scores["truth"], f"{prefix}floors": {null: scores[null] for null in NULLS}}
    return found


def _text(task: dict[str, Any]) -> str:
    low, high = task["steps"]
    lines = {
        "prompt": task["prompt"],
        "rules": ", ".join(f"{rule} {weight:.2f}" for rule, weight in task["rules"].items()),
        "pairs": ", ".join(f"{kind} (changes {variable})" for kind, variable in task["kinds"].items()),
        "steps": f"{low}" if low == high else f"{low} to {high}",
    }
    head = f"{task['name']}, {task['size']} x {task['size']} cells: {task['summary']}"
    return "\n".join([head, *(f"  {name:<7} {line}" for name, line in lines.items())])


def _floors_table(tasks: list[dict[str, Any]], count: int) -> str:
    """Of each cell the mean partial score and, after the slash, the share that is strict."""
    lines = [f"{'':<14} {'truth':>12} " + " ".join(f"{null:>14}" for null in NULLS)]
    for task in tasks:
        cells = (f"{task['floors'][null]:.3f} / {task['strict_floors'][null]:.2f}" for null in NULLS)
        truth = f"{task['oracle']:.3f} / {task['oracle_strict']:.2f}"
        lines.append(f"{task['name']:<14} {truth:>12} " + " ".join(f"{cell:>14}" for cell in cells))
    return "\n".join([f"mean partial score / strict success, n = {count} videos each", *lines])
