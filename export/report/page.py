"""Figures as images for inside a report's page, which may show thousands of points; the benchmark's, too."""

from __future__ import annotations

import base64
import io

from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def image(figure: Figure, alt: str = "") -> Markup:
    """A figure as an image inside the page; `alt` says what it shows."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(alt, data)
