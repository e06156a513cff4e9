"""What a plan was built for: one kind of GPU, its driver, one TensorRT, one graph. A plan fits nothing else.

The stamp lies beside the plan (`plan.json`), so that a plan which was carried elsewhere, or outlived a driver, is
recognized before it is loaded. `serving/checks.py` reads the same file. What this module does not know: TensorRT.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from release.files import sha256
from release.names import MODEL_FILE, PLAN_FILE

Profile = dict[str, tuple[int, int, int]]  # smallest, typical and largest length, by input
STAMP_FILE = "plan.json"
# Both sides ask nvidia-smi, not CUDA: the server's side has the standard library only, and the driver's own version is
# not to be had from CUDA.
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")


class PlanError(RuntimeError):
    """A plan cannot be built or run here, or it failed its gate. The former plan is as it was."""


@dataclass(frozen=True)
class Machine:
    """What a plan depends on. TensorRT's version is that of the Python package, which is the library's."""

    gpu: str
    compute_capability: str
    driver: str
    tensorrt: str

    def __str__(self) -> str:
        return (
            f"{self.gpu} (compute capability {self.compute_capability}), driver {self.driver}, TensorRT {self.tensorrt}"
        )


def find_machine(tensorrt: str) -> Machine:
    """The machine at hand.

    Args:
        tensorrt: TensorRT's version.

    Raises:
        PlanError: it has no NVIDIA GPU, or GPUs of several kinds.
    """
    try:
        answer = subprocess.run(GPU_QUERY, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as exc:
        raise PlanError(
            f"there is no NVIDIA GPU here (nvidia-smi: {exc}); a plan is built on the GPU that will run it: run this "
            "there, in a container with `--gpus all`"
        ) from exc
    kinds = {tuple(line.rsplit(", ", 2)) for line in answer.splitlines() if line.strip()}
    if len(kinds) != 1 or any(len(kind) != 3 for kind in kinds):
        found = "; ".join(sorted(", ".join(kind) for kind in kinds)) or "none"
        raise PlanError(
            f"this machine shows GPUs of several kinds, or none ({found}), and one plan fits one kind only; give the "
            "container one kind: `--gpus device=0`"
        )
    gpu, compute_capability, driver = kinds.pop()
    return Machine(gpu, compute_capability, driver, tensorrt)


def make_stamp(
    machine: Machine, graph: Path, plan: Path, profile: Profile, activation_bytes: int, gate: dict[str, Any] | None
) -> bytes:
    """The stamp of `plan`, built from `graph` on `machine`, as JSON.

    Args:
        profile: the optimization profile.
        activation_bytes: GPU memory that the plan takes to run, beside its weights; for the reader only.
        gate: what the gate found on the plan, likewise.
    """
    stamp = {
        **asdict(machine),
        "graph_sha256": sha256(graph),
        "plan_sha256": sha256(plan),
        "profile": profile,
        "activation_bytes": activation_bytes,
        "gate": gate,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return (json.dumps(stamp, indent=2) + "\n").encode()


def misfit(version: Path, machine: Machine, profile: Profile) -> str | None:
    """Why the plan in a version's folder must be built (anew) on this machine, for this profile; None if it fits."""
    plan, stamp_file = version / PLAN_FILE, version / STAMP_FILE
    if not plan.exists():
        return "it has no plan yet"
    try:
        stamp = json.loads(stamp_file.read_text(encoding="utf-8"))
        built_for = Machine(*(str(stamp[field]) for field in ("gpu", "compute_capability", "driver", "tensorrt")))
        graph_sha256, plan_sha256, built_profile = stamp["graph_sha256"], stamp["plan_sha256"], stamp["profile"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        return f"its stamp {stamp_file} cannot be read ({type(exc).__name__}: {exc})"
    checks = (
        (built_for == machine, f"its plan was built for {built_for}; this is {machine}"),
        (
            built_profile == {name: list(lengths) for name, lengths in profile.items()},
            "its plan was built for other limits than the model's config.pbtxt has now",
        ),
        (graph_sha256 == sha256(version / MODEL_FILE), f"its plan was built from another {MODEL_FILE}"),
        (plan_sha256 == sha256(plan), f"its {PLAN_FILE} is not the one that {STAMP_FILE} describes"),
    )
    return next((reason for holds, reason in checks if not holds), None)
