"""The loop that both trainings share: progress bar, JSON log, checkpoints, resuming."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm.auto import tqdm

from dit_lens.errors import InputError, StoreError
from dit_lens.files.atomic import make_folder, write_atomic
from dit_lens.files.digest import short_hash
from dit_lens.files.lock import Lock
from dit_lens.organisms.training.presets import Preset, Stage
from dit_lens.runs.weights import contents, tensors


class Stateful(Protocol):
    """Whatever can be saved and restored."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


def stage_at(stages: tuple[Stage, ...], step: int) -> Stage:
    """The curriculum stage that a step belongs to."""
    for stage in stages:
        if step < stage.steps:
            return stage
        step -= stage.steps
    return stages[-1]


def total_steps(stages: tuple[Stage, ...]) -> int:
    return sum(stage.steps for stage in stages)


def recipe_id(preset: Preset, start: nn.Module) -> str:
    """Hash of a preset, its seed included, and of the weights that a training starts from."""
    return short_hash([json.dumps(asdict(preset), sort_keys=True).encode(), *contents(tensors(start))])


@dataclass
class Loop:
    """Runs ``advance(step)`` to the last step, from the checkpoint where there is one.

    One process at a time trains in a folder, and a checkpoint is written whole or not at all.

    Parameters
    ----------
    name : str
        Names the checkpoint and the log in ``folder``.
    parts : objects with ``state_dict`` and ``load_state_dict``, saved and restored together
    recipe : str
        Of what the checkpoint is; see `recipe_id`.
    every : int
        A log line and a checkpoint every so many steps.
    """

    name: str
    folder: Path
    total: int
    parts: dict[str, Stateful]
    recipe: str
    every: int = 100
    log: list[dict[str, float]] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.ckpt"

    def run(self, advance: Callable[[int], float], measure: Callable[[int], dict[str, float]] | None = None) -> None:
        """Train; ``advance`` returns the loss, ``measure`` further figures for the log (solve rate, PSNR).

        Raises
        ------
        InputError
            The checkpoint is of another recipe or seed.
        StoreError
            It cannot be read or written, or another process trains in the folder.
        """
        make_folder(self.folder)
        lock = Lock(self.folder)
        try:
            self._run(advance, measure)
        finally:
            lock.release()

    def _run(self, advance: Callable[[int], float], measure: Callable[[int], dict[str, float]] | None) -> None:
        first = self._resume()
        started, smooth = time.perf_counter(), None
        spent = self.log[-1]["seconds"] if self.log else 0.0
        for step in self._progress(first):
            loss = advance(step)
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            self._bar.set_postfix({"loss": f"{smooth:.4f}"} | self._last_figures(), refresh=False)
            if (step + 1) % self.every == 0 or step + 1 == self.total:
                row = {"step": step + 1, "loss": smooth, "seconds": spent + time.perf_counter() - started}
                self.log.append(row | (measure(step) if measure else {}))
                self._save(step + 1)

    def _progress(self, first: int) -> Iterator[int]:
        self._bar = tqdm(total=self.total, initial=first, desc=self.name, unit="step", mininterval=1.0)
        with self._bar:
            for step in range(first, self.total):
                yield step
                self._bar.update()

    def _last_figures(self) -> dict[str, str]:
        last = self.log[-1] if self.log else {}
        return {k: f"{v:.2f}" for k, v in last.items() if k not in ("step", "loss", "seconds")}

    def _resume(self) -> int:
        if not self.checkpoint.exists():
            return 0
        state = self._read()
        if (of := state.get("recipe")) != self.recipe:
            raise InputError(
                f"{self.checkpoint} is of recipe {of}, this training of {self.recipe}: they differ in the preset, its "
                "seed or what they start from; train in another folder, or remove the checkpoint"
            )
        for key, part in self.parts.items():
            part.load_state_dict(state["parts"][key])
        self.log = state["log"]
        return int(state["step"])

    def _read(self) -> dict[str, Any]:
        try:
            state = unpacked(self.checkpoint)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise StoreError(
                f"{self.checkpoint} is damaged or no checkpoint ({reason:.120}); remove it to train anew"
            ) from error
        return state

    def _save(self, step: int) -> None:
        parts = {key: part.state_dict() for key, part in self.parts.items()}
        state = {"recipe": self.recipe, "step": step, "log": self.log, "parts": parts}
        write_atomic(self.checkpoint, packed(state))
        write_atomic(self.folder / f"{self.name}.json", json.dumps(self.log, indent=1).encode())


def packed(state: Mapping[str, Any]) -> bytes:
    """A state as bytes that begin with their checksum: torch reads a file with a changed bit as if it were right."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()


def unpacked(path: Path) -> dict[str, Any]:
    """The state in a checkpoint.

    Raises
    ------
    ValueError
        It is not as it was written.
    """
    data = path.read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(data[size:]).digest() != data[:size]:
        raise ValueError("it has another checksum than it names")
    state: dict[str, Any] = torch.load(io.BytesIO(data[size:]), weights_only=True)
    return state
