"""Small trained models that ship with the package, how they were made, and models whose inner workings are known."""

from dit_lens.files.shipped import organism_names
from dit_lens.organisms.load import load_organism, organism_checkpoints, organism_config, organism_tasks, save_organism
from dit_lens.organisms.planted_truth import PLACES, Planted, load_planted, with_identity_blocks

__all__ = [
    "PLACES",
    "Planted",
    "load_organism",
    "load_planted",
    "organism_checkpoints",
    "organism_config",
    "organism_names",
    "organism_tasks",
    "save_organism",
    "with_identity_blocks",
]
