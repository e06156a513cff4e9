"""What a checkpoint's folder must hold, and that its hash covers what loading reads."""

import ctypes
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from finetune.checkpoint.files import CheckpointError, hash_checkpoint
from finetune.checkpoint.load import load_checkpoint
from tests.finetune.checkpoint.changes import make_adapter, score, set_config
from tests.tiny import make_checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 90868376\n"
IN_OPEN = 0x20
NOT_READ = ("optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json", "README.md", "model.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


@contextmanager
def opened(folder: Path) -> Iterator[set[str]]:
    """Names of the files in `folder` that this process opens, in any language: the kernel is asked (inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(descriptor, os.fsencode(folder), IN_OPEN) > 0
    names: set[str] = set()
    try:
        yield names
        events = os.read(descriptor, 1 << 20)
        while events:
            length = int.from_bytes(events[12:16], "little")
            names.add(events[16 : 16 + length].rstrip(b"\0").decode())
            events = events[16 + length :]
    finally:
        os.close(descriptor)
    names.discard("")  # the folder itself, listed


def sharded(folder: Path) -> None:
    BertForSequenceClassification.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)


def old_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "special_tokens_map.json").write_text('{"unk_token": "[UNK]"}')
    (folder / "added_tokens.json").write_text('{"w1": 6}')


def with_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize("change", [lambda folder: None, sharded, old_tokenizer, with_chat_template])
def test_the_hash_covers_exactly_the_files_that_loading_opens(folder: Path, change: Callable[[Path], None]) -> None:
    change(folder)
    for name in NOT_READ:
        (folder / name).write_bytes(b"{}")
    with opened(folder) as names:
        load_checkpoint(folder)
    assert set(hash_checkpoint(folder).files) == names


@pytest.mark.parametrize("own", [(), ("config.json",), ("config.json", "tokenizer.json", "tokenizer_config.json")])
def test_the_hash_of_an_adapter_covers_what_loading_opens_in_both_folders(
    folder: Path, tmp_path: Path, own: tuple[str, ...]
) -> None:
    adapter = make_adapter(tmp_path / "adapter", folder)
    for name in own:
        shutil.copy(folder / name, adapter)
    with opened(adapter) as names, opened(folder) as base:
        load_checkpoint(adapter)
    assert set(hash_checkpoint(adapter).files) == names | {f"base/{name}" for name in base}


@pytest.mark.parametrize("change", [lambda folder: None, sharded])
def test_the_hashed_files_alone_give_the_same_scores(
    folder: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    change(folder)
    for name in hash_checkpoint(folder).files:
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copy(folder / name, tmp_path / "copy" / name)
    np.testing.assert_array_equal(score(tmp_path / "copy"), score(folder))


def test_every_hashed_file_changes_the_hash(folder: Path) -> None:
    before = hash_checkpoint(folder)
    assert before.name == "checkpoint"
    assert before.files.keys() >= {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}
    for name in before.files:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b"\n")
        assert hash_checkpoint(folder).sha256 != before.sha256
        (folder / name).write_bytes(content)
    (folder / "optimizer.pt").write_bytes(b"other")
    assert hash_checkpoint(folder) == before


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "tokenizer_config.json"]
)
@pytest.mark.parametrize(
    ("content", "fault"), [(b"", "is empty"), (POINTER, "git-LFS pointer"), (None, "cannot be read")]
)
def test_a_file_that_is_not_itself_is_refused_by_name(
    folder: Path, name: str, content: bytes | None, fault: str
) -> None:
    (folder / name).unlink()
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: .*{fault}"):
        load_checkpoint(folder)


def test_a_folder_without_its_parts_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_checkpoint(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_checkpoint(tmp_path / "empty")
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights only"):
        load_checkpoint(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", ["{", "[1]", '"bert"', "null", "[" * 100_000, '{"model_type": "bert"'])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: (is not JSON|holds .*, not a JSON object)"):
        load_checkpoint(folder)


def test_other_architectures_are_refused(folder: Path) -> None:
    set_config(folder, model_type="roberta")
    with pytest.raises(CheckpointError, match="model_type 'roberta'; only 'bert'"):
        load_checkpoint(folder)


def test_a_missing_shard_is_refused_by_name(folder: Path) -> None:
    sharded(folder)
    shard = max(folder.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"names {shard.name}, which is not beside it"):
        load_checkpoint(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"classifier.weight": 3}, {"classifier.weight": "../other"}])
def test_a_broken_index_of_shards_is_refused(folder: Path, weight_map: object) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load_checkpoint(folder)


def test_a_file_cut_short_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be loaded"):
        load_checkpoint(folder)


def test_weights_stored_as_integers_are_refused_by_name(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"].char()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"classifier\.weight is stored as I8"):
        load_checkpoint(folder)
