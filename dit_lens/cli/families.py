"""``dit-lens families`` and ``dit-lens check``: which models are supported, and whether one is what we think it is."""

from __future__ import annotations

import argparse
from typing import Any

from dit_lens.cli.common import Commands, Printed, common_options, load


def add_commands(commands: Commands) -> None:
    common = common_options()
    families = commands.add_parser("families", parents=[common], help="list the families of models that are supported")
    families.add_argument("--check", action="store_true", help="check a tiny random pipeline of each")
    families.add_argument("--only", nargs="+", metavar="NAME", help="of these families alone")
    families.set_defaults(command=_families)

    check = commands.add_parser("check", parents=[common], help="check that a model does what its family's file says")
    check.add_argument("--model", required=True, help="folder or hub id of a pipeline, or a shipped organism")
    check.set_defaults(command=_check)


def _families(options: argparse.Namespace) -> Printed:
    from dit_lens.errors import InputError
    from dit_lens.runs.identity import versions
    from dit_lens.validation.check import check_family, list_families
    from dit_lens.validation.report import CHECKED_WITH

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


def _check(options: argparse.Namespace) -> Printed:
    from dit_lens.validation.check import check

    report = check(load(options.model), options.model)
    return str(report), report.to_json()
