"""One self-contained HTML file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from dit_lens.files.atomic import write_atomic

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>dit_lens: {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }}
pre {{ background: #f6f6f4; padding: 1rem; overflow-x: auto; font-size: 12.5px; line-height: 1.35; }}
img {{ max-width: 100%; }} h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
</style></head><body>
<h1>{title}</h1>
<p>{text}</p>
{parts}
</body></html>
"""


def write_page(
    path: Path, title: str, text: str, figures: Mapping[str, Figure], tables: Mapping[str, str] | None = None
) -> Path:
    """Write ``path`` (HTML) with the figures inside, and each figure beside it as a PNG.

    Parameters
    ----------
    title, text : str
        The heading and the paragraph below it.
    figures : mapping from name to Figure
        They are closed.
    tables : mapping from heading to text set in columns, optional
        The first stands before the figures, the others after them.
    """
    columns = [
        f"<h2>{html.escape(name)}</h2>\n<pre>{html.escape(lines)}</pre>" for name, lines in (tables or {}).items()
    ]
    parts = columns[:1]
    for name, figure in figures.items():
        png = png_bytes(figure)
        write_atomic(path.with_name(f"{path.stem}-{name}.png"), png)
        parts.append(f"<h2>{html.escape(name)}</h2>\n{web_image(png, name)}")
    page = _PAGE.format(title=html.escape(title), text=html.escape(text), parts="\n".join(parts + columns[1:]))
    return write_atomic(path, page.encode())


def web_image(png: bytes, alt: str) -> str:
    """A PNG as an HTML image that needs no file beside it."""
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def png_bytes(figure: Figure, dpi: int = 120) -> bytes:
    """A figure as PNG; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    return buffer.getvalue()
