"""What the commands share. They import what they run when they run it, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TypeAlias

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


def maze_options() -> argparse.ArgumentParser:
    """The options of commands that let a model solve mazes."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--model",
        default="maze",
        help="shipped organism, random:NAME for its architecture with random weights, or a folder",
    )
    options.add_argument("--size", type=int, default=5, help="cells a side of the mazes")
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


def is_organism_folder(name: str) -> bool:
    from dit_lens.files.shipped import CARD

    return (Path(name) / CARD).exists()
