"""What a benchmark runs on: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure.schema import Environment, Machine
from release.hardware import find_gpus
from serving.backends.packed_cpu.cores import usable_cores

ROOT = Path(__file__).resolve().parents[2]
LOAD_PACKAGES = ("locust", "gevent", "grpcio", "tritonclient", "tokenizers")


def find_environment(packages: Iterable[str] = LOAD_PACKAGES) -> Environment:
    """This machine and checkout, now."""
    versions = {"python": platform.python_version()} | {package: version(package) for package in packages}
    return Environment(datetime.now(UTC).isoformat(timespec="seconds"), find_commit(), find_machine(), versions)


def find_machine() -> Machine:
    """This machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = tuple(map(str, find_gpus()))
    return Machine(platform.platform(), cpu_name(), usable_cores(), round(memory / 2**30, 1), gpus)


def cpu_name() -> str:
    """The processor as Linux names it, or its architecture."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def find_commit() -> str | None:
    """The commit that is checked out, with "+" if files differ from it; None outside a git checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
