"""What a TensorRT plan was built for: one kind of GPU, its driver, one TensorRT, one graph. A plan runs only there.

The stamp lies beside the plan (`plan.json`), so that a plan that was carried to another machine, or outlived a driver,
is recognized before it is loaded. This module does not know TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from release.files import sha256
from release.hardware import Gpu, NoGpuError, query_gpus
from release.names import MODEL_FILE, PLAN_FILE
from release.records import RecordError, read_record, to_json

STAMP_FILE = "plan.json"
SCHEMA = 1
Profile = dict[str, tuple[int, int, int]]  # smallest, typical and largest length, by input


class PlanError(RuntimeError):
    """A plan cannot be built or run here, or it failed its gate. The former plan is unchanged."""


@dataclass(frozen=True)
class PlanMachine:
    """What a plan depends on. TensorRT's version is that of the Python package, which is the library's."""

    gpu: Gpu
    tensorrt: str

    def __str__(self) -> str:
        return f"{self.gpu}, TensorRT {self.tensorrt}"


@dataclass(frozen=True)
class Stamp:
    """What the plan beside it was built from, and for."""

    machine: PlanMachine
    graph_sha256: str
    plan_sha256: str
    profile: Profile  # the optimization profile
    activation_bytes: int  # GPU memory that the plan takes to run, beside its weights; for the reader only
    gate: dict[str, Any] | None  # what the gate found on the plan; for the reader only
    created: str
    schema: int = SCHEMA


def find_machine(tensorrt: str) -> PlanMachine:
    """The machine at hand.

    Args:
        tensorrt: TensorRT's version.

    Raises:
        PlanError: it has no NVIDIA GPU, or GPUs of several kinds.
    """
    try:
        kinds = set(query_gpus())
    except NoGpuError as exc:
        raise PlanError(
            f"there is no NVIDIA GPU here ({exc}); a plan is built on the GPU that will run it: run this there, in a "
            "container with `--gpus all`"
        ) from exc
    if len(kinds) > 1:
        raise PlanError(
            f"this machine has GPUs of several kinds ({'; '.join(map(str, sorted(kinds)))}), and one plan fits one "
            "kind only; give the container one kind: `--gpus device=0`"
        )
    return PlanMachine(kinds.pop(), tensorrt)


def make_stamp(
    machine: PlanMachine, graph: Path, plan: Path, profile: Profile, activation_bytes: int, gate: dict[str, Any] | None
) -> bytes:
    """The content of `plan.json` for `plan`, built from `graph` on `machine` (the others: see `Stamp`)."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return to_json(Stamp(machine, sha256(graph), sha256(plan), profile, activation_bytes, gate, created))


def read_stamp(version: Path) -> Stamp:
    """Reads the stamp in a version's folder.

    Raises:
        PlanError: it is missing, damaged or of another release.
    """
    try:
        return read_record(Stamp, version / STAMP_FILE, SCHEMA)
    except RecordError as exc:
        raise PlanError(str(exc)) from exc


def misfit(
    version: Path, gpus: Iterable[Gpu], tensorrt: str | None = None, profile: Profile | None = None
) -> str | None:
    """Why the plan in a version's folder must be built (again) for this machine; None if it fits.

    Args:
        version: the version's folder.
        gpus: the GPUs that will run the plan.
        tensorrt: the TensorRT that will run it; None where that is not known, as in the server's start.
        profile: the optimization profile it must have; None where it is not known.
    """
    plan = version / PLAN_FILE
    if not plan.exists():
        return f"it has no TensorRT plan ({PLAN_FILE}) yet"
    try:
        stamp = read_stamp(version)
    except PlanError as exc:
        return f"its {STAMP_FILE} cannot be read: {exc}"
    built_for = stamp.machine
    for gpu in sorted(set(gpus)):
        here = PlanMachine(gpu, built_for.tensorrt if tensorrt is None else tensorrt)
        if here != built_for:
            return f"its plan was built for {built_for}; this is {here}"
    if profile not in (None, stamp.profile):
        return "its plan was built for other limits than the model's config.pbtxt has now"
    for path, digest in ((version / MODEL_FILE, stamp.graph_sha256), (plan, stamp.plan_sha256)):
        if not path.exists() or sha256(path) != digest:
            return f"its {path.name} is not the one that {STAMP_FILE} describes"
    return None
