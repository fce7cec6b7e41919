"""Notices that diffusers and transformers print while a pipeline is imported or made, and that nobody can act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

#: Logger, and what a message of it that is dropped contains: an image processor without torchvision does the same by
#: PIL, and the guider of HunyuanVideo-1.5 is experimental for whoever writes one.
_DROPPED = {
    "transformers.utils.import_utils": "requires torchvision (not installed); falling back to",
    "diffusers.guiders.guider_utils": "Guiders are currently an experimental feature",
}


@contextmanager
def without_notices() -> Iterator[None]:
    """Drop these notices, and nothing else, for the duration of the block."""
    with ExitStack() as stack:
        for name, text in _DROPPED.items():
            logger, drop = logging.getLogger(name), _Drop(text)
            logger.addFilter(drop)
            stack.callback(logger.removeFilter, drop)
        yield


class _Drop(logging.Filter):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()
