"""`TunedLens`: translators of a model's layers, how they are kept, and for which model they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import pandas as pd
import torch
from torch import Tensor

from dit_lens.errors import InputError, MadeForAnother, SiteError, StoreError
from dit_lens.files import strict
from dit_lens.files.shipped import organism_names, shipped
from dit_lens.files.strict import Malformed
from dit_lens.files.weights import read_weights, write_weights
from dit_lens.lens.tuned.bands import NoiseBand, band_of
from dit_lens.lens.tuned.recipe import TunedLensRecipe
from dit_lens.model import VideoDiT

FILE = "tuned_lens.safetensors"


class Errors(TypedDict):
    """How well one layer of one band is translated: relative squared errors without and with its translator."""

    band: int
    sigma_low: float
    sigma_high: float | None
    expert: str | None
    layer: int
    used: bool
    penalty: float | None
    residual_train_plain: float
    residual_train_tuned: float
    velocity_train_plain: float
    velocity_train_tuned: float
    residual_validation_plain: float
    residual_validation_tuned: float
    velocity_validation_plain: float
    velocity_validation_tuned: float


@dataclass(frozen=True)
class Record:
    """What a tuned lens was made for and how.

    Attributes
    ----------
    model_id, family : str
    layers, width : int
        Blocks L and channels D.
    bands : tuple of NoiseBand
    component, stream, branch : str
        What is translated: the residual stream of the video, in one guidance branch.
    recipe : TunedLensRecipe
        How it was fitted.
    tasks, train, validation : tuple of str
        Names of the tasks, and ids of the instances.
    seed : int
        What the seeds of all runs are derived from; `run_seeds` names them.
    settings : dict
        Arguments of the runs.
    errors : tuple of Errors
        For every band and layer: the penalty; whether the translator is used, or the identity; and the errors of both
        on the validation runs and on the training runs, of the velocity on about as many of these as of those.
    versions : dict
    """

    model_id: str
    family: str
    layers: int
    width: int
    bands: tuple[NoiseBand, ...]
    recipe: TunedLensRecipe
    tasks: tuple[str, ...]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    seed: int
    settings: dict[str, Any]
    errors: tuple[Errors, ...]
    versions: dict[str, str]
    branch: str = "cond"
    component: str = "resid"
    stream: str = "video"

    @property
    def run_seeds(self) -> set[int]:
        """Seeds of all runs that the lens was trained or validated on."""
        trained = self.recipe.train_seeds(self.seed, len(self.train))
        return {s for seeds in trained for s in seeds} | set(
            self.recipe.validation_seeds(self.seed, len(self.validation))
        )

    def to_json(self) -> dict[str, Any]:
        """JSON types; `from_json` is the inverse."""
        return asdict(self) | {"bands": [band.to_json() for band in self.bands]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Inverse of `to_json`.

        Raises
        ------
        Malformed
            A field that is missing, unknown or of another type, or errors of no layer or band of the record.
        """
        bands = tuple(NoiseBand.from_json(band) for band in strict.get(data, "bands", list))
        try:
            record: Record = replace(strict.typed({**data, "bands": []}, cls, "record"), bands=bands)
        except InputError as error:
            raise Malformed(f"field 'recipe': {error}") from error
        # The residual after the last block is what the others are translated to.
        places, layers = [(row["band"], row["layer"]) for row in record.errors], {row["layer"] for row in record.errors}
        each = [(band, layer) for band in range(len(bands)) for layer in sorted(layers)]
        if not each or sorted(places) != each or max(layers) >= record.layers - 1:
            raise Malformed(f"field 'errors' has not one row for each of {len(bands)} bands and of its layers")
        for row in record.errors:
            told = {"low": row["sigma_low"], "high": row["sigma_high"], "expert": row["expert"]}
            if told != (own := bands[row["band"]].to_json()):
                raise Malformed(f"field 'errors' has a band {row['band']} of {told}; it is {own}")
        for name in ("tasks", "train", "validation", "versions"):
            if not getattr(record, name):
                raise Malformed(f"field {name!r} is empty")
        return record


