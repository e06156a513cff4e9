"""Test 25: no pickle is ever loaded, whatever it is called, and no name leads out of the folder it is looked up in."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from safetensors.torch import load_file
from tritonclient.utils import InferenceServerException

from clickbert import ModelNotFoundError, Ranker
from export.__main__ import main as export
from export.plan import newest_versions
from export.publish import PublishError, staged
from export.verify.gates import GateError
from export.verify.saved_gate import gate
from finetune.__main__ import main as finetune
from finetune.checkpoint.files import CheckpointError, hash_checkpoint
from finetune.checkpoint.heads import read_heads
from finetune.checkpoint.load import load_checkpoint
from finetune.training.run_folder import last_checkpoint
from release.manifest import read_manifest, write_manifest
from release.stamp import PlanError
from release.versions import is_number, published
from serving.asking import ask_versions, asking
from serving.repository.loading import load
from serving.repository.verification import verify_models
from serving.server import Server
from serving.triton import ServingError
from tests.figures import Figures
from tests.finetune.checkpoint.changes import make_adapter, score
from tests.finetune.training.test_resume import command, stop
from tests.published import as_admin, publish, serve
from tests.tiny import make_checkpoint, make_click_log

TEST = 25
ROOT = Path(__file__).parents[3]
ROOMS = ("release", "finetune", "export", "serving", "client", "benchmarks", "deploy")
# What frameworks leave in a checkpoint's folder, each of them a pickle.
DECOYS = (
    *("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"),
    *("adapter_model.bin", "heads.bin", "tokenizer.pkl", "model.pkl", "vocab.pkl", "tf_model.h5", "flax_model.msgpack"),
)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.crater),)

    def pickled(self) -> bytes:
        return pickle.dumps(self)

    def saved(self) -> bytes:
        """As `torch.save` writes it."""
        buffer = io.BytesIO()
        torch.save(self, buffer)
        return buffer.getvalue()


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[Bomb]:
    """It must not have gone off at the end of the test."""
    bomb = Bomb(tmp_path / "crater")
    yield bomb
    assert not bomb.crater.exists(), "a pickle was loaded"


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    for number, unpickle in enumerate((pickle.loads, lambda data: torch.load(io.BytesIO(data), weights_only=False))):
        bomb = Bomb(tmp_path / str(number))
        unpickle(bomb.saved() if number else bomb.pickled())
        assert bomb.crater.exists()


@pytest.mark.parametrize("form", ["pickled", "saved"])
def test_a_checkpoint_of_pickles_alone_is_refused(tmp_path: Path, capsys, bomb: Bomb, form: str) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    (folder / "model.safetensors").unlink()
    for name in DECOYS:
        (folder / name).write_bytes(getattr(bomb, form)())
    log = make_click_log(tmp_path / "log.jsonl")
    paths = ["--checkpoint", str(folder), "--repository", str(tmp_path / "repository"), "--evaluation", str(log)]
    assert export([*paths, "--engine", "onnx", "--report", str(tmp_path / "report.html")]) == 1
    assert "pickled weights only (pytorch_model.bin), which can run code" in capsys.readouterr().err
    (tmp_path / "data").mkdir()
    for split in ("train", "dev", "test"):
        shutil.copy(log, tmp_path / "data" / f"{split}.jsonl")
    train = ["train", "--data", str(tmp_path / "data"), "--base-model", str(folder), "--output", str(tmp_path / "out")]
    assert finetune(train) == 1
    assert "pickled weights only" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["pickled", "saved"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "heads.safetensors", "tokenizer.json", "vocab.txt", "config.json"]
)
def test_a_pickle_under_another_files_name_is_refused(
    joint_checkpoint: Path, tmp_path: Path, bomb: Bomb, name: str, form: str
) -> None:
    folder = shutil.copytree(joint_checkpoint, tmp_path / "checkpoint")
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(getattr(bomb, form)())
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)
        read_heads(folder, hidden_size=32)


def test_an_adapter_of_pickles_is_refused(tmp_path: Path, bomb: Bomb) -> None:
    adapter = make_adapter(tmp_path / "adapter", make_checkpoint(tmp_path / "base"))
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(bomb.saved())
    with pytest.raises(CheckpointError, match=r"has adapter_config.json, but no adapter_model\.safetensors"):
        load_checkpoint(adapter)


@pytest.mark.reliability
def test_pickles_beside_a_checkpoint_are_not_looked_at(tmp_path: Path, bomb: Bomb) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    before = score(folder)
    for name in DECOYS:
        (folder / name).write_bytes(bomb.saved())
    publish(folder, tmp_path / "repository", make_click_log(tmp_path / "log.jsonl", groups=50))
    assert np.array_equal(score(folder), before)
    assert not set(hash_checkpoint(folder).files) & set(DECOYS)


@pytest.mark.reliability
def test_a_stopped_run_is_not_continued_with_a_pickle(tmp_path: Path, bomb: Bomb) -> None:
    base, data, run = make_checkpoint(tmp_path / "base"), tmp_path / "data", tmp_path / "out-run"
    data.mkdir()
    for split in ("train", "dev", "test"):
        make_click_log(data / f"{split}.jsonl", groups=30)
    arguments = command(base, data, tmp_path / "out")
    stop(arguments, run, signal.SIGINT)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        checkpoint = last_checkpoint(run)
        assert checkpoint
        kept = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(bomb.saved())
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            finetune(arguments[3:])
        (checkpoint / name).write_bytes(kept)
    assert not (tmp_path / "out").exists()


def test_a_gate_with_pickled_arrays_is_refused(tmp_path: Path, bomb: Bomb) -> None:
    version = tmp_path / "clickbert_trt_fp16/1"
    version.mkdir(parents=True)
    np.savez(version / "gate.npz", facts=np.array([bomb], dtype=object))
    with pytest.raises(GateError, match=r"gate\.npz cannot be read"):
        gate(version, lambda feed: {}, ())


@pytest.mark.parametrize("model", ["clickbert_onnx", "clickbert_tokenizer"])
def test_a_published_graph_that_is_a_pickle_is_not_served(
    published_repository: Path, tmp_path: Path, bomb: Bomb, model: str
) -> None:
    repository = shutil.copytree(published_repository, tmp_path / "repository")
    version = repository / model / "1"
    (version / "model.onnx").write_bytes(bomb.saved())
    write_manifest(version, read_manifest(version))  # under a manifest that fits
    with pytest.raises(ServingError):
        with serve(repository):
            pass


def test_nothing_in_this_repository_loads_pickles(figures: Figures) -> None:
    """Who wants a module that does must find another way, or argue with this test."""
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    loaders = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.split(".")[0] for name in names} & loaders:
                found.append(f"{path}:{node.lineno} imports {names}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "torch.load",
                "torch.hub.load",
                "eval",
                "exec",
            ):
                found.append(f"{path}:{node.lineno} calls {ast.unparse(node.func)}")
            if (
                isinstance(node, ast.keyword)
                and node.arg in ("allow_pickle", "trust_remote_code")
                and ast.unparse(node.value) != "False"  # which says that it must not
            ):
                found.append(f"{path}:{node.lineno} has {node.arg}")
    assert len(files) > 200
    figures.exactly(TEST, "places in this repository that load pickles or run code of a checkpoint", len(found), 0)


# Names that lead elsewhere. OUTSIDE stands for a folder beside the one that they are looked up in.
ELSEWHERE = (
    *("../OUTSIDE", "./../OUTSIDE", "1/../../OUTSIDE", "..", ".", "/", "/etc/passwd", "..\\OUTSIDE", "%2e%2e/OUTSIDE"),
    *("..%2fOUTSIDE", "\uff0e\uff0e/OUTSIDE", "OUTSIDE\0", "~root", "$HOME", "a;touch b", "$(touch b)"),
)


def test_shards_elsewhere_are_refused(tmp_path: Path, figures: Figures) -> None:
    folder, outside = make_checkpoint(tmp_path / "checkpoint"), make_checkpoint(tmp_path / "outside")
    index = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").unlink()
    weights = dict.fromkeys(load_file(outside / "model.safetensors"))
    names = [*ELSEWHERE, "../outside/model.safetensors", str(outside / "model.safetensors"), "a/../../outside/x"]
    refused = 0
    for name in names:
        index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, name)}), encoding="utf-8")
        with pytest.raises((CheckpointError, ValueError), match=r"model\.safetensors\.index\.json|cannot be read|null"):
            load_checkpoint(folder)
        refused += 1
    figures.exactly(TEST, "names of shards outside the checkpoint refused", refused, len(names))


@pytest.mark.parametrize("field", ["tokenizer_file", "vocab_file", "added_tokens_file", "special_tokens_map_file"])
def test_a_tokenizers_files_are_those_of_its_folder(tmp_path: Path, field: str) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    outside = make_checkpoint(tmp_path / "outside", words=[f"w{number}" for number in range(149, -1, -1)])
    own = load_checkpoint(folder)[1]("w1 w2")["input_ids"]
    assert load_checkpoint(outside)[1]("w1 w2")["input_ids"] != own
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name in (str(outside / "tokenizer.json"), "../outside/tokenizer.json", "../outside/vocab.txt"):
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, field: name}), encoding="utf-8")
        assert load_checkpoint(folder)[1]("w1 w2")["input_ids"] == own


def test_versions_are_plain_numbers(tmp_path: Path, figures: Figures) -> None:
    names = [*ELSEWHERE, "1/../2", "01", "+1", "-1", "1.0", "1e3", " 1", "1 ", "1\n", "\u0661", "\uff11", str(2**63)]
    assert is_number("1")
    figures.exactly(TEST, "names that are no version taken for one", sum(map(is_number, names)), 0)
    for name in ("01", "+1", "1.0", "\u0661", "1 ", ".staging"):
        (tmp_path / "model" / name).mkdir(parents=True)
        (tmp_path / "model" / name / "model.onnx").write_bytes(b"x")
    assert not published(tmp_path, "model")


def test_a_plan_is_built_of_models_in_the_repository_alone(published_engines: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    shutil.copytree(published_engines / "clickbert_trt_fp16", tmp_path / "outside")
    for name in ("../outside", str(tmp_path / "outside"), "..", "/"):
        with pytest.raises(PlanError, match="holds no published model"):
            newest_versions(repository, [name])


def test_an_export_writes_through_no_link(tmp_path: Path) -> None:
    """Somebody else who may write there has put one in the way."""
    repository, outside = tmp_path / "repository", tmp_path / "outside"
    (repository / "clickbert_onnx").mkdir(parents=True)
    outside.mkdir()
    (outside / "precious").write_text("kept", encoding="utf-8")
    (repository / "clickbert_onnx" / ".staging").symlink_to(outside)
    with suppress(PublishError):
        with staged(repository, ["clickbert_onnx"], {"logits": 1}) as (_, folders):
            (folders["clickbert_onnx"] / "model.onnx").write_bytes(b"x")
    assert [path.name for path in outside.iterdir()] == ["precious"]


def outside() -> list[str]:
    """The names that lead elsewhere, some of them to a model that would load."""
    models = ("clickbert_onnx", "clickbert_tokenizer", "")
    return list(dict.fromkeys(name.replace("OUTSIDE", f"outside/{model}") for name in ELSEWHERE for model in models))


@pytest.fixture
def server(published_repository: Path, tmp_path: Path) -> Iterator[Server]:
    """Beside its repository lies another, with a model that Triton itself would load as ../outside/clickbert_onnx."""
    repository = shutil.copytree(published_repository, tmp_path / "repository")
    shutil.copytree(published_repository, tmp_path / "outside")
    config = tmp_path / "outside/clickbert_onnx/config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace('name: "clickbert_onnx"', ""), encoding="utf-8")
    with serve(repository) as server:
        yield server


def test_no_name_in_a_callers_request_leads_the_server_elsewhere(server: Server, figures: Figures) -> None:
    names, refused = outside(), 0
    client = triton.InferenceServerClient(server.addresses.grpc)
    for name in names:
        with pytest.raises(InferenceServerException, match="is restricted"):
            client.load_model(name)
        with pytest.raises(InferenceServerException):
            client.get_model_config(name)
        with suppress(InferenceServerException):  # a version: Triton reads digits alone, "1/../.." as 1
            assert client.get_model_metadata("clickbert_onnx", name).versions == ["1"]
        with Ranker(server.addresses.grpc, model=name or "..") as ranker, pytest.raises(ModelNotFoundError):
            ranker.rank("w1", ["w2"])
        refused += 1
    with Ranker(server.addresses.grpc) as ranker:
        assert ranker.rank("w1", ["w2"])
    figures.exactly(TEST, "names outside the repository refused by the server", refused, len(names))


def test_no_name_leads_the_operators_load_elsewhere(server: Server, tmp_path: Path, figures: Figures) -> None:
    before = sorted(path.relative_to(tmp_path) for path in (tmp_path / "outside").rglob("*"))
    names, refused = outside(), 0
    for name in names:
        for number in (None, 1):
            with pytest.raises(ServingError, match=r"is no model's name|has no (published )?version"):
                load(server.repository, server.addresses, server.security, name, number)
        refused += 1
    assert {each.model for each in index(server)} == {"clickbert_onnx", "clickbert_onnx_int8", "clickbert_tokenizer"}
    assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "outside").rglob("*")) == before
    figures.exactly(TEST, "names outside the repository refused by `python -m serving load`", refused, len(names))


def index(server: Server) -> list[Any]:
    with asking(server.addresses, server.security) as client:
        return list(ask_versions(client, as_admin(server)))


@pytest.mark.parametrize("what", ["1/model.onnx", "1", "config.pbtxt"])
@pytest.mark.parametrize("model", ["clickbert_onnx", "clickbert_tokenizer"])
def test_a_link_out_of_the_repository_is_not_served(
    published_repository: Path, tmp_path: Path, model: str, what: str
) -> None:
    """Even where it leads to the same bytes: somebody else may change them when they were verified."""
    repository = shutil.copytree(published_repository, tmp_path / "repository")
    elsewhere = tmp_path / "elsewhere"
    (repository / model / what).rename(elsewhere)
    (repository / model / what).symlink_to(elsewhere)
    with pytest.raises(ServingError, match=f"{what} leads out of the repository, to {elsewhere}"):
        with serve(repository):
            pass


def test_a_link_within_the_repository_is_served(published_repository: Path, tmp_path: Path) -> None:
    """As volumes have them that are switched as a whole."""
    repository = shutil.copytree(published_repository, tmp_path / "repository")
    (repository / "clickbert_onnx/1").rename(repository / "clickbert_onnx/data")
    (repository / "clickbert_onnx/1").symlink_to("data")
    verify_models(repository, ["clickbert_onnx", "clickbert_tokenizer"])
