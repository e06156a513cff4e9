"""Damaged files, and disks that are full while a version is published (20, 21)."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clickbert import Ranker
from export.__main__ import main as export
from export.publish import PublishError, staged
from release.manifest import ManifestError, verify
from release.names import LOGITS
from release.versions import published
from serving.repository.loading import load
from serving.server import Addresses, Server
from serving.triton import ServingError
from tests.export.command import WIDE
from tests.figures import Figures
from tests.integration.scores import PATIENCE
from tests.published import serve

MODEL, TOKENIZER = "clickbert_onnx", "clickbert_tokenizer"
FILES = [f"{model}/{file}" for model in (MODEL, TOKENIZER) for file in ("model.onnx", "manifest.json")]
FLIPS = 100  # places in each file


@pytest.fixture
def repository(published_repository: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("clickbert_onnx_int8")
    return shutil.copytree(published_repository, tmp_path / "repository", ignore=ignored)


def flip(path: Path, place: int, bit: int) -> None:
    """Flips a bit; a second time takes it back."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def test_a_flipped_bit_anywhere_is_found(repository: Path, figures: Figures) -> None:
    chance = random.Random(0)
    named = 0
    for name in FILES:
        model, file = name.split("/")
        version = repository / model / "1"
        verify(version)
        for place in [chance.randrange((version / file).stat().st_size) for _ in range(FLIPS)]:
            bit = chance.randrange(8)
            flip(version / file, place, bit)
            with pytest.raises(ManifestError) as caught:
                verify(version)
            named += str(version / file) in str(caught.value)
            flip(version / file, place, bit)
        verify(version)
    figures.exactly(20, f"flipped bits named with their file, of {FLIPS * len(FILES)}", named, FLIPS * len(FILES))


def test_a_flipped_byte_is_refused_at_the_start(repository: Path, figures: Figures) -> None:
    named = 0
    for name in FILES:
        model, file = name.split("/")
        path = repository / model / "1" / file
        flip(path, 200, 0)
        server = Server(repository, Addresses.free())
        with pytest.raises(ServingError) as caught:
            server.start()
        assert server.process is None
        named += f"{model} version 1 is refused: {path} is damaged" in str(caught.value)
        flip(path, 200, 0)
    figures.exactly(20, f"starts refused with the file's name, of {len(FILES)}", named, len(FILES))


@pytest.mark.reliability
def test_a_flipped_byte_is_refused_at_a_load_and_the_former_version_serves(repository: Path, figures: Figures) -> None:
    with serve(repository) as server, Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        expected = ranker.score_pairs([("w1", "w2")])
        for model in (MODEL, TOKENIZER):
            shutil.copytree(repository / model / "1", repository / model / "2")
        named = 0
        for name in FILES:
            model, file = name.split("/")
            flip(second(repository / model) / file, 200, 0)
            with pytest.raises(ServingError) as caught:
                load(repository, server.addresses, None, MODEL, 2)
            named += f"{repository / model / '2' / file} is damaged" in str(caught.value)
            assert [path.name for path in published(repository, MODEL)] == ["1"]
            assert ranker.score_pairs([("w1", "w2")]) == pytest.approx(expected)
            flip(second(repository / model) / file, 200, 0)
        assert load(repository, server.addresses, None, MODEL, 2) == "2", "mended, it is loaded"
    figures.exactly(20, f"loads refused with the file's name, of {len(FILES)}", named, len(FILES))


def second(model: Path) -> Path:
    """The folder of version 2, which is withdrawn once it was refused."""
    return next(folder for folder in (model / "2", model / "withdrawn.2") if folder.is_dir())


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system with room for that many bytes."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("nobody may mount a small file system here: no disk is full")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder, whatever they are."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def room_in(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def test_a_disk_that_is_full_at_any_moment_leaves_the_repository_as_it_was(
    repository: Path, tmp_path: Path, figures: Figures
) -> None:
    """21: publishing alone, with room for a page more each time."""
    models = [TOKENIZER, MODEL]
    files = {model: content(repository / model / "1") for model in models}
    pages = sum(len(data) for own in files.values() for data in own.values()) // os.sysconf("SC_PAGE_SIZE") + 40
    failures = successes = changed = 0
    with small_disk(tmp_path / "disk", 16 << 20) as disk:
        copy = shutil.copytree(repository, disk / "repository")
        before, filler = content(copy), disk / "filler"
        for free in range(0, pages, 3):
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, room_in(disk) - free * os.sysconf("SC_PAGE_SIZE"))
            try:
                with staged(copy, models, {LOGITS: 1}) as (number, folders):
                    for model, folder in folders.items():
                        for name, data in files[model].items():
                            (folder / name).write_bytes(data)
            except (PublishError, OSError):
                failures += 1
                filler.unlink()
                changed += content(copy) != before
            else:
                successes += 1
                filler.unlink()
                for model in models:
                    verify(copy / model / str(number))
                    shutil.rmtree(copy / model / str(number))
                changed += content(copy) != before
    assert failures > 10 and successes, "the disk was full at many moments, and at the end it was not"
    figures.exactly(21, f"repositories changed by a publication that failed, of {failures}", changed, 0)


@pytest.mark.reliability
def test_an_export_onto_a_full_disk_says_so_and_publishes_nothing(
    repository: Path, published_checkpoint: Path, published_log: Path, tmp_path: Path, capsys, figures: Figures
) -> None:
    words = ["--checkpoint", str(published_checkpoint), "--evaluation", str(published_log), "--engine", "onnx"]
    words += ["--report", str(tmp_path / "report.html"), *WIDE]
    with small_disk(tmp_path / "disk", 16 << 20) as disk:
        copy = shutil.copytree(repository, disk / "repository")
        before, filler = content(copy), disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room_in(disk) - 100_000)
        code = export([*words, "--repository", str(copy)])
        assert "No space left on device" in capsys.readouterr().err
        figures.exactly(21, "exit code of an export onto a full disk", code, 1)
        figures.exactly(21, "files it left or changed", len(content(copy).items() ^ before.items()), 0)
        filler.unlink()
        assert export([*words, "--repository", str(copy)]) == 0
        verify(copy / MODEL / "2")
