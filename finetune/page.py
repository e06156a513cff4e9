"""Pages that are one HTML file, filled from a Jinja2 template, with their pictures inside; they fetch nothing."""

import io
import re
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
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
svg { max-width: 100%; height: auto }
code { font-size: .9em }
"""


def render(template: Path, **values: Any) -> bytes:
    """Fill a template, which finds STYLE as `style`. Every value is escaped, except Markup."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template.name).render(style=Markup(STYLE), **values)
    return page.encode(errors="replace")  # a file's name may hold half a character, which UTF-8 has not


def picture(figure: Figure, name: str, alt: str) -> Markup:
    """Draw a figure as SVG for inside the page; `name` (a word) is the page's only such, `alt` says what it shows.

    Texts stay texts: a reader finds and copies them.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # The reader's fonts draw the texts, so what matplotlib's own lack is no fault.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # a declaration and a doctype stand before
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", lambda tag: _adapt_tag(tag[0], name), svg)
    return Markup('<svg role="img" aria-label="{}"').format(alt) + Markup(svg.removeprefix("<svg"))


def _adapt_tag(tag: str, name: str) -> str:
    """Leave out what HTML knows without, and give ids the picture's name: those of several pictures would collide."""
    tag = re.sub(r' xmlns(:\w+)?="[^"]*"', "", tag)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
