"""The files in deploy/requirements, which `make lock` writes, and who installs which."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "requirements"
# An image's target in the Dockerfile, or the client, and the files that it installs.
CARRIED = {
    "cpu": ("serving", "fetch"),
    "gpu": ("serving", "fetch", "plan"),
    "cpu-slim": ("serving", "fetch", "triton-wheel"),
    "gateway": ("gateway",),
    "client": ("client",),
}


@dataclass(frozen=True)
class Locked:
    """One package: its requirement (a version, perhaps a marker), and the hashes of the files that it may be."""

    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The normalised name."""
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        """The one version. Raises ValueError if the requirement is not pinned."""
        (specifier,) = self.requirement.specifier
        if specifier.operator != "==" or "*" in specifier.version:
            raise ValueError(f"{self.requirement} is not pinned; run `make lock`")
        return specifier.version

    @property
    def here(self) -> bool:
        """Whether this platform and Python install it."""
        return self.requirement.marker is None or self.requirement.marker.evaluate()


def file(name: str) -> Path:
    """The file of a name in CARRIED."""
    return FOLDER / f"{name}.txt"


def read(path: Path) -> list[Locked]:
    """The packages of one file."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        requirement, *hashes = re.split(r"\s+--hash=", line)
        found.append(Locked(Requirement(requirement), tuple(hashes)))
    return found


def installed(names: Iterable[str]) -> dict[str, str]:
    """What these files install on this platform: normalised name to version."""
    return {package.name: package.version for name in names for package in read(file(name)) if package.here}
