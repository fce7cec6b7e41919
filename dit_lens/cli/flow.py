"""``dit-lens flow``: where the difference between the two sides of pairs is after each block."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_lens.cli.common import Commands, Printed, common_options, load, model_options, task_of

if TYPE_CHECKING:
    from dit_lens.analysis.flow.result import InformationFlow

#: Pairs of a quick run.
QUICK = 8


def add_commands(commands: Commands) -> None:
    flow = commands.add_parser(
        "flow",
        parents=[common_options(), model_options()],
        help="measure where information moves, from what differs in the input to what differs in the answer",
        epilog="example: dit-lens flow --model puzzles --task permanence --kind colour --figure flow.png",
    )
    flow.add_argument("--kind", help="kind of pairs; by default the task's first")
    flow.add_argument("--step", type=int, help="denoising step; by default the first at which the answer is decided")
    flow.add_argument("--count", type=int, default=24, help=f"number of pairs; with --quick at most {QUICK}")
    flow.add_argument("--folder", type=Path, help="keep what is finished here; the same command then goes on")
    flow.add_argument("--figure", type=Path, help="draw frames and curves into this PNG")
    flow.add_argument("--animate", type=Path, help="draw one scene after each block into this .gif or .mp4")
    flow.set_defaults(command=_flow)


def _flow(options: argparse.Namespace) -> Printed:
    from dit_lens.analysis.flow.animation import require_animation
    from dit_lens.analysis.flow.flow import information_flow

    if options.animate is not None:
        require_animation(options.animate)
    if options.figure is not None:
        _require_figure(options.figure)
    found = information_flow(
        load(options.model),
        task_of(options),
        min(options.count, QUICK) if options.quick else options.count,
        kind=options.kind,
        step=options.step,
        seed=options.seed,
        parts=_parts(options),
        folder=options.folder,
    )
    written = _write(found, options)
    lines = [str(found), f"in {found.seconds:.0f} s", *written.values()]
    return "\n".join(lines), _with_kind(found.to_json()) | written


def _require_figure(path: Path) -> None:
    """Refuse what is no PNG, before the long work."""
    from dit_lens.errors import InputError

    if path.suffix.lower() != ".png":
        raise InputError(f"--figure {path}: need a .png")


def _parts(options: argparse.Namespace) -> tuple[str, ...]:
    """Groups of tokens are what the pictures show; what blocks do is left out of a quick run."""
    pictures = options.figure is not None or options.animate is not None
    return (*(() if options.quick else ("blocks",)), *(("groups",) if pictures else ()))


def _write(found: InformationFlow, options: argparse.Namespace) -> dict[str, str]:
    """Pictures that are asked for, by option."""
    from dit_lens.files.atomic import write_atomic
    from dit_lens.results.page import png_bytes

    written = {}
    if options.figure is not None:
        figure = found.plot().get_figure(root=True)
        assert figure is not None
        written["figure"] = str(write_atomic(options.figure, png_bytes(figure)))
    if options.animate is not None and found.shown is None:
        written["animate"] = "no film: no pair is left to be shown"
    elif options.animate is not None:
        written["animate"] = str(found.animate(options.animate))
    return written


def _with_kind(data: dict[str, Any]) -> dict[str, Any]:
    """With the kind of the pairs, which the option of that name chooses, in place of the kind of result."""
    kind = data.pop("pair_kind")
    return data | {"kind": kind, "experts": {name: _with_kind(other) for name, other in data["experts"].items()}}
