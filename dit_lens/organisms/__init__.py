"""Small trained models that ship with the package, and how they were made."""

from dit_lens.organisms.load import (
    load_organism,
    organism_checkpoints,
    organism_names,
    organism_tasks,
    save_organism,
)

__all__ = ["load_organism", "organism_checkpoints", "organism_names", "organism_tasks", "save_organism"]
