"""The further heads of a jointly trained checkpoint, served by the real Triton, beside PyTorch's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from export.verify.evaluation import Checkpoint, choose_texts, read_checkpoint
from finetune.data.clicklog import read_click_log
from finetune.evaluation.scoring import score_passages, score_rows, score_texts, tokenize_pairs
from release.manifest import read_manifest, write_manifest
from release.names import EMBEDDING, HEAD_OUTPUTS, HEADS_JSON, LOGITS, PASSAGE_LOGITS, TOKENIZER_MODEL, TOPIC_LOGITS
from serving.server import Server
from tests.published import serve

Pairs = list[dict[str, list[int]]]


@pytest.fixture(scope="module")
def checkpoint(joint_checkpoint: Path) -> Checkpoint:
    return read_checkpoint(joint_checkpoint, None)


@pytest.fixture(scope="module")
def server(joint_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a plain tokenizer of a former release beside the joint one, which the newest config does not describe."""
    folder = tmp_path_factory.mktemp("joint") / "repository"
    shutil.copytree(joint_engines, folder, ignore=shutil.ignore_patterns("clickbert_trt_*"))
    former = shutil.copytree(folder / TOKENIZER_MODEL / "1", folder / TOKENIZER_MODEL / "0")
    model = onnx.load(former / "model.onnx")
    kept = [output for output in model.graph.output if output.name != HEADS_JSON]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, former / "model.onnx")
    write_manifest(former, read_manifest(former))
    with serve(folder) as server:
        yield server


def ask(server: Server, pairs: Pairs, *outputs: str, model: str = "clickbert_onnx") -> dict[str, np.ndarray]:
    """The outputs [pairs, width] of one request, as it would be sent by hand."""
    tensors = {name: [one for pair in pairs for one in pair[name]] for name in ("input_ids", "token_type_ids")}
    tensors["lengths"] = [len(pair["input_ids"]) for pair in pairs]
    return infer(server, model, outputs, **{name: np.array([values], np.int32) for name, values in tensors.items()})


def infer(
    server: Server, model: str, outputs: tuple[str, ...], version: str = "", **tensors: np.ndarray
) -> dict[str, np.ndarray]:
    inputs = []
    for name, array in tensors.items():
        inputs.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    with triton.InferenceServerClient(server.addresses.grpc) as client:
        asked = [triton.InferRequestedOutput(name) for name in outputs]
        answer = client.infer(model, inputs, version, outputs=asked)
    found = {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}
    return {name: array[0] if tensors else array for name, array in found.items()}


@pytest.fixture(scope="module")
def texts(published_log: Path) -> list[str]:
    return choose_texts(read_click_log(published_log))[:90]


@pytest.fixture(scope="module")
def singles(checkpoint: Checkpoint, texts: list[str]) -> Pairs:
    """`[CLS] text [SEP]`, token types 0."""
    ids = checkpoint.tokenizer(texts, truncation=True, max_length=checkpoint.max_length)["input_ids"]
    return [{"input_ids": own, "token_type_ids": [0] * len(own)} for own in ids]


def ask_in_parts(server: Server, pairs: Pairs, *outputs: str, model: str = "clickbert_onnx") -> dict[str, np.ndarray]:
    answers = [ask(server, pairs[start : start + 30], *outputs, model=model) for start in range(0, len(pairs), 30)]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def test_topics_and_embeddings_equal_pytorchs(
    server: Server, checkpoint: Checkpoint, texts: list[str], singles: Pairs
) -> None:
    expected = score_texts(checkpoint.model, checkpoint.heads, checkpoint.tokenizer, texts, checkpoint.max_length)
    found = ask_in_parts(server, singles, TOPIC_LOGITS, EMBEDDING)
    assert set(found) == {TOPIC_LOGITS, EMBEDDING}
    for name, values in found.items():
        assert values.dtype == np.float32
        assert np.allclose(values, expected[name], atol=1e-5), name
    assert np.std(expected[EMBEDDING], axis=0).min() > 0.01, "embeddings that differ"
    reduced = ask_in_parts(server, singles, TOPIC_LOGITS, EMBEDDING, model="clickbert_onnx_int8")
    assert (reduced[EMBEDDING] * expected[EMBEDDING]).sum(axis=1).min() > 0.9
    assert np.allclose(np.linalg.norm(reduced[EMBEDDING], axis=1), 1, atol=1e-5)


def test_the_click_and_what_a_passage_counts_equal_pytorchs(
    server: Server, checkpoint: Checkpoint, published_log: Path
) -> None:
    rows = read_click_log(published_log)[:60]
    pairs = tokenize_pairs(checkpoint.tokenizer, rows, checkpoint.max_length)
    found = ask_in_parts(server, pairs)
    assert set(found) == {LOGITS, *HEAD_OUTPUTS}, "a request that names no outputs gets all"
    logits = score_rows(checkpoint.model, checkpoint.tokenizer, rows, checkpoint.max_length)
    assert np.allclose(found[LOGITS], logits, atol=1e-5)
    _, weights = score_passages(checkpoint.model, checkpoint.heads, checkpoint.tokenizer, pairs)
    assert weights is not None
    assert np.allclose(found[PASSAGE_LOGITS][:, 0], weights, atol=1e-5)
    assert set(ask(server, pairs[:3], LOGITS)) == {LOGITS}


def test_a_tokenizer_of_a_former_release_answers_with_what_it_has(server: Server) -> None:
    current = infer(server, TOKENIZER_MODEL, (), "1")
    former = infer(server, TOKENIZER_MODEL, tuple(current), "0")
    assert current.keys() - former.keys() == {HEADS_JSON}
    assert all(np.array_equal(former[name], current[name]) for name in former)
