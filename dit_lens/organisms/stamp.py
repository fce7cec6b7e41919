"""Write the ids that models have now into the cards that ship with them: ``python -m dit_lens.organisms.stamp``.

To be run where the definition of `VideoDiT.id` has changed and no model has: a card names the model that its weights
were trained on by that id. Nothing but the id is written, and the weights of a card stay as they are, bit for bit; what
they predict is measured by the tests. Prints for every card the id before and after and a hash of its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save

from dit_lens.files.shipped import ORGANISMS
from dit_lens.files.weights import read_weights, write_weights
from dit_lens.lens.preview import vae_id
from dit_lens.organisms.load import load_organism


def stamp(name: str, folder: Path | None = None) -> Iterator[str]:
    """Stamp the cards of an organism; yields what is to be printed of each.

    Parameters
    ----------
    folder : Path, optional
        Of the organism, by default that of the one that ships.
    """
    place, model = ORGANISMS / name if folder is None else folder, load_organism(name, folder=folder)
    for path in sorted(place.glob("*.safetensors")):
        field, own = ("vae", vae_id(model)) if path.stem == "preview" else ("model_id", model.id)
        tensors, card = read_weights(path)
        weights = hashlib.sha256(save(tensors)).hexdigest()[:12]
        write_weights(path, tensors, card | {field: own})
        yield f"{name}/{path.name}: {field} {card[field]} -> {own}, weights {weights}"


def main() -> None:
    for card in sorted(ORGANISMS.rglob("organism.json")):
        for line in stamp(card.parent.relative_to(ORGANISMS).as_posix()):
            print(line)


if __name__ == "__main__":
    main()
