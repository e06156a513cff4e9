"""`heads_json`: every field is checked. And what the further outputs mean, against plain Python."""

import json
from dataclasses import replace

import numpy as np
import pytest

from clickbert import ProtocolError, Ranker
from clickbert.wire.heads import Heads, Passages, cosines, read_heads, topic_probabilities
from tests.client.fake_model import Published
from tests.client.fakes import FakeTransport, FakeTriton

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: properties are not checked")
st = hypothesis.strategies

PASSAGES = {"aggregate": "mean", "overlap": 32, "best": 3}
WHOLE = {"topics": ["a", "b"], "several_topics": True, "embedding_size": 128, "passages": PASSAGES}


def test_every_field_is_read():
    assert read_heads(WHOLE, "here") == Heads(("a", "b"), True, 128, Passages("mean", 32, 3))
    assert read_heads(WHOLE | {"passages": None, "later": [1]}, "here").passages is None


BROKEN = [
    ("heads_json", None),
    ("heads_json", []),
    ("topics", None),
    ("topics", "ab"),
    ("topics", ["a", 1]),
    ("topics", ["a", "a"]),
    ("several_topics", 1),
    ("several_topics", None),
    ("embedding_size", -1),
    ("embedding_size", 1.0),
    ("embedding_size", True),
    ("embedding_size", "128"),
    ("passages", []),
    ("passages", {}),
    ("aggregate", "median"),
    ("aggregate", ["max"]),
    ("overlap", -1),
    ("overlap", True),
    ("best", 0),
    ("best", None),
]


@pytest.mark.parametrize("field, value", BROKEN)
def test_a_broken_field_is_named(field, value):
    if field == "heads_json":
        broken = value
    elif field in PASSAGES:
        broken = WHOLE | {"passages": PASSAGES | {field: value}}
    else:
        broken = WHOLE | {field: value}
    with pytest.raises(ProtocolError, match=rf"here: .*{field}.* expected .*; publish the model again"):
        read_heads(broken, "here")


@pytest.mark.parametrize("field", [*WHOLE, *PASSAGES])
def test_a_missing_field_is_named(field):
    passages = {name: value for name, value in PASSAGES.items() if name != field}
    broken = {name: value for name, value in (WHOLE | {"passages": passages}).items() if name != field}
    with pytest.raises(ProtocolError, match=f"'{field}' is missing"):
        read_heads(broken, "here")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["max", "attention"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def nearly(whole: dict) -> "st.SearchStrategy[dict]":
    """The object with some fields replaced by anything, or missing."""
    fields = {name: st.just(value) | values for name, value in whole.items()}
    return st.fixed_dictionaries({}, optional=fields)


documents = values | nearly(WHOLE) | st.builds(lambda heads, passages: heads | {"passages": passages},
                                               nearly(WHOLE), nearly(PASSAGES))  # fmt: skip
raw = st.one_of(
    st.binary(max_size=40),
    documents.map(lambda document: json.dumps(document).encode()),
    st.sampled_from([b"[" * 100_000, b"[" * 900 + b"]" * 900, b'{"topics": ' + b"9" * 5000 + b"}", b"", b"NaN"]),
)


@hypothesis.settings(max_examples=200)
@hypothesis.given(raw)
def test_any_bytes_give_a_release_or_a_protocol_error(content):
    server = FakeTriton()

    def replaced(answer):
        if "tokenizer_json" not in answer.outputs:
            return answer
        return replace(answer, outputs={**answer.outputs, "heads_json": np.frombuffer(content, np.uint8)})

    server.after_infer = replaced
    with Ranker("localhost:8001", transport=FakeTransport(server)) as ranker:
        try:
            ranked = ranker.rank("tea", ["a bar"])
        except ProtocolError as error:
            assert "heads_json" in str(error) and len(str(error)) < 1000
        else:
            assert len(ranked) == 1
            heads = ranker._session.releases.find(None).heads
            assert heads.embedding_size >= 0 and isinstance(heads.several_topics, bool)


def test_a_server_of_an_older_release_has_no_heads_and_is_asked_for_everything():
    server = FakeTriton({1: Published()})
    with Ranker("localhost:8001", transport=FakeTransport(server)) as ranker:
        ranker.rank("tea", ["a bar"])
        assert ranker._session.releases.find("1").heads == Heads()
    assert [request.outputs for request in server.requests] == [(), ("logits",)]


@pytest.mark.parametrize(
    "name, array, message",
    [
        ("topic_logits", np.zeros((1, 1, 3), np.float32), r"float32\[1, 1, 3\], expected float32\[1, 1, 2\]"),
        ("topic_logits", np.full((1, 1, 2), np.nan, np.float32), "the topic_logits of 1 of 1 pairs are not finite"),
        ("topic_logits", None, "no 'topic_logits'"),
        ("embedding", np.zeros((1, 1, 5), np.float64), "float64"),
        ("embedding", np.full((1, 1, 5), np.inf, np.float32), "the embedding of 1 of 1 pairs are not finite"),
    ],
)
def test_a_broken_output_is_a_protocol_error(name, array, message):
    server = FakeTriton({1: Published(heads=WHOLE | {"embedding_size": 5})})

    def spoil(answer):
        outputs = {key: value for key, value in answer.outputs.items() if key != name}
        if name in answer.outputs and array is not None:
            outputs[name] = array
        return replace(answer, outputs=outputs)

    server.after_infer = spoil
    ranker = Ranker("localhost:8001", transport=FakeTransport(server))
    with pytest.raises(ProtocolError, match=message):
        ranker.classify(["a"]) if name == "topic_logits" else ranker.embed(["a"])


def test_probabilities_of_extreme_logits_stay_finite():
    logits = np.array([[3e38, -3e38], [-3e38, 3e38]], np.float32)
    for several in (False, True):
        found = topic_probabilities(logits, Heads(("a", "b"), several))
        assert found == [{"a": 1.0, "b": 0.0}, {"b": 1.0, "a": 0.0}]
        assert [next(iter(topics)) for topics in found] == ["a", "b"]


def test_the_earlier_topic_wins_a_tie():
    (found,) = topic_probabilities(np.zeros((1, 3), np.float32), Heads(("b", "a", "c")))
    assert list(found) == ["b", "a", "c"]


def test_rounding_leads_to_no_cosine_beyond_one():
    row = np.full(3, 0.5774, np.float32)  # a little longer than 1
    assert cosines(np.stack([row, row, -row])) == [1.0, -1.0]
