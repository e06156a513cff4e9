"""What a model's answers depend on: the processor's integer products, and the NVIDIA GPUs.

Standard library only, and nothing else of this repository: the packed_cpu backend gets a copy of this file
(`serving.triton.lay_out_packed_cpu`), since Triton's Python stub does not see the repository.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the server's own Python may have no onnxruntime
    import onnxruntime

CPUINFO = Path("/proc/cpuinfo")
# nvidia-smi, not CUDA: the server has no CUDA for Python, and CUDA does not tell the driver's own version.
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")


class NoGpuError(RuntimeError):
    """nvidia-smi shows no GPU; the message says what it answered."""


@dataclass(frozen=True, order=True)
class Gpu:
    """An NVIDIA GPU as nvidia-smi describes it."""

    name: str
    compute_capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability}), driver {self.driver}"


def find_gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine; none where `query_gpus` has a reason."""
    try:
        return query_gpus()
    except NoGpuError:
        return []


def query_gpus() -> list[Gpu]:
    """Asks nvidia-smi for the GPUs of this machine, at least one.

    Raises:
        NoGpuError: nvidia-smi is missing, fails or lists none.
    """
    try:
        done = subprocess.run(GPU_QUERY, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError) as exc:
        raise NoGpuError(f"nvidia-smi: {exc}") from exc
    gpus = [line.strip().rsplit(", ", 2) for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not gpus or any(len(fields) != 3 for fields in gpus):
        answer = " ".join(f"{done.stdout} {done.stderr}".split())
        raise NoGpuError(f"nvidia-smi ended with code {done.returncode} and answered {answer!r}")
    return [Gpu(*fields) for fields in gpus]


def has_vnni() -> bool:
    """Whether this processor sums four products of bytes in 32 bits (AVX-512 VNNI, AVX-VNNI).

    False where that is unknown: exact products on request cost speed, products that saturate cost the ranking.
    """
    try:
        return "_vnni" in CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return False


def keep_products_whole(options: onnxruntime.SessionOptions) -> None:
    """Makes ONNX Runtime sum integer products without saturation, in sessions that are opened with these options.

    On x86 without VNNI it adds two products of an unsigned and a signed byte in 16 bits, which saturate: the logits
    are then others than elsewhere. With this option it makes the signed bytes unsigned, which is slower but exact.
    Where there is VNNI the option must stay away: version 1.32 would convert there, too, for no gain. Processors that
    are not x86 ignore it.
    """
    if not has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
