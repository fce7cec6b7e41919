"""What the commands share. They import what they run when they run it, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from dit_lens.tasks import BoardTask

#: Where commands are added. The class is generic for type checkers only.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
#: The text that a command prints, and what it prints with ``--json``.
Printed: TypeAlias = tuple[str, dict[str, Any]]

RANDOM = "random:"


def common_options() -> argparse.ArgumentParser:
    """The options of every command."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    common.add_argument("--quick", action="store_true", help="a smaller run of the same work, for checks")
    common.add_argument("--seed", type=int, default=0)
    return common


def model_options() -> argparse.ArgumentParser:
    """The options of commands that let a model solve a task."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--model",
        default="maze",
        help="shipped organism, random:NAME for its architecture with random weights, or a folder",
    )
    options.add_argument(
        "--task", help="such as maze:6 or sort; by default the first that the model was trained on, or maze"
    )
    return options


def load(name: str) -> Any:
    """A shipped organism by its name, ``random:`` and its name, an organism in a folder, or a folder or hub id."""
    from dit_lens.files.shipped import organism_names
    from dit_lens.model import VideoDiT
    from dit_lens.organisms.load import load_organism

    if name.startswith(RANDOM):
        return load_organism(name.removeprefix(RANDOM), random=True)
    if is_organism_folder(name):
        return load_organism(folder=name)
    return VideoDiT(name) if "/" in name and name not in organism_names() else load_organism(name)


def tasks_of(name: str) -> list[BoardTask]:
    """The tasks that an organism was trained on, its default first.

    Raises
    ------
    InputError
        No such organism.
    """
    from dit_lens.organisms.load import organism_tasks

    return organism_tasks(folder=name) if is_organism_folder(name) else organism_tasks(name.removeprefix(RANDOM))


def task_of(options: argparse.Namespace) -> BoardTask:
    """The task that ``--task`` names, or else the model's default; of a model that is no organism, the maze."""
    from dit_lens.errors import InputError
    from dit_lens.tasks import task_named

    if options.task is not None:
        return task_named(options.task)
    try:
        return tasks_of(options.model)[0]
    except InputError:  # a pipeline of the user's own: no card says what it was trained on
        return task_named("maze")


def is_organism_folder(name: str) -> bool:
    from dit_lens.files.shipped import CARD

    return (Path(name) / CARD).exists()
