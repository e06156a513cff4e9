"""The locked files are in step with the pins, and the images install from them alone."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.supply.locked import CARRIED, FOLDER, Locked, file, read
from tests.deploy.dockerfile import ROOT, STAGES

FILES = sorted(path.stem for path in FOLDER.glob("*.txt"))


def project(path: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / path).read_text(encoding="utf-8"))


def asked_for(name: str) -> list[Requirement]:
    """What stands in pyproject.toml for a locked file."""
    if name == "client":
        client = project("client/pyproject.toml")["project"]
        lines = sum(client["optional-dependencies"].values(), client["dependencies"])
    else:
        lines = project("pyproject.toml")["dependency-groups"][name]
    return [Requirement(line) for line in lines]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): str(pin.specifier) for pin in pinned}


def installs(stage: str) -> set[str]:
    """The locked files that a stage installs, or the stages that it stands on or copies from."""
    text = "\n".join(STAGES[stage].own)
    found = set(re.findall(r"--requirement \S*/requirements/([\w-]+)\.txt", text))
    for other in [STAGES[stage].base, *re.findall(r"--from=(\S+)", text)]:
        found |= installs(other) if other in STAGES else set()
    return found - {"pip"}


@pytest.mark.parametrize("name", FILES)
def test_what_is_asked_for_is_locked_at_that_version(name: str) -> None:
    locked = {package.name: package.version for package in read(file(name))}
    for requirement in asked_for(name):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in {name}.txt; run `make lock`"
        assert requirement.specifier.contains(version), f"{name}.txt has {version} for {requirement}; run `make lock`"


@pytest.mark.parametrize("name", FILES)
def test_each_package_has_one_version_and_hashes(name: str) -> None:
    packages = read(file(name))
    assert len({package.name for package in packages}) == len(packages) > 0
    for package in packages:
        assert package.version
        assert package.hashes
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in package.hashes), package.name


@pytest.mark.parametrize("name", sorted({name for names in CARRIED.values() for name in names}))
def test_what_is_carried_has_the_versions_that_were_tested(name: str) -> None:
    pins = constraints()
    for package in read(file(name)):
        pin = pins.get(package.name, f"=={package.version}")
        assert pin == f"=={package.version}", f"{name}.txt has {package.name} {package.version}; run `make lock`"


@pytest.mark.parametrize("name", FILES)
def test_no_machine_and_no_index_is_named(name: str) -> None:
    for line in file(name).read_text(encoding="utf-8").splitlines():
        assert "://" not in line
        assert "index" not in line
        assert not re.search(r"(^|\s)/", line), line


@pytest.mark.parametrize("image", [name for name in CARRIED if name in STAGES])
def test_an_image_installs_what_is_listed_as_carried(image: str) -> None:
    assert installs(image) == set(CARRIED[image])


def test_every_install_in_the_dockerfile_checks_hashes() -> None:
    text = "\n".join(one for stage in STAGES.values() for one in stage.own)
    commands = re.findall(r"pip3?(?: --python \S+)? install[^&\n]*", text)
    assert len(commands) > 3
    for command in commands:
        assert "--require-hashes" in command, command
        assert "--group" not in command, command


def test_a_version_that_is_not_pinned_is_an_error() -> None:
    with pytest.raises(ValueError, match="numpy>=2 is not pinned; run `make lock`"):
        _ = Locked(Requirement("numpy>=2"), ()).version
