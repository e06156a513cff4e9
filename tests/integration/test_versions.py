"""New versions of a served model, loaded without a restart: the way forward, back, and past a broken one."""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from clickbert import Ranker
from serving.server import Server, open_directly
from tests.integration.scores import PATIENCE, as_rows, in_pytorch
from tests.published import publish, serve
from tests.tiny import WORDS, make_checkpoint, make_once_checkpoint


@pytest.fixture
def repository(published_repository: Path, tmp_path: Path) -> Path:
    """A copy of its own, with fp32 alone."""
    ignored = shutil.ignore_patterns("clickbert_onnx_int8")
    return shutil.copytree(published_repository, tmp_path / "repository", ignore=ignored)


def load(server: Server, model: str) -> None:
    with open_directly(f"{server.addresses.http}/v2/repository/models/{model}/load", method="POST", timeout=PATIENCE):
        pass


def test_a_new_version_with_another_vocabulary_and_the_way_back(
    published_checkpoint: Path, published_log: Path, repository: Path, tmp_path: Path
) -> None:
    successor = make_checkpoint(tmp_path / "successor", seed=1, words=["new", *reversed(WORDS)])
    pairs = [("w1 w2", "w3 w4"), ("w5", "w6")]
    with serve(repository) as server, Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        assert np.allclose(ranker.score_pairs(pairs), in_pytorch(published_checkpoint, as_rows(pairs)), atol=1e-5)
        publish(successor, repository, published_log)
        for model in ("clickbert_tokenizer", "clickbert_onnx"):
            load(server, model)
        assert np.allclose(ranker.score_pairs(pairs), in_pytorch(successor, as_rows(pairs)), atol=1e-5)
        # And back again, as the runbook says.
        (repository / "clickbert_onnx" / "2").rename(tmp_path / "withdrawn")
        load(server, "clickbert_onnx")
        assert np.allclose(ranker.score_pairs(pairs), in_pytorch(published_checkpoint, as_rows(pairs)), atol=1e-5)


def test_a_new_version_that_computes_user_texts_once_and_the_way_back(
    published_checkpoint: Path, published_log: Path, repository: Path, tmp_path: Path
) -> None:
    """The config changes with the version: the way back is another export."""
    successor = make_once_checkpoint(tmp_path / "successor", user_tokens=9)
    pairs = [("w1 w2", "w3 w4"), ("w5", "w6"), ("w1 w2", "w7")]
    with serve(repository) as server, Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        assert np.allclose(ranker.score_pairs(pairs), in_pytorch(published_checkpoint, as_rows(pairs)), atol=1e-5)
        for checkpoint in (successor, published_checkpoint):
            publish(checkpoint, repository, published_log)
            for model in ("clickbert_tokenizer", "clickbert_onnx"):
                load(server, model)
            assert np.allclose(ranker.score_pairs(pairs), in_pytorch(checkpoint, as_rows(pairs)), atol=1e-5)


def test_an_older_version_of_the_other_kind_is_not_loaded_and_the_newer_one_serves_on(
    published_log: Path, repository: Path, tmp_path: Path
) -> None:
    successor = make_once_checkpoint(tmp_path / "successor", user_tokens=9)
    publish(successor, repository, published_log)
    with serve(repository) as server, Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        expected = ranker.score_pairs([("w1", "w2")])
        (repository / "clickbert_onnx" / "2").rename(tmp_path / "withdrawn")
        with pytest.raises(urllib.error.HTTPError) as caught:
            load(server, "clickbert_onnx")
        assert "config.pbtxt has the inputs" in caught.value.read().decode()
        assert ranker.score_pairs([("w1", "w2")]) == pytest.approx(expected)


def test_a_broken_new_version_leaves_the_old_one_serving(repository: Path) -> None:
    with serve(repository) as server, Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        expected = ranker.score_pairs([("w1", "w2")])
        shutil.copytree(repository / "clickbert_onnx" / "1", repository / "clickbert_onnx" / "2")
        (repository / "clickbert_onnx" / "2" / "model.onnx").write_bytes(b"no graph")
        with pytest.raises(urllib.error.HTTPError):
            load(server, "clickbert_onnx")
        assert ranker.score_pairs([("w1", "w2")]) == pytest.approx(expected)


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
            load(server, model)
        assert ranker.score_pairs([("w1", "w2")]) == pytest.approx(expected)
