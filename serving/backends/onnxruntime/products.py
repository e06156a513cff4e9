"""Products of 8-bit integers on this processor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # serving/checks.py asks where there may be no onnxruntime
    import onnxruntime

CPUINFO = Path("/proc/cpuinfo")


def has_vnni() -> bool:
    """Whether this processor has instructions that sum four products of bytes in 32 bits (AVX-512 VNNI, AVX-VNNI).

    False where it cannot be told: to ask for exact products costs speed, not to ask may cost the ranking.
    """
    try:
        return "_vnni" in CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return False


def keep_products(options: onnxruntime.SessionOptions) -> None:
    """Has ONNX Runtime keep integer products whole, in a session that is opened with these options.

    On x86 without VNNI it adds two products of an unsigned and a signed byte in 16 bits, and cuts off what does not
    fit: other logits than elsewhere. Asked not to, it makes the signed bytes unsigned, which is slower. Where there is
    VNNI it must not be asked: version 1.32 would do so there, too, for no gain. Processors that are not x86 ignore it.
    (export/graph/session.py asks likewise, and cannot import this: data flows from there to here.)
    """
    if not has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
