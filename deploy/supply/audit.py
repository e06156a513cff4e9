"""Checks what the images, the client and these tools install for known vulnerabilities.

    make audit                      # 0: none known; 1: some, listed; 3: not all could be checked

pip-audit says "No known vulnerabilities found" and exits with 0, too, when its database knows none of the packages (a
mirror of the index without PyPI's JSON API). So a release with published vulnerabilities is checked first, and what
pip-audit skips is counted as not audited.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.supply.locked import FOLDER

COMMAND = (sys.executable, "-m", "pip_audit")
SERVICES = ("pypi", "osv")
VULNERABLE = "django==2.0.1"  # a database that knows nothing about this one knows nothing
NONE_KNOWN, FOUND, NOT_AUDITED = 0, 1, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns NONE_KNOWN, FOUND or NOT_AUDITED."""
    parser = argparse.ArgumentParser(prog="python -m deploy.supply.audit", description=__doc__.splitlines()[0])
    parser.parse_args(arguments)
    service = first_that_answers()
    if service is None:
        print("audit: NOT AUDITED: no database of vulnerabilities answers here. Run this where one can be reached.")
        return NOT_AUDITED
    code = NONE_KNOWN
    for path in sorted(FOLDER.glob("*.txt")):
        packages, error = ask(service, path)
        if not packages:
            print(f"audit: {path.name}: NOT AUDITED: {error}")
        for package in packages:
            for vulnerability in package.get("vulns", []):
                fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
                release = f"{package['name']} {package['version']}"
                print(f"audit: {path.name}: {release}: {vulnerability['id']}, fixed in {fixed}")
        skipped = [package for package in packages if "skip_reason" in package]
        for package in skipped:
            print(f"audit: {path.name}: {package['name']}: NOT AUDITED: {package['skip_reason']}")
        if any(package.get("vulns") for package in packages):
            code = FOUND
        elif (skipped or not packages) and code == NONE_KNOWN:
            code = NOT_AUDITED
        print(f"audit: {path.name}: {len(packages) - len(skipped)} packages checked against {service}")
    if code == NONE_KNOWN:
        print("audit: no known vulnerability in these packages. Base images, Debian's packages and what wheels bundle")
        print("audit: (Triton, Envoy, shared libraries) are not checked: see docs/supply-chain.md")
    return code


def first_that_answers() -> str | None:
    """The first service that knows the vulnerable release; None if none does. Prints why each other one is not used."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "vulnerable.txt"
        requirements.write_text(VULNERABLE + "\n", encoding="utf-8")
        for service in SERVICES:
            packages, error = ask(service, requirements)
            if any(package.get("vulns") for package in packages):
                return service
            reasons = [str(package.get("skip_reason", "it names no vulnerability")) for package in packages]
            print(f"audit: {service}, checked with {VULNERABLE}: {'; '.join(reasons) or error}")
    return None


def ask(service: str, requirements: Path) -> tuple[list[dict[str, Any]], str]:
    """What pip-audit says about each package, and the last line of its errors. No packages if it broke off."""
    words = ["--vulnerability-service", service, "--no-deps", "--disable-pip", "--format", "json"]
    words += ["--progress-spinner", "off", "--requirement", str(requirements)]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        packages = []
    return packages, (done.stderr.strip().splitlines() or ["pip-audit printed nothing"])[-1]


if __name__ == "__main__":
    sys.exit(main())
