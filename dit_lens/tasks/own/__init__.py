"""Data of a user's own as tasks: inputs with labels, and pairs of inputs."""

from dit_lens.tasks.own.inputs import Input
from dit_lens.tasks.own.labelled import Labelled
from dit_lens.tasks.own.pairs import Pairs

__all__ = ["Input", "Labelled", "Pairs"]
