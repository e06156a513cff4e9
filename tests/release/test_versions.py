"""Which folders of a repository are published versions, whatever else lies there."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.versions import (
    LARGEST,
    bring_back,
    is_number,
    left_behind,
    list_withdrawn,
    newest,
    next_number,
    published,
    withdraw,
)

MODEL = "clickbert_onnx"
numbers = st.integers(0, 10**6) | st.sampled_from([LARGEST])
# Not versions for Triton: staging folders, leading zeros, signs, other scripts' digits, numbers beyond 64 bits.
others = st.sampled_from(
    ["7.staging", ".staging", "warmup", "007", "00", "-1", "+1", "1e3", "²", "٣", "1.0", "1 ", str(2**63)]
)


def make(version: Path, *, empty: bool = False) -> None:
    version.mkdir(parents=True)
    if not empty:
        (version / "model.onnx").touch()


@given(st.sets(numbers, max_size=5), st.sets(numbers, max_size=5), st.sets(numbers, max_size=3), st.sets(others))
def test_full_folders_named_by_a_number_are_versions_the_newest_first(full, empty, files, strange) -> None:
    empty, files = empty - full, files - full - empty
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        for name in (*full, *strange):
            make(repository / MODEL / str(name))
        for name in empty:
            make(repository / MODEL / str(name), empty=True)
        (repository / MODEL).mkdir(exist_ok=True)
        for name in files:
            (repository / MODEL / str(name)).touch()
        assert [int(path.name) for path in published(repository, MODEL)] == sorted(full, reverse=True)
        latest = newest(repository, MODEL)
        assert latest == (repository / MODEL / str(max(full)) if full else None)
        assert next_number(repository) == 1 + max(full | empty | files, default=0)


@given(others)
def test_what_triton_does_not_serve_is_no_number(name: str) -> None:
    assert not is_number(name)


def test_a_model_or_a_repository_that_is_missing_has_no_versions(tmp_path: Path) -> None:
    for repository in (tmp_path, tmp_path / "nowhere"):
        assert published(repository, MODEL) == []
        assert newest(repository, MODEL) is None
        assert next_number(repository) == 1
    (tmp_path / "file").touch()
    assert published(tmp_path / "file", MODEL) == []
    assert next_number(tmp_path / "file") == 1
    assert published(tmp_path, "file") == []


def test_the_next_number_is_higher_than_that_of_every_model(tmp_path: Path) -> None:
    make(tmp_path / "one" / "3")
    make(tmp_path / "other" / "11", empty=True)
    (tmp_path / "20").touch()  # not in a model's folder
    assert next_number(tmp_path) == 12


@pytest.mark.parametrize(
    ("versions", "kept", "behind"),
    [([1, 2, 3, 4], 4, []), ([1, 2, 3, 4, 5], 4, ["old"]), ([5], 1, ["old"]), ([], 4, [])],
)
def test_a_model_is_left_behind_once_its_tokenizer_is_no_longer_kept(
    tmp_path: Path, versions: list[int], kept: int, behind: list[str]
) -> None:
    for number in versions:
        make(tmp_path / "tokenizer" / str(number))
        make(tmp_path / "new" / str(number))
    make(tmp_path / "old" / "1")
    make(tmp_path / "unpublished" / "1", empty=True)
    models = ["tokenizer", "new", "old", "unpublished", "not there"]
    assert left_behind(tmp_path, models, "tokenizer", kept) == behind


def test_a_withdrawn_version_is_not_published_keeps_its_number_and_comes_back(tmp_path: Path) -> None:
    model = tmp_path / MODEL
    for number in (1, 7):
        make(model / str(number))
    withdrawn = withdraw(model / "7")
    assert newest(tmp_path, MODEL) == model / "1"
    assert list_withdrawn(model) == [withdrawn]
    assert not withdrawn.name[0].isdigit(), "Triton takes a folder named 7.anything for version 7"
    assert next_number(tmp_path) == 8
    assert bring_back(model, 1) is None
    assert bring_back(model, 7) == model / "7" == newest(tmp_path, MODEL)
    assert list_withdrawn(model) == []


def test_a_version_is_withdrawn_though_copies_of_its_number_were(tmp_path: Path) -> None:
    model = tmp_path / MODEL
    for copy in range(3):
        make(model / "7")
        (model / "7" / "copy").write_text(str(copy))
        withdraw(model / "7")
    assert {path.name: (path / "copy").read_text() for path in model.iterdir()} == {
        "withdrawn.7": "2",
        "withdrawn.7.1": "0",
        "withdrawn.7.2": "1",
    }
    assert list_withdrawn(model) == [model / "withdrawn.7"]
    assert next_number(tmp_path) == 8
    assert bring_back(model, 7) == model / "7" and (model / "7" / "copy").read_text() == "2"
