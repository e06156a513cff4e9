"""New versions of a served model, loaded without a restart: the way forward, back, and past a broken one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from clickbert import Ranker
from clickbert.telemetry.observer import Call
from release.manifest import read_manifest, write_manifest
from release.versions import published
from serving.asking import asking
from serving.repository.loading import load, ready_versions
from serving.server import Server
from serving.triton import ServingError
from tests.integration.scores import PATIENCE, as_rows, in_pytorch
from tests.published import as_admin, load_newest, publish, serve
from tests.tiny import WORDS, make_checkpoint


@pytest.fixture
def repository(published_repository: Path, tmp_path: Path) -> Path:
    """A copy of its own, with fp32 alone."""
    ignored = shutil.ignore_patterns("clickbert_onnx_int8")
    return shutil.copytree(published_repository, tmp_path / "repository", ignore=ignored)


def copy_version(source: Path, repository: Path, number: int) -> None:
    """Copies version 1 of fp32 and its tokenizer, with their configs, from where they were exported."""
    for model in ("clickbert_tokenizer", "clickbert_onnx"):
        shutil.copytree(source / model / "1", repository / model / str(number))
        shutil.copy(source / model / "config.pbtxt", repository / model / "config.pbtxt")


@pytest.mark.slow
def test_a_new_version_with_another_vocabulary_and_the_way_back(
    published_checkpoint: Path, published_log: Path, repository: Path, tmp_path: Path
) -> None:
    successor = make_checkpoint(tmp_path / "successor", seed=1, words=["new", *reversed(WORDS)])
    pairs = [("w1 w2", "w3 w4"), ("w5", "w6")]
    with serve(repository) as server, Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        assert np.allclose(ranker.score_pairs(pairs), in_pytorch(published_checkpoint, as_rows(pairs)), atol=1e-5)
        publish(successor, repository, published_log)
        load_newest(server)
        assert np.allclose(ranker.score_pairs(pairs), in_pytorch(successor, as_rows(pairs)), atol=1e-5)
        load(repository, server.addresses, None, "clickbert_onnx", 1)
        assert np.allclose(ranker.score_pairs(pairs), in_pytorch(published_checkpoint, as_rows(pairs)), atol=1e-5)


def test_a_new_version_that_computes_user_texts_once_and_the_way_back(
    published_checkpoint: Path,
    published_repository: Path,
    once_checkpoint: Path,
    once_repository: Path,
    repository: Path,
) -> None:
    """The config changes with the version: the way back is the older one's config, too, under a new number."""
    pairs = [("w1 w2", "w3 w4"), ("w5", "w6"), ("w1 w2", "w7")]
    with serve(repository) as server, Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        assert np.allclose(ranker.score_pairs(pairs), in_pytorch(published_checkpoint, as_rows(pairs)), atol=1e-5)
        successors = {once_checkpoint: once_repository, published_checkpoint: published_repository}
        for number, (checkpoint, source) in enumerate(successors.items(), 2):
            copy_version(source, repository, number)
            load_newest(server)
            assert np.allclose(ranker.score_pairs(pairs), in_pytorch(checkpoint, as_rows(pairs)), atol=1e-5)


def test_an_older_version_of_the_other_kind_is_not_loaded_and_the_newer_one_serves_on(
    once_repository: Path, repository: Path
) -> None:
    copy_version(once_repository, repository, 2)
    with serve(repository) as server, Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        expected = ranker.score_pairs([("w1", "w2")])
        with pytest.raises(ServingError, match=r"version 1 is not loaded, 2 serves on: .*config.pbtxt has the inputs"):
            load(repository, server.addresses, None, "clickbert_onnx", 1)
        assert ranker.score_pairs([("w1", "w2")]) == pytest.approx(expected)
        assert [path.name for path in published(repository, "clickbert_onnx")] == ["2"], "what the next start serves"


def copy_again(repository: Path, numbers: range, *models: str) -> None:
    """Publishes version 1 of these models, and the tokenizer, under these numbers, too."""
    for number in numbers:
        for model in ("clickbert_tokenizer", *models):
            shutil.copytree(repository / model / "1", repository / model / str(number))


class Answered:
    """An observer that remembers the version."""

    version = ""

    @contextmanager
    def observe(self, call: Call) -> Iterator[None]:
        yield
        self.version = call.version

    def headers(self) -> dict[str, str]:
        return {}


def version_for_a_newcomer(server: Server, model: str) -> str:
    """Which version answers a client that has no tokenizer yet."""
    seen = Answered()
    with Ranker(server.addresses.grpc, model=model, timeout=PATIENCE, observers=[seen]) as ranker:
        ranker.score_pairs([("w1", "w2")])
    return seen.version


def test_a_model_that_is_not_loaded_keeps_its_tokenizer_however_many_are_published(
    published_repository: Path, tmp_path: Path
) -> None:
    repository = shutil.copytree(published_repository, tmp_path / "repository")
    with serve(repository) as server:
        copy_again(repository, range(2, 8), "clickbert_onnx", "clickbert_onnx_int8")
        load_newest(server, "clickbert_onnx_int8")
        assert version_for_a_newcomer(server, "clickbert_onnx") == "1"
        assert version_for_a_newcomer(server, "clickbert_onnx_int8") == "7"
        load_newest(server)
        assert version_for_a_newcomer(server, "clickbert_onnx") == "7"
        copy_again(repository, range(8, 9), "clickbert_onnx")
        load_newest(server)
        with asking(server.addresses, None) as client:
            kept = ready_versions(client, as_admin(server))["clickbert_tokenizer"]
        assert sorted(kept) == ["5", "6", "7", "8"], "the next load lets go of those that nobody needs"


def test_after_a_load_that_failed_the_version_that_serves_on_has_its_tokenizer(repository: Path) -> None:
    with serve(repository) as server:
        copy_again(repository, range(2, 7), "clickbert_onnx")
        broken = repository / "clickbert_onnx" / "6"
        (broken / "model.onnx").write_bytes(b"no graph")
        write_manifest(broken, read_manifest(broken))
        with pytest.raises(ServingError, match="version 6 is not loaded, 1 serves on"):
            load_newest(server)
        with Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
            assert ranker.score_pairs([("w1", "w2")])


def test_a_cleaner_of_temporary_files_does_not_keep_a_new_version_from_being_loaded(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("systemd-tmpfiles") is None:
        pytest.skip("systemd-tmpfiles is not installed")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with serve(repository) as server, Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        expected = ranker.score_pairs([("w1", "w2")])
        (tmp_path / "state" / "clickbert" / "old").mkdir()
        (tmp_path / "cleaner.conf").write_text(f"d {tmp_path}/state/clickbert - - - 0\n")  # all is too old for it
        subprocess.run(["systemd-tmpfiles", "--clean", tmp_path / "cleaner.conf"], check=True, timeout=60)
        assert not (tmp_path / "state" / "clickbert" / "old").exists()
        for model in ("clickbert_tokenizer", "clickbert_onnx"):
            shutil.copytree(repository / model / "1", repository / model / "2")
        load_newest(server)
        assert ranker.score_pairs([("w1", "w2")]) == pytest.approx(expected)
