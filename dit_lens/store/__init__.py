"""Activations of many runs on disk: safetensors shards, a manifest, and lazy views of what is in them."""

from dit_lens.store.dataset import ActivationDataset
from dit_lens.store.sizes import Forecast, Summary
from dit_lens.store.store import Store
from dit_lens.store.view import View

__all__ = ["ActivationDataset", "Forecast", "Store", "Summary", "View"]
