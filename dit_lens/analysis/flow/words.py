"""Which positions of a text hold some words of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dit_lens.errors import EvidenceError, UnsupportedModel
from dit_lens.model import VideoDiT
from dit_lens.tasks.base import Pair

#: Families whose text has the tokens of the prompt from its first position on. The others put a template, an image or
#: padding in front, or sort their tokens.
PLAIN = ("wan", "skyreels", "ltx-video", "cogvideox", "mochi", "allegro", "cosmos")


def positions_of_words(
    model: VideoDiT, pairs: Sequence[Pair], words: str | Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """Positions of some words in the prompts of each pair, those of either side.

    Raises
    ------
    EvidenceError
        No words, or a pair in whose prompts there is none of them.
    UnsupportedModel
        A family whose text does not begin with the prompt.
    """
    wanted = [words] if isinstance(words, str) else list(words)
    if not wanted or not all(isinstance(word, str) and word.strip() for word in wanted):
        raise EvidenceError(f"source={words!r:.80}: need Tokens, a word, or a list of words")
    if model.architecture.family not in PLAIN:
        raise UnsupportedModel(
            f"words of the prompt cannot be told apart in {model.architecture.family}, whose text does not begin with "
            "the prompt; name tokens instead"
        )
    return tuple(_of_pair(model.pipeline.tokenizer, pair, wanted) for pair in pairs)


def _of_pair(tokenizer: Any, pair: Pair, words: Sequence[str]) -> tuple[int, ...]:
    found: set[int] = set()
    for side in pair:
        prompt = " ".join(str(side.prompt if hasattr(side, "prompt") else side["prompt"]).split())
        found |= {position for word in words for position in _in_prompt(tokenizer, prompt, word)}
    if not found:
        prompts = " | ".join(str(side.prompt if hasattr(side, "prompt") else side["prompt"]) for side in pair)
        raise EvidenceError(f"no prompt of the pair {prompts!r:.120} has the word {', '.join(map(repr, words))}")
    return tuple(sorted(found))


def _in_prompt(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """Positions of the tokens that lie in a whole word of the prompt."""
    encoded = tokenizer(prompt, return_offsets_mapping=True)
    spans = [s for s in _spans(prompt, word)]
    return [
        position
        for position, (start, end) in enumerate(encoded["offset_mapping"])
        if end > start and any(start < high and end > low for low, high in spans)
    ]


def _spans(prompt: str, word: str) -> list[tuple[int, int]]:
    found, start = [], prompt.find(word)
    while start >= 0:
        end = start + len(word)
        alone = not (prompt[start - 1 : start].isalnum() or prompt[end : end + 1].isalnum())
        found += [(start, end)] if alone else []
        start = prompt.find(word, end)
    return found
