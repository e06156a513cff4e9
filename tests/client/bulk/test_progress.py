"""What is seen meanwhile: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from clickbert.bulk import progress
from clickbert.bulk.progress import Progress


def test_a_bar_on_a_terminal(url, tmp_path):
    pytest.importorskip("tqdm")
    (tmp_path / "in.jsonl").write_text('{"query": "coffee", "document": "secret"}\n' * 2000)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    files = [str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    process = subprocess.Popen([sys.executable, "-m", "clickbert", "score", *files, "--url", url], stderr=theirs)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal's other end is closed
        while part := os.read(ours, 4096):
            seen += part
    os.close(ours)
    assert process.wait(30) == 0
    assert b"100%" in seen and b"rows/s" in seen and b"2,000 rows scored" in seen and b"secret" not in seen


def test_a_line_now_and_then(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown = Progress()
    shown.begin(1000)
    for now, rows, share in [(20.0, 1200, 0.1), (40.0, 1400, 0.5), (50.0, 1500, 0.6), (100.0, 2000, None)]:  # noqa: B007
        shown.update(rows, share)
    assert capsys.readouterr().err.splitlines() == [
        "clickbert: 1,400 rows, 10 rows/s, 0:02:20 left",
        "clickbert: 2,000 rows, 10 rows/s",
    ]
