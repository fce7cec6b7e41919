"""Short names of content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def short_hash(parts: Iterable[bytes]) -> str:
    """The first 12 digits of the SHA-256 of the parts one after another, which need not be in memory together."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]
