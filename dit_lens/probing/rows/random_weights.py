"""The control of random weights: the same architecture, with nothing to find in it."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch

from dit_lens.errors import UnsupportedModel
from dit_lens.model import VideoDiT
from dit_lens.runs.run import Run


class RandomTwin(VideoDiT):
    """A model whose transformers have random weights and that shares everything else; it replays the model's runs.

    Every transformer is made anew from its configuration, as for training, in its own dtype and on its own device.
    Attention processors stay those of the model. LoRA adapters, which are trained too, add nothing in the twin.

    Parameters
    ----------
    model : VideoDiT
    seed : int
        Of the random weights; the same seed gives the same ones.

    Raises
    ------
    UnsupportedModel
        Parameters that the configuration does not have, other than LoRA's.

    Attributes
    ----------
    twin_of : str
        Id of the model.
    """

    def __init__(self, model: VideoDiT, seed: int = 0) -> None:
        super().__init__(_pipeline_like(model.pipeline, seed), defaults=model.defaults)
        self.twin_of = model.id

    def require_own(self, run: Run) -> str:
        """Return the twin's own id; raise `MadeForAnother` for a run that neither the model nor its twin made."""
        return self.id if isinstance(run, Run) and run.model_id == self.twin_of else super().require_own(run)


def _pipeline_like(pipeline: Any, seed: int) -> Any:
    """The pipeline with transformers of random weights."""
    names = [name for name in ("transformer", "transformer_2") if getattr(pipeline, name, None) is not None]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        fresh = {name: _fresh(getattr(pipeline, name)) for name in names}
    takes = inspect.signature(type(pipeline).__init__).parameters
    parts = {k: v for k, v in pipeline.config.items() if k in takes and not k.startswith("_")}
    parts |= {k: getattr(pipeline, k) for k in pipeline.components}
    return type(pipeline)(**parts | fresh)


def _fresh(transformer: Any) -> Any:
    """A copy with the weights that its class starts from."""
    random = type(transformer).from_config(transformer.config)
    twin = copy.deepcopy(transformer)
    with torch.no_grad():
        given = dict(random.named_parameters())
        for name, parameter in twin.named_parameters():
            name = name.replace(".base_layer.", ".")  # as peft calls a layer that it has wrapped
            if name in given:
                parameter.copy_(given[name])
            elif ".lora_" in name:
                parameter.zero_()
            else:
                raise UnsupportedModel(
                    f"no twin with random weights: {name} is not in the transformer's configuration; fuse the adapter, "
                    "or leave out the control 'random' (controls=)"
                )
    return twin.eval()
