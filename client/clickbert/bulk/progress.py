"""What the user sees on stderr: a bar on a terminal, else a line now and then. Never a text of the input."""

import sys
import time
from typing import Any

_EVERY = 30.0  # seconds between lines


class Progress:
    """Rows done, rows a second, and the time left where the input's size is known."""

    def __init__(self) -> None:
        self._before, self._began = 0, time.monotonic()
        self._told = self._began
        self._bar: Any = None

    def begin(self, done: int) -> None:
        """Begin, or go on where so many rows are done."""
        self._before, self._began = done, time.monotonic()
        if sys.stderr.isatty():
            self._bar = _bar(done)

    def update(self, done: int, share: float | None) -> None:
        """Show that so many rows are done, which are this share of the input."""
        if self._bar is not None:
            if share:
                self._bar.total = max(round(done / share), done)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._told >= _EVERY:
            self._told = now
            rate = (done - self._before) / (now - self._began)
            left = (done / share - done) / rate if share and rate else None
            self.say(f"{done:,} rows, {rate:,.0f} rows/s" + (f", {duration(left)} left" if left is not None else ""))

    def say(self, text: str) -> None:
        """Print a line."""
        line = f"clickbert: {text}"
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """Return a time as people read it: 1:02:03."""
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{left:02}"


def _bar(done: int) -> Any:
    try:
        from tqdm import tqdm  # noqa: PLC0415 (an extra's)
    except ImportError:
        return None
    return tqdm(initial=done, unit=" rows", unit_scale=True, smoothing=0.05, file=sys.stderr, dynamic_ncols=True)
