"""A store as a torch dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from dit_lens.store.view import View


class ActivationDataset(Dataset[dict[str, Any]]):
    """One item is one row: its activation, the task instance and the seed.

    ``DataLoader(dataset, batch_size=64, num_workers=4)`` reads a batch at a time, in each worker through files that it
    opens itself.

    Parameters
    ----------
    views : dict from a site's canonical string to View
    single : bool
        Give the activation itself, not a dict from site to activation.
    """

    def __init__(self, views: dict[str, View], single: bool) -> None:
        self._views, self._single = views, single
        self._first = next(iter(views.values()))

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several rows in one pass over the files; what DataLoader asks for."""
        chosen = [self._first.rows[i] for i in indices]
        read = {name: view.tensor(list(indices)) for name, view in self._views.items()}
        items = []
        for place, row in enumerate(chosen):
            kept = {name: tensor[place] for name, tensor in read.items()}
            activation = next(iter(kept.values())) if self._single else kept
            items.append({"activation": activation, "instance": row.instance, "seed": row.seed})
        return items
