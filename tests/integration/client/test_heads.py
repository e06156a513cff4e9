"""The client's further calls against `finetune`'s own: the same tokens, the same aggregation, the same results.

The click model is PyTorch's, behind a gRPC server in this process, so nothing of an export is judged here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from clickbert import Ranker
from clickbert.wire import heads as client_heads
from clickbert.wire.protocol import InferRequest, InferResponse
from clickbert.wire.tokenization import PairTokenizer
from finetune.checkpoint.heads import Heads, HeadSettings, Passages
from finetune.checkpoint.load import load_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import click_probability
from finetune.evaluation.scoring import aggregate, pad, score_documents, score_texts, tokenize_passages
from finetune.names import AGGREGATES
from tests.client.fake_model import Published
from tests.client.fakes import FakeTriton, grpc_server
from tests.client.wire.test_pair_tokenizer_parity import bert_folders, load, texts
from tests.tiny import WORDS

PROPERTY = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", params=bert_folders(), ids=lambda folder: "real" if folder else "tiny")
def tokenizers(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp("tiny"))


@PROPERTY
@given(
    st.lists(st.tuples(texts([1, 3]), texts([1, 7, 30])), min_size=1, max_size=3),
    st.sampled_from([4, 5, 8, 16, 31, 128]),
    st.sampled_from([0, 1, 5, 32, 1000]),
)
def test_passages_have_the_tokens_that_training_has(tokenizers, pairs, max_length, overlap):
    reference, content = tokenizers
    for query, document in pairs:
        # An empty document beside a query that is too long: one passage here, an error there.
        assume(reference.tokenize(document) or len(reference.tokenize(query)) <= max_length - 3)
    expected = [tokenize_passages(reference, *pair, max_length, overlap) for pair in pairs]
    tokenizer = PairTokenizer(content, max_length)
    split = tokenizer.split_into_windows(pairs, overlap)
    assert [len(windows) for windows in split] == [len(passages) for passages in expected]
    windows, passages = ([one for of_pair in each for one in of_pair] for each in (split, expected))
    packed = tokenizer.pack_windows(windows)
    assert packed.lengths.tolist() == [window.tokens for window in windows]
    assert packed.lengths.tolist() == [len(passage["input_ids"]) for passage in passages]
    assert packed.input_ids.tolist() == [token for passage in passages for token in passage["input_ids"]]
    assert packed.token_type_ids.tolist() == [kind for passage in passages for kind in passage["token_type_ids"]]


numbers = st.floats(-1e4, 1e4, width=32)


@PROPERTY
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12), st.sampled_from(AGGREGATES), st.integers(1, 15))
def test_passages_are_aggregated_as_in_training(rows, how, best):
    logits, weights = np.array(rows, np.float32).T
    expected = aggregate(logits, weights, Passages(how, 0, best))
    assert client_heads.aggregate(logits, weights, client_heads.Passages(how, 0, best)) == expected


class PyTorchTriton(FakeTriton):
    """Answers with a checkpoint's outputs, by Hugging Face's padded forward pass."""

    def __init__(self, checkpoint: Path, settings: HeadSettings) -> None:
        self.model, self.tokenizer, self.max_length = load_checkpoint(checkpoint)
        torch.manual_seed(7)
        self.heads = Heads(settings, self.model.config.hidden_size).eval()
        content = (checkpoint / "tokenizer.json").read_bytes()
        super().__init__({1: Published(content, self.max_length, heads=asdict(settings))})
        self.parameters = {"max_elements.lengths": "7"}

    def infer(self, request: InferRequest, caller: str = "") -> InferResponse:
        if request.model != "clickbert_onnx":
            return super().infer(request, caller)
        ids, types, lengths = (request.inputs[name][0] for name in ("input_ids", "token_type_ids", "lengths"))
        ends = np.cumsum(lengths)[:-1]
        pairs = [
            {"input_ids": one.tolist(), "token_type_ids": kinds.tolist()}
            for one, kinds in zip(np.split(ids, ends), np.split(types, ends), strict=True)
        ]
        with torch.inference_mode():
            states = self.model.bert(**pad(self.tokenizer, pairs))
            rows = self.heads(states.last_hidden_state[:, 0])
            rows["logits"] = self.model.classifier(states.pooler_output)
        return InferResponse("1", {name: rows[name].numpy()[np.newaxis] for name in request.outputs})


TEXTS = ["", "w1", " ".join(WORDS), " ".join(WORDS * 20), "w3 w4"]
DOCUMENTS = [" ".join(WORDS[start:] * times) for start in (0, 3) for times in (1, 5, 15)]


@pytest.fixture(scope="module", params=[("max", 1), ("mean", 2), ("attention", 1)], ids=lambda param: param[0])
def served(request, published_checkpoint: Path) -> Iterator[tuple[PyTorchTriton, Ranker]]:
    how, best = request.param
    server = PyTorchTriton(published_checkpoint, HeadSettings(("a", "b", "c"), False, 8, Passages(how, 4, best)))
    with grpc_server(server) as url, Ranker(url, timeout=60) as ranker:
        yield server, ranker


def test_topics_and_embeddings_are_the_checkpoints(served):
    server, ranker = served
    expected = score_texts(server.model, server.heads, server.tokenizer, TEXTS, server.max_length)
    np.testing.assert_allclose(ranker.embed(TEXTS), expected["embedding"], atol=1e-5)
    cosines = expected["embedding"] @ expected["embedding"][1]
    assert ranker.similarity(TEXTS[1], TEXTS) == pytest.approx(cosines.tolist(), abs=1e-5)
    probabilities = torch.tensor(expected["topic_logits"]).softmax(dim=1).tolist()
    for found, row in zip(ranker.classify(TEXTS), probabilities, strict=True):
        assert found == pytest.approx(dict(zip("abc", row, strict=True)), abs=1e-5)


def test_long_documents_score_as_the_checkpoint_reads_them(served):
    server, ranker = served
    pairs = [(query, document) for query in ("", "w1 w2", " ".join(WORDS * 9)) for document in DOCUMENTS]
    rows = [ClickRow("g", query, document, 0, 1) for query, document in pairs]
    logits = score_documents(server.model, server.heads, server.tokenizer, rows, server.max_length)
    expected = click_probability(logits, ("click",)).tolist()
    assert ranker.score_pairs(pairs, long_documents="passages") == pytest.approx(expected, abs=1e-5)
    assert len(server.tokenizer(DOCUMENTS[-1])["input_ids"]) > 3 * server.max_length
    ranked = ranker.rank("w1 w2", DOCUMENTS, long_documents="passages")
    by_index = expected[len(DOCUMENTS) : 2 * len(DOCUMENTS)]
    assert [item.score for item in ranked] == pytest.approx(sorted(by_index, reverse=True), abs=1e-5)
