"""The folder of a running server: where it lies, whose it is, and what becomes of it."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.runtime import PREFIX, SHARED_MEMORY, RuntimeFolder
from serving.triton import ServingError

# Makes a folder, and keeps it until it is killed.
KEEPER = """
import sys
from serving.runtime import RuntimeFolder
print(RuntimeFolder(lambda path: (path / "file").touch()).path, flush=True)
sys.stdin.read()
"""


def fill(path: Path) -> None:
    (path / "folder").mkdir()
    (path / "folder" / "file").write_text("here")


def make(made: list[RuntimeFolder]) -> Path:
    made.append(RuntimeFolder(fill))
    assert (made[-1].path / "folder" / "file").read_text() == "here"
    return made[-1].path


@pytest.fixture
def made() -> Iterator[list[RuntimeFolder]]:
    folders: list[RuntimeFolder] = []
    yield folders
    for folder in folders:
        folder.remove()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "clickbert"


def test_it_lies_in_the_users_state_folder(
    made: list[RuntimeFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "elsewhere"))
    path = make(made)
    assert path.parent == tmp_path / ".local/state/clickbert"
    assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("state", ["with space", "semi;colon", "$HOME", "quote'", "naïve"])
def test_a_path_that_a_shell_would_change_is_passed_over(
    made: list[RuntimeFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / state))
    monkeypatch.setenv("TMPDIR", str(tmp_path / state))
    assert make(made).parent in (Path("/var/tmp"), Path("/tmp"))
    assert not (tmp_path / state).exists()


@pytest.mark.parametrize("state", ["/dev/null", "relative", "~"])
def test_without_a_home_it_lies_in_a_temporary_folder(
    made: list[RuntimeFolder], monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", state)
    monkeypatch.setenv("HOME", "/dev/null")
    assert make(made).parent == Path("/var/tmp")


def test_where_no_place_will_do_each_is_named_with_its_reason(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        (path / "half").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(ServingError) as caught:
        RuntimeFolder(fail)
    message = str(caught.value)
    assert f"{state}: No space left on device; /var/tmp: No space left on device; /nowhere: No such file" in message
    assert "set XDG_STATE_HOME to such a folder, or mount one" in message
    assert not list(state.iterdir())


def test_it_is_gone_after_remove_and_with_it_the_shared_memory_that_bears_its_name(state: Path) -> None:
    folder = RuntimeFolder(fill)
    region = SHARED_MEMORY / f"{folder.path.name}-region"
    region.touch()
    folder.remove()
    assert not region.exists()
    assert not list(state.iterdir())
    folder.remove()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(
    made: list[RuntimeFolder], state: Path
) -> None:
    words = [sys.executable, "-c", KEEPER]
    keeper = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert keeper.stdout
    kept = Path(keeper.stdout.readline().strip())
    region = SHARED_MEMORY / f"{kept.name}-region"
    region.touch()
    try:
        make(made)
        assert (kept / "file").exists()
    finally:
        keeper.send_signal(signal.SIGKILL)
        keeper.communicate()
    make(made)
    assert sorted(state.iterdir()) == sorted(folder.path for folder in made)
    assert not region.exists()


def test_left_overs_are_removed_from_every_place(
    made: list[RuntimeFolder], state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / f"{PREFIX}old").mkdir()
    assert make(made).parent == state
    assert not (tmp_path / f"{PREFIX}old").exists()


def test_a_link_of_somebody_elses_is_left_alone(made: list[RuntimeFolder], state: Path, tmp_path: Path) -> None:
    state.mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (state / f"{PREFIX}link").symlink_to(tmp_path / "precious")
    make(made)
    assert (tmp_path / "precious").is_dir()


def test_systemds_cleaner_leaves_it_alone(made: list[RuntimeFolder], state: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-tmpfiles") is None:
        pytest.skip("systemd-tmpfiles is not installed")
    path = make(made)
    (state / "left-over").mkdir()
    (tmp_path / "cleaner.conf").write_text(f"d {state} - - - 0\n")
    subprocess.run(["systemd-tmpfiles", "--clean", tmp_path / "cleaner.conf"], check=True, timeout=60)
    assert list(state.iterdir()) == [path], "it has cleaned"
    assert (path / "folder" / "file").exists()


# What a container without a writable root sees. Arguments: the folder that becomes the state folder, the temporary one,
# its mount options, and a command.
IN_A_CONTAINER = """
mount -t tmpfs -o ro tmpfs "$1" && mount -t tmpfs -o ro tmpfs /var/tmp && mount -t tmpfs -o "$3" tmpfs "$2" || exit 77
export XDG_STATE_HOME=$1 TMPDIR=$2
shift 3
exec "$@"
"""


def in_a_container(tmp_path: Path, options: str, *command: str) -> subprocess.CompletedProcess[str]:
    places = [tmp_path / "state", tmp_path / "tmp"]
    for place in places:
        place.mkdir()
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", IN_A_CONTAINER, "sh", *places, options]
    try:
        done = subprocess.run([*words, *command], capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"this machine lets nobody mount a file system for a test: {done.stderr}")
    return done


def test_a_temporary_folder_is_enough(tmp_path: Path) -> None:
    done = in_a_container(tmp_path, "rw", sys.executable, "-c", KEEPER)
    assert Path(done.stdout.strip()).parent == tmp_path / "tmp", done.stderr


def test_no_place_to_write_and_execute_is_one_sentence(small_repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving", f"--repository={small_repository}"]
    command += ["--grpc-port=18001", "--metrics-port=18002"]
    done = in_a_container(tmp_path, "noexec", *command)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{tmp_path / 'state'}/clickbert: Read-only file system; /var/tmp: Read-only file system;" in line
    assert f"{tmp_path / 'tmp'}: mounted noexec" in line
    assert "docker run --tmpfs /tmp:exec" in line
