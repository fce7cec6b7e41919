"""The command line: ``dit-lens`` or ``python -m dit_lens``, one file per group of commands.

Each file adds its commands to a parser; a command is a function of the parsed options that gives the text to print and
the same as one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence

from dit_lens.cli import analyses, behaviours, families, flow, lens, organisms, sweeps, tasks

_START = """\
dit-lens looks inside video diffusion transformers. Where to start, with a model that ships with it:

  dit-lens steps             the clean estimate at every denoising step, as a picture
  dit-lens lens              what every layer would answer at every step, as a picture
  dit-lens flow --quick      where information moves, from what differs in the input to the answer
  dit-lens localize --quick  which layers perceive, reason and consolidate
  dit-lens sweep --quick     what patching each layer does to the answer
  dit-lens families          which models of diffusers can be looked into

dit-lens --help lists all commands, dit-lens COMMAND --help the options of one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a check that fails makes the exit status 1, an error of the package 2."""
    options = _parser().parse_args(arguments)
    if options.version or options.command is None:
        print(_version() if options.version else _START)
        return 0
    import matplotlib

    from dit_lens.errors import DitLensError

    matplotlib.use("Agg")  # the commands write files and open no window

    # With --json, standard output holds the JSON object and nothing else.
    quiet = contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()
    try:
        with quiet:
            text, data = options.command(options)
    except DitLensError as error:
        print(f"dit-lens: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("; ".join(["dit-lens: stopped", *getattr(stop, "__notes__", ())]), file=sys.stderr)
        return 130
    print(json.dumps(data) if options.json else text)
    return 0 if data.get("passed", True) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dit-lens", description="Look inside video diffusion transformers.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="command")
    for group in (analyses, flow, sweeps, behaviours, lens, tasks, organisms, families):
        group.add_commands(commands)
    return parser


def _version() -> str:
    """Of the code that runs, which need not be the package that is installed."""
    return f"dit-lens {vars(sys.modules['dit_lens'])['__version__']}"
