"""Where the models that ship with the package lie, with their probes, lenses and previews."""

from __future__ import annotations

from pathlib import Path

#: Folder of the shipped models; one folder each, some of them in a folder of their own ("planted/frames-early").
ORGANISMS = Path(__file__).parents[1] / "organisms"
#: The file that makes a folder a shipped model.
CARD = "organism.json"


def organism_names() -> list[str]:
    """Names of the organisms that are in the package."""
    return sorted(path.parent.relative_to(ORGANISMS).as_posix() for path in ORGANISMS.rglob(CARD))


def shipped(name: str, *parts: str) -> Path:
    """Path of a file that belongs to the shipped model ``name``; the file need not exist."""
    return ORGANISMS.joinpath(name, *parts)
