"""The command line: ``dit-lens`` or ``python -m dit_lens``, one file per group of commands.

Each file adds its commands to a parser; a command is a function of the parsed options that gives the text to print and
the same as one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence

from dit_lens.cli import analyses, behaviours, families, lens, organisms, tasks

# The commands write files and open no window.
os.environ.setdefault("MPLBACKEND", "Agg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a check that fails makes the exit status 1, an error of the package 2."""
    options = _parser().parse_args(arguments)
    from dit_lens.errors import DitLensError

    # With --json, standard output holds the JSON object and nothing else.
    quiet = contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()
    try:
        with quiet:
            text, data = options.command(options)
    except DitLensError as error:
        print(f"dit-lens: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(data) if options.json else text)
    return 0 if data.get("passed", True) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dit-lens", description="Look inside video diffusion transformers.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for group in (analyses, behaviours, lens, tasks, organisms, families):
        group.add_commands(commands)
    return parser
