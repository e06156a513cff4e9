"""A container engine of a test's own: buildah builds, podman runs, and all that they keep lies in one folder.

No registry is asked. What stands for Debian's image is made by debootstrap, from Debian's packages.
"""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOOLS = ("buildah", "podman", "runc", "debootstrap")
DEBIAN = "localhost/debian:bookworm-slim"  # what `FROM debian:bookworm-slim` finds first, of images that are here
HOST = "/host"  # where a build finds files of this machine
PATIENCE = 900  # seconds for Debian's image, most of which is download
LONGEST = 3600  # seconds for any other command: CI must not hang
PRIVILEGED = "run it on a machine of its own, or in a privileged container"
# This driver and this way to run a build's steps need no more of a machine than root: a container will do.
DRIVER = ("--storage-driver", "vfs")
BUILD = ("bud", "--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker", "--layers=false")
RUN = ("--cgroup-manager", "cgroupfs", "--events-backend", "none")


def why_not() -> str:
    """Why no container can be built and run here; empty if one can."""
    if os.geteuid() != 0:
        return "debootstrap and the container engine need root"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not installed (apt-get install --no-install-recommends {' '.join(TOOLS)})"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        return f"nothing may be mounted here (`unshare --mount` is refused): {PRIVILEGED}"
    groups = Path("/sys/fs/cgroup")
    if not os.access(groups / "memory" if (groups / "memory").is_dir() else groups, os.W_OK):  # version 1, or 2
        return f"{groups} is not writable, so no container can be limited: {PRIVILEGED}"
    return ""


class Engine:
    """Builds and runs. All of it lies in `folder`, until `remove`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ("--root", str(folder / "storage"), "--runroot", str(folder / "run"), *DRIVER)
        # For a new store podman wants netavark, which Debian's only recommends. CNI's plugins come with it.
        settings = folder / "containers.conf"
        settings.write_text('[network]\nnetwork_backend = "cni"\n', encoding="utf-8")
        self.environment = {**os.environ, "CONTAINERS_CONF": str(settings)}

    def podman(self, *words: str) -> str:
        """What the command printed. Raises AssertionError."""
        options = (*self.store, *RUN, "--runtime", str(shutil.which("runc")))
        return run("podman", *options, *words, environment=self.environment)

    def logs(self, container: str) -> str:
        """What a container wrote, both streams together."""
        words = ["podman", *self.store, "logs", container]
        return subprocess.run(
            words, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        ).stdout

    def make_debian(self) -> None:
        """Makes the image that the Dockerfile's targets for laptops stand on. Skips where no packages are reached."""
        tree, tar = self.folder / "debian", self.folder / "debian.tar"
        settings = tree / "etc" / "dpkg" / "dpkg.cfg.d"
        settings.mkdir(parents=True)
        (settings / "docker-apt-speedup").write_text("force-unsafe-io\n", encoding="utf-8")  # as Debian's image has it
        try:
            run("debootstrap", "--variant=minbase", "bookworm", str(tree), *mirror(), seconds=PATIENCE)
        except (AssertionError, subprocess.TimeoutExpired) as exc:
            last = str(exc).strip().rpartition("\n")[2]
            pytest.skip(f"debootstrap made no Debian, so there is no image to build on: {last}")
        shutil.rmtree(tree / "var" / "lib" / "apt" / "lists")
        run("tar", "--create", "--file", str(tar), "--exclude=./var/cache/apt/archives/*.deb", "-C", str(tree), ".")
        self.podman("import", str(tar), DEBIAN)
        tar.unlink()
        remove_tree(tree)

    def build(self, target: str, tag: str) -> None:
        """Builds a target of the Dockerfile, with pip set as it is here."""
        options = [*BUILD, "--target", target, "--tag", tag]
        for volume in pip_volumes(self.folder):
            options += ["--volume", f"{volume}:ro"]
        run("buildah", *self.store, *options, str(ROOT))

    def remove(self) -> None:
        """Ends the containers, and removes everything."""
        try:
            self.podman("rm", "--all", "--force", "--time", "0")
        finally:
            remove_tree(self.folder)


def mirror() -> list[str]:
    """Where this machine's apt has Debian's packages from; else debootstrap takes its own default.

    Not by TLS: the new image has no certificates yet.
    """
    if shutil.which("apt-get") is None:
        return []
    wanted = ("Created-By: Packages", "Origin: Debian", "Codename: bookworm", "Component: main")
    found = run("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted).split()
    return [address for address in found if address.startswith("http://")][:1]


def run(*words: str, environment: dict[str, str] | None = None, seconds: float = LONGEST) -> str:
    """What the command printed. What ends it early, a timeout or Ctrl-C, ends all that it started.

    Raises:
        AssertionError: it failed; ends with what it printed last.
        TimeoutExpired: it took longer.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, f"{' '.join(words)}: {process.returncode}\n{output[-4000:]}\n{errors[-4000:]}"
    return output


def remove_tree(folder: Path) -> None:
    """Removes a folder, once nothing is mounted in it: that would be removed, too. Raises AssertionError."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    for mount in reversed([mount for mount in mounts if Path(mount).is_relative_to(folder)]):
        run("umount", "--lazy", mount)
    shutil.rmtree(folder)


def pip_volumes(folder: Path) -> list[str]:
    """What to mount so that the build's pip finds packages where this one does: its settings, and the files they name.

    They are mounted and not copied, so that none of them is in the image.
    """
    settings = configparser.RawConfigParser()
    mounted: set[Path] = set()

    def elsewhere(word: str) -> str:
        path = Path(word.removeprefix("file://"))
        if not (path.is_absolute() and path.exists()):
            return word
        mounted.add(path.parent if word.startswith("file://") else path)  # the files of an index lie beside it
        return word.replace(str(path), f"{HOST}{path}")

    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        section = "global" if section == ":env:" else section
        if not settings.has_section(section):
            settings.add_section(section)
        settings.set(section, key, " ".join(map(elsewhere, str(ast.literal_eval(value)).split())))
    file = folder / "pip.conf"
    with file.open("w", encoding="utf-8") as written:
        settings.write(written)
    return [f"{file}:/etc/pip.conf", *(f"{path}:{HOST}{path}" for path in sorted(mounted))]
