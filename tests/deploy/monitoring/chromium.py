"""A page in headless Chromium, if there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.image import imread

COLOURS = 500  # the drawn panels have some 1,500; text alone has shades of grey


def photograph(page: Path) -> list[str]:
    """What Chromium's console says when it opens the page. Its screenshot must show something."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed, so the page is opened in no browser (Debian: chromium)")
    picture = page.with_suffix(".png")
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={page.with_suffix('.profile')}",
    ]
    command += ["--enable-logging=stderr", "--window-size=1500,3000", f"--screenshot={picture}", page.as_uri()]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    pixels = imread(picture)
    assert len({tuple(pixel) for row in pixels[::4, ::4] for pixel in row.tolist()}) > COLOURS
    return [line for line in result.stderr.splitlines() if ":CONSOLE" in line]
