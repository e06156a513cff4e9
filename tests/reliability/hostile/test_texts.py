"""Test 15: texts of every kind are scored as PyTorch scores them, or refused before anything is sent."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from clickbert import InvalidInputError, Ranker
from clickbert.masking import Masking
from serving.server import Server
from tests.figures import Figures
from tests.integration.scores import as_rows, in_pytorch

TEST = 15
MEGABYTE = 2**20
FAR = 5_000  # characters; the model reads 48 tokens
PATIENCE = 60  # seconds: two cores do much else
WORDS = "w1 w2 w3 w4 w5"

SCORED = {
    "empty": "",
    "blanks": " \t\r\n\u00a0\u2003\u3000",
    "a megabyte of words": "w1 w22 w333 " * (MEGABYTE // 12),
    "a megabyte without a blank": "w" * MEGABYTE,
    "a megabyte of Chinese": "今天的天气很好" * (MEGABYTE // 21),
    "a megabyte of emoji": "😀" * (MEGABYTE // 4),
    "a megabyte of accents": "e" + "\u0301" * (MEGABYTE // 2),
    "a megabyte of special tokens": "[SEP]" * (MEGABYTE // 5),
    "emoji": "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 1️⃣ w1",
    "right to left": "مرحبا بالعالم w1 שלום עולם",
    "marks of direction": "\u202eabc\u202c \u2066w1\u2069 \u200f\u061cw2",
    "NUL": "w1\0w2 \0",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x80\x9f w1",
    "noncharacters": "w1 \ufffe\uffff\ufdd0\U0010ffff w2",
    "byte order mark": "\ufeffw1",
    "replacement character": "w1\ufffdw2",
    "joiners": "w1\u200b\u200d\u00ad\u2060w2",
    "combining": "Zw̶͓̓a̷͖͐l̸̰̈́g̵o w1",
    "ligatures and full-width": "ﬁ ｗ１ ㎏ Ⅷ ǆ",  # noqa: RUF001
    "case that grows": "İI ẞß ŉ",
    "special tokens": "[CLS] w1 [SEP] [MASK] [PAD] [UNK] ##w",
    "like a format": "%s {0} ${HOME} \\x00 '; DROP TABLE users; -- <script>",
    "private use": "\ue000\U000f0000 w1",
}
REFUSED = {
    "a high surrogate": "w1 \ud83d w2",
    "a low surrogate": "\udc80",
    "surrogates in the wrong order": "\ude00\ud83d",
    "at the end of a megabyte": "w" * MEGABYTE + "\udfff",
}


def reference(checkpoint: Path, pairs: list[tuple[str, str]]) -> np.ndarray:
    """PyTorch's scores. A pair of two very long texts it gets cut, because the tokenizers library takes memory for each
    part of the one with each part of the other: far behind what the model reads."""
    cut = [(a[:FAR], b[:FAR]) if min(len(a), len(b)) > FAR else (a, b) for a, b in pairs]
    short = [pair for pair in cut if max(map(len, pair)) <= FAR]
    scores = dict(zip(short, in_pytorch(checkpoint, as_rows(short)), strict=True))
    # One at a time, for the same reason.
    return np.array([scores[pair] if pair in scores else in_pytorch(checkpoint, as_rows([pair]))[0] for pair in cut])


@pytest.mark.reliability
def test_texts_of_every_kind_are_scored_as_pytorch_does(
    published_server: Server, published_checkpoint: Path, figures: Figures
) -> None:
    pairs = [pair for text in SCORED.values() for pair in ((WORDS, text), (text, WORDS), (text, text))]
    with Ranker(published_server.addresses.grpc, timeout=PATIENCE) as ranker:
        found = np.array(ranker.score_pairs(pairs))
        ranked = ranker.rank(WORDS, list(SCORED.values()))
    expected = reference(published_checkpoint, pairs)
    assert [item.text for item in ranked] == [list(SCORED.values())[item.index] for item in ranked]
    figures.exactly(
        TEST, "kinds of texts scored, each as query and document", np.isfinite(found).sum() / 3, len(SCORED)
    )
    figures.at_most(TEST, "largest difference of a score from PyTorch's", float(abs(found - expected).max()), 1e-5)


@pytest.mark.parametrize("place", ["query", "document"])
def test_texts_that_are_none_are_refused_before_anything_is_sent(
    published_server: Server, figures: Figures, place: str
) -> None:
    refused = 0
    with Ranker(published_server.addresses.grpc, timeout=PATIENCE) as ranker:
        for text in REFUSED.values():
            query, documents = (text, [WORDS]) if place == "query" else (WORDS, [WORDS, text])
            with pytest.raises(InvalidInputError, match="lone surrogate"):
                ranker.rank(query, documents)
            refused += 1
        assert ranker.rank(WORDS, [WORDS])
    figures.exactly(TEST, f"lone surrogates in a {place} refused by name", refused, len(REFUSED))


@pytest.mark.reliability
def test_ten_thousand_candidates_are_scored_if_the_ranker_allows_them(
    published_server: Server, published_checkpoint: Path, figures: Figures
) -> None:
    documents = [f"w{number % 150} w{number // 150}" for number in range(10_000)]
    url = published_server.addresses.grpc
    with Ranker(url, timeout=PATIENCE) as ranker:
        with pytest.raises(InvalidInputError, match=r"has 10,000 entries, .* raise max_documents"):
            ranker.rank(WORDS, documents)
    with Ranker(url, timeout=PATIENCE, max_documents=len(documents)) as ranker:
        ranked = ranker.rank(WORDS, documents)
    assert [item.text for item in ranked] == [documents[item.index] for item in ranked]
    assert sorted(item.index for item in ranked) == list(range(len(documents)))
    expected = in_pytorch(published_checkpoint, as_rows([(WORDS, document) for document in documents]))
    found = np.array([item.score for item in sorted(ranked, key=lambda item: item.index)])
    figures.exactly(TEST, "candidates of one call scored", len(found), 10_000)
    figures.at_most(TEST, "largest difference among them from PyTorch's", float(abs(found - expected).max()), 1e-5)


@pytest.mark.reliability
def test_a_hostile_megabyte_is_masked_in_time(figures: Figures) -> None:
    """The texts of tests/client/masking/test_masking.py that take longest. A quadratic search takes hours."""
    seconds = {}
    for unit in ("@", "e\u0301@", "中@", "+(((", "(1)", "4444 ", "1 ", " "):
        text = unit * (MEGABYTE // len(unit))
        began = time.process_time()
        Masking()(text)
        seconds[unit] = time.process_time() - began
    slowest = max(seconds, key=lambda unit: seconds[unit])
    figures.at_most(TEST, f"CPU time to mask a hostile megabyte, {slowest!a} over and over", seconds[slowest], 20, "s")
