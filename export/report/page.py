"""Pages that are one HTML file, filled from a Jinja2 template with matplotlib figures inside; the benchmark's, too."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLE = """
:root { --text: #222; --quiet: #5c6370; --line: #dfe2e6; --failed: #b00020; --passed: #1b7a43 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto 4rem; padding: 0 1rem;
  color: var(--text); background: #fff }
h1 { font-size: 1.7rem; margin-bottom: .4rem } h2 { font-size: 1.25rem; margin: 2.2rem 0 .4rem }
table { border-collapse: collapse; margin: .8rem 0; font-size: 15px; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0 } th { color: var(--quiet); font-weight: 600 }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top }
table.facts td:first-child { color: var(--quiet); white-space: nowrap }
.failed { color: var(--failed); font-weight: 600 } .passed { color: var(--passed) }
.verdict { border-left: 4px solid; padding: .5rem 1rem; background: #f6f7f8; white-space: pre-line }
.note { color: var(--quiet); max-width: 50rem } .wide { overflow-x: auto } img { max-width: 100% }
code { font-size: .9em }
"""


def render(template: Path, **values: Any) -> bytes:
    """Fills a template, which finds STYLE as `style`. Every value is escaped, except Markup."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(style=Markup(STYLE), **values).encode()


def image(figure: Figure, alt: str = "") -> Markup:
    """A figure as an image inside the page; `alt` says what it shows."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(alt, data)
