"""One self-contained HTML file."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from dit_lens.analysis.localize import Localization
from dit_lens.files.atomic import write_atomic
from dit_lens.report.plots import plot_evidence, plot_probe_heatmap
from dit_lens.report.tables import summary

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>dit_lens localization</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }}
pre {{ background: #f6f6f4; padding: 1rem; overflow-x: auto; font-size: 12.5px; line-height: 1.35; }}
img {{ max-width: 100%; }} h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
</style></head><body>
<h1>Verdict: {verdict}</h1>
<p>Which layers perceive, reason and consolidate. Skill is 0 at chance and 1 at perfection, here above the best of the
controls (shuffled labels, full model input, position). Share is how far patching one layer's update at one step moves
the clean estimate towards the other side of a counterfactual pair.</p> <pre>{summary}</pre> {figures} <h2>Settings</h2>
<pre>{settings}</pre> </body></html>
"""


def figures(result: Localization) -> dict[str, Figure]:
    """All pictures of a localization, by file name."""
    made = {"evidence": plot_evidence(result)}
    steps = {step for step, *_ in result.probes.scores}
    if len(steps) > 1:
        for label in ("wall_left", "on_path", "distance"):
            if label in result.probes.labels:
                made[f"probes-{label}"] = plot_probe_heatmap(result, label)
    return made


def write_report(result: Localization, path: Path) -> Path:
    """Write ``path`` (HTML), ``.csv`` with every number, and the figures as PNG, all beside each other."""
    parts = []
    for name, figure in figures(result).items():
        png = png_bytes(figure)
        write_atomic(path.with_name(f"{path.stem}-{name}.png"), png)
        source = base64.b64encode(png).decode()
        parts.append(
            f'<h2>{html.escape(name)}</h2>\n<img alt="{html.escape(name)}" src="data:image/png;base64,{source}">'
        )
    data = result.to_json()
    settings = json.dumps({"config": data["config"], "thresholds": data["thresholds"]}, indent=1)
    page = _PAGE.format(
        verdict=html.escape(str(result.verdict)), summary=html.escape(summary(result)),
        figures="\n".join(parts), settings=html.escape(settings),
    )  # fmt: skip
    write_atomic(path.with_suffix(".csv"), result.frame().to_csv(index=False).encode())
    return write_atomic(path, page.encode())


def png_bytes(figure: Figure, dpi: int = 120) -> bytes:
    """A figure as PNG; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    return buffer.getvalue()