@dataclass(frozen=True)
class TunedLens:
    """Affine maps from the residual stream after each block to an estimate of the last one: x -> x + x W + b.

    Give it to `depth_lens` as ``translator``. Where no translator was better than the identity on the validation runs,
    and at the last layer, it is the identity, bit for bit.

    Attributes
    ----------
    record : Record
    matrices : dict from (band, layer) to W, Tensor of shape (D, D)
    biases : dict from (band, layer) to b, Tensor of shape (D,)
        Both hold only the translators that are used.

    Examples
    --------
    >>> tuned = TunedLens.load("maze")
    >>> tuned.record.width, len(tuned.record.bands)
    (128, 3)
    """

    record: Record
    matrices: dict[tuple[int, int], Tensor]
    biases: dict[tuple[int, int], Tensor]
    name: ClassVar[str] = "tuned"

    def __repr__(self) -> str:
        r, count = self.record, len(self.matrices)
        of = f"{r.family} {r.model_id}, {r.layers} layers of width {r.width}, {len(r.bands)} bands"
        return f"TunedLens({of}, objective={r.recipe.objective}, {count} of {len(r.bands) * r.layers} translated)"

    def __call__(self, residual: Tensor, layer: int, sigma: float, expert: str | None = None) -> Tensor:
        """Estimate of the last residual from the one after block ``layer``; both (..., D), of the same dtype.

        Parameters
        ----------
        sigma, expert
            Noise level of the step, and the expert that was called, None in models of one.

        Raises
        ------
        MadeForAnother
            A residual of another width.
        SiteError, InputError
            A layer, noise level or expert that the lens does not have.
        """
        if residual.shape[-1] != self.record.width:
            raise MadeForAnother(
                f"this tuned lens is for residuals of width {self.record.width}, got {tuple(residual.shape)}"
            )
        if not 0 <= layer < self.record.layers:
            raise SiteError(f"no layer {layer}; this tuned lens has layers 0..{self.record.layers - 1}")
        place = band_of(self.record.bands, sigma, expert), layer
        if place not in self.matrices:
            return residual
        wide = residual.to(torch.promote_types(residual.dtype, torch.float32))
        matrix, bias = (x[place].to(wide.device, wide.dtype) for x in (self.matrices, self.biases))
        return (wide + wide @ matrix + bias).to(residual.dtype)

    def require(self, model: VideoDiT, branch: str | None = None) -> None:
        """Refuse a model, or a guidance branch, that the lens was not made for.

        Parameters
        ----------
        branch : str, optional
            By default the model alone is asked for.

        Raises
        ------
        MadeForAnother
            Names what it was made for and what was given.
        """
        r, own = self.record, model.architecture
        width = own.width(model.pipeline.transformer)
        if (r.model_id, r.layers, r.width) != (model.id, model.layers, width):
            raise MadeForAnother(
                f"this tuned lens was made for model {r.model_id} ({r.family}, {r.layers} layers of width {r.width}); "
                f"this is {model.id} ({own.family}, {model.layers} layers of width {width})"
            )
        if branch not in (None, r.branch):
            raise MadeForAnother(f"this tuned lens was trained on the branch {r.branch!r}, this is {branch!r}")

    @property
    def table(self) -> pd.DataFrame:
        """The training record: one row for every band and layer.

        Columns band, sigma_low, sigma_high, expert, layer, used, penalty, and for the residual and the velocity the
        mean squared errors, relative to what is estimated, of both lenses on the validation runs and on the training
        runs, of the velocity on about as many of these as of those.
        """
        return pd.DataFrame(list(self.record.errors))

    def save(self, path: str | Path) -> Path:
        """Write the translators and the record to ``path`` (safetensors), whole or not at all."""
        path = Path(path)
        if path.suffix != ".safetensors":
            raise InputError(f"a tuned lens is kept in a file *.safetensors, got {path.name}")
        kinds = (("matrix", self.matrices), ("bias", self.biases))
        tensors = {_key(place, kind): x for kind, found in kinds for place, x in found.items()}
        return write_weights(path, tensors, self.record.to_json())

    @classmethod
    def load(cls, source: str | Path, model: VideoDiT | None = None) -> TunedLens:
        """Load a tuned lens that ships with an organism, by its name, or one from a file.

        Parameters
        ----------
        source : str or Path
            Name of an organism, or path of a file that `save` wrote.
        model : VideoDiT, optional
            The model that it is to be used with; `depth_lens` asks again.

        Raises
        ------
        InputError
            There is no such lens; the message names those that ship.
        StoreError
            The file is damaged, or holds something else.
        MadeForAnother
            The lens was not made for ``model``.
        """
        path = _path_of(source)
        tensors, data = read_weights(path)
        try:
            record = Record.from_json(data)
        except Malformed as error:
            raise StoreError(f"{path}: its record is none of a tuned lens: {error}") from error
        lens = cls(record, *_sorted(path, record, tensors))
        if model is not None:
            lens.require(model)
        return lens

    def without(self, places: Sequence[tuple[int, int]]) -> TunedLens:
        """The same lens with the identity at some (band, layer)."""
        kept = {place for place in self.matrices if place not in set(places)}
        return replace(
            self,
            matrices={place: x for place, x in self.matrices.items() if place in kept},
            biases={place: x for place, x in self.biases.items() if place in kept},
        )


def _path_of(source: str | Path) -> Path:
    """The file of an organism's lens, or the one that was named."""
    ours = {name: shipped(name, FILE) for name in organism_names()}
    path = ours.get(str(source), Path(source))
    if path.exists():
        return path
    names = ", ".join(name for name, place in ours.items() if place.exists()) or "none"
    raise InputError(f"no tuned lens {str(source)!r}; give a file *.safetensors, or one of those that ship: {names}")


def _key(place: tuple[int, int], kind: str) -> str:
    return f"band{place[0]}/L{place[1]:02d}/{kind}"


def _sorted(path: Path, record: Record, tensors: dict[str, Tensor]) -> tuple[dict[Any, Tensor], dict[Any, Tensor]]:
    """Matrices and biases by (band, layer), as many and as large as the record says."""
    used = [(e["band"], e["layer"]) for e in record.errors if e["used"]]
    shapes = {"matrix": (record.width, record.width), "bias": (record.width,)}
    expected = {_key(place, kind): shape for place in used for kind, shape in shapes.items()}
    found = {name: tuple(x.shape) for name, x in tensors.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))[0]
        raise StoreError(f"{path}: its tensors are not those of its record; the first that differs is {wrong}")
    if not all(isfinite(float(x.double().abs().max())) for x in tensors.values()):
        raise StoreError(f"{path}: it holds numbers that are not finite")
    return tuple({place: tensors[_key(place, kind)] for place in used} for kind in shapes)  # type: ignore[return-value]
