"""A card is loaded with its own weights only: a save that was killed halfway over an older set is noticed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dit_lens.errors import InputError
from dit_lens.probing.trained import ProbeSet, load_probes


def test_new_weights_beside_an_old_card_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = load_probes("maze")
    new = replace(old, coef={place: -coef for place, coef in old.coef.items()})
    path = old.save(tmp_path / "set")
    name = os.replace

    def killed(temporary: Any, target: Any) -> None:
        if Path(target).suffix == ".json":
            raise KeyboardInterrupt
        name(temporary, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            new.save(path)
    with pytest.raises(InputError, match=r"set.json is the card of other weights"):
        ProbeSet.load(path)
    assert ProbeSet.load(new.save(path)).card == old.card


def test_a_card_that_names_no_weights_is_refused(tmp_path: Path) -> None:
    path = load_probes("maze").save(tmp_path / "set")
    card = json.loads(path.with_suffix(".json").read_text())
    assert len(card.pop("weights_sha256")) == 64
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="no probes"):
        ProbeSet.load(path)
