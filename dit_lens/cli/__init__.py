"""The command line: ``dit-lens`` or ``python -m dit_lens``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    common.add_argument("--quick", action="store_true", help="a smaller run of the same work, for checks")
    common.add_argument("--seed", type=int, default=0)
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--model",
        default="maze",
        help="shipped organism, random:NAME for its architecture with random weights, or a folder",
    )
    model.add_argument("--size", type=int, default=5, help="cells a side of the mazes")

    localize = commands.add_parser(
        "localize", parents=[common, model], help="say which layers perceive, reason, consolidate"
    )
    localize.add_argument("--out", type=Path, default=Path("localization"), help="folder for report, figures and table")
    localize.add_argument(
        "--permute", action="store_true", help="the null: labels and pairs permuted between instances"
    )
    localize.set_defaults(command=_localize)

    steps = commands.add_parser("steps", parents=[common, model], help="draw x0hat at every denoising step")
    steps.add_argument("--count", type=int, default=4, help="number of mazes")
    steps.add_argument("--out", type=Path, default=Path("steps.png"))
    steps.set_defaults(command=_steps)

    families = commands.add_parser("families", parents=[common], help="list the families of models that are supported")
    families.add_argument("--check", action="store_true", help="check a tiny random pipeline of each")
    families.add_argument("--only", nargs="+", metavar="NAME", help="of these families alone")
    families.set_defaults(command=_families)

    check = commands.add_parser("check", parents=[common], help="check that a model does what its family's file says")
    check.add_argument("--model", required=True, help="folder or hub id of a pipeline, or a shipped organism")
    check.set_defaults(command=_check)

    organism = commands.add_parser("organism", help="the small models that ship with the package")
    actions = organism.add_subparsers(required=True, metavar="action")
    evaluate = actions.add_parser("evaluate", parents=[common], help="strict success on held-out instances")
    evaluate.add_argument("name", help="an organism, such as maze")
    evaluate.add_argument("--count", type=int, default=300, help="instances of each size")
    evaluate.add_argument("--sizes", type=int, nargs="+", default=[4, 5, 6])
    evaluate.set_defaults(command=_evaluate)
    return parser


def _load(name: str) -> Any:
    from dit_lens.model import VideoDiT
    from dit_lens.organisms.load import CARD, load_organism

    if name.startswith("random:"):
        return load_organism(name.removeprefix("random:"), random=True)
    if (Path(name) / CARD).exists():
        return load_organism(folder=name)
    return VideoDiT(name) if "/" in name else load_organism(name)


def _localize(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from dit_lens.analysis import LocalizeConfig, localize
    from dit_lens.report.tables import summary
    from dit_lens.tasks import Maze

    started = time.perf_counter()
    config = LocalizeConfig.quick() if options.quick else LocalizeConfig()
    result = localize(_load(options.model), Maze(options.size), config, seed=options.seed, permute=options.permute)
    report = result.report(options.out / "localization.html")
    seconds = time.perf_counter() - started
    files = {"report": str(report), "table": str(report.with_suffix(".csv"))}
    text = f"{summary(result)}\n\n{report} and {report.with_suffix('.csv').name}, in {seconds:.0f} s"
    return text, result.to_json() | {"files": files, "seconds": seconds}


def _steps(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from dit_lens.lens import step_lens
    from dit_lens.report.html import png_bytes
    from dit_lens.report.plots import plot_chain_of_steps
    from dit_lens.store import write_atomic
    from dit_lens.tasks import Maze

    model, task = _load(options.model), Maze(options.size)
    count = min(options.count, 2) if options.quick else options.count
    mazes = task.sample(count, seed=options.seed)
    lens = step_lens(model, mazes, seed=list(range(count)))
    assert lens.run.frames is not None
    strict = task.score(lens.run.frames, mazes).strict
    titles = [f"{m.length} moves\n{'solved' if ok else 'failed'}" for m, ok in zip(mazes, strict, strict=True)]
    figure = plot_chain_of_steps(lens.frames(model), lens.sigmas, titles)
    path = write_atomic(options.out, png_bytes(figure))
    data = {
        "picture": str(path),
        "sigmas": list(lens.sigmas),
        "strict": strict.tolist(),
        "instances": [m.id for m in mazes],
    }
    return f"{path}: {count} mazes, {int(strict.sum())} solved, {len(lens.sigmas)} steps", data


def _families(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from dit_lens.checks import CHECKED_WITH, versions
    from dit_lens.checks.check import check_family, list_families
    from dit_lens.errors import InputError

    listed = list_families()
    if unknown := set(options.only or ()) - set(listed):
        raise InputError(f"no family is named {', '.join(sorted(unknown))}; there are {', '.join(listed)}")
    chosen = options.only or list(listed)
    data: dict[str, Any] = {"checked_with": CHECKED_WITH, "installed": versions()}
    if not options.check:
        data["families"] = [{"name": name, **listed[name]} for name in chosen]
        lines = [f"{f['name']:<20} {f['transformer']:<34} {f['pipeline']}" for f in data["families"]]
        return "\n".join([*lines, _versions(data)]), data
    reports = [check_family(name) for name in chosen]
    data |= {"passed": all(r.passed for r in reports), "families": [r.to_json() for r in reports]}
    return "\n\n".join([*map(str, reports), _versions(data)]), data


def _versions(data: dict[str, Any]) -> str:
    def text(versions: dict[str, str]) -> str:
        return ", ".join(f"{name} {version}" for name, version in versions.items())

    return f"checked with {text(data['checked_with'])}; installed: {text(data['installed'])}"


def _check(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    report = _load(options.model).check(options.model)
    return str(report), report.to_json()


def _evaluate(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from dit_lens.organisms.evaluate import evaluate_maze

    count = min(options.count, 40) if options.quick else options.count
    model = _load(options.name)
    results = evaluate_maze(model, tuple(options.sizes), count=count, seed=options.seed)
    return "\n".join(map(str, results)), {"organism": options.name, "sizes": [r.to_json() for r in results]}


if __name__ == "__main__":
    sys.exit(main())
