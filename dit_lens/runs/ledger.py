"""What a run cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Ledger:
    """What a run cost.

    Attributes
    ----------
    calls : int
        Calls of a denoiser, whatever their batch.
    denoiser_forwards : int
        Calls times rows: what counts when methods are compared at equal compute.
    block_forwards : int
        Forwards of single blocks times rows.
    captured_bytes : int
    seconds : float
        Wall time of the whole run, encoding and decoding included.
    """

    calls: int = 0
    denoiser_forwards: int = 0
    block_forwards: int = 0
    captured_bytes: int = 0
    seconds: float = 0.0

    def add(self, other: Ledger) -> None:
        """Add another ledger's counts to this one."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
