"""Seeds of rows and of purposes, by numpy's `SeedSequence`: two seeds that differ by one share no draw."""

from __future__ import annotations

import numpy as np

from dit_lens.errors import InputError

#: Derived seeds have this many bits, so that JSON readers which take every number for a float keep them.
_BITS = 53


def row_seeds(seed: int, count: int, first: int = 0) -> list[int]:
    """One seed for each of ``count`` rows.

    Parameters
    ----------
    seed : int
        Rows of another seed share none of these.
    first : int
        Number of the first row: ``row_seeds(s, 5)[2:]`` is ``row_seeds(s, 3, first=2)``.

    Raises
    ------
    InputError
        A negative seed.

    Examples
    --------
    >>> row_seeds(0, 2)
    [4232842298785526, 2383740928328724]
    >>> row_seeds(0, 1, first=1) == row_seeds(0, 2)[1:]
    True
    """
    return [_drawn(seed, number) for number in range(first, first + count)]


def derive(seed: int, purpose: str) -> int:
    """The seed of one purpose, such as "pairs": other purposes and other seeds share no draw with it.

    Raises
    ------
    InputError
        A negative seed.
    """
    return _drawn(seed, 0, int.from_bytes(purpose.encode()))


def _drawn(seed: int, *key: int) -> int:
    if seed < 0:
        raise InputError(f"seeds must not be negative, got {seed}")
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return int(state[0]) >> (64 - _BITS)
