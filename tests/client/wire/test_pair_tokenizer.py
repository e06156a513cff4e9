"""`PairTokenizer` against the tokenizers library's own pairs and truncation.

Two long texts and a low limit are not compared here: the library keeps every combination of what it cut off.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Encoding, Tokenizer, normalizers, processors

from clickbert.wire.packing import PackedPairs
from clickbert.wire.tokenization import PairTokenizer, longest_first
from tests.client.fake_model import tokenizer_json

TEXTS = ["", " ", "a", "cheap coffee", "[SEP] [MASK] [CLS]", "\x00\x07", "中文", "😀", "cafés", "the " * 40, "q" * 150]


def reference(content: bytes, max_length: int, pairs: list[tuple[str, str]]) -> tuple[list[int], list[int], list[int]]:
    tokenizer = Tokenizer.from_str(content.decode())
    tokenizer.enable_truncation(max_length)
    encodings = tokenizer.encode_batch(pairs)
    ids = [token for encoding in encodings for token in encoding.ids]
    types = [kind for encoding in encodings for kind in encoding.type_ids]
    return ids, types, [len(encoding.ids) for encoding in encodings]


def unpacked(packed: PackedPairs) -> tuple[list[int], list[int], list[int]]:
    assert {packed.input_ids.dtype, packed.token_type_ids.dtype, packed.lengths.dtype} == {np.dtype(np.int32)}
    return packed.input_ids.tolist(), packed.token_type_ids.tolist(), packed.lengths.tolist()


@pytest.mark.parametrize("max_length", [3, 4, 5, 6, 16, 17, 512])
def test_pairs_are_the_librarys_pairs(max_length):
    content = tokenizer_json()
    tokenizer = PairTokenizer(content, max_length)
    for query in TEXTS:
        expected = reference(content, max_length, [(query, document) for document in TEXTS])
        assert unpacked(tokenizer.pack(query, TEXTS)) == expected
    pairs = [(query, document) for document in TEXTS for query in TEXTS]
    assert unpacked(tokenizer.pack_pairs(pairs)) == reference(content, max_length, pairs)


def test_truncation_is_the_librarys_for_all_small_lengths():
    content = tokenizer_json()
    for room in range(9):
        pairs = [("a " * first, "a " * second) for first in range(12) for second in range(12)]
        _, types, lengths = reference(content, room + 3, pairs)
        start = 0
        for (query, document), length in zip(pairs, lengths, strict=True):
            second = sum(types[start : start + length]) - 1
            start += length
            counted = longest_first(len(query) // 2, len(document) // 2, room)
            assert counted == (length - 3 - second, second), (room, len(query) // 2, len(document) // 2)


LONG = [(0, 5000), (5000, 0), (600, 3000), (3000, 600), (3000, 3001), (3001, 3000), (3000, 3000)]
LONG += [(1166, 3000), *((3000, around) for around in (1165, 1166, 1167))]  # of 3,000 words 1,166 are tokenized first


@pytest.mark.parametrize("lengths, limits", [((30, 31), (16, 17)), *((lengths, (512, 513)) for lengths in LONG)])
def test_long_texts_are_cut_as_if_they_had_been_read_to_the_end(lengths, limits):
    content = tokenizer_json()
    for separator in (" ", "\uff0c"):
        query, document = (("coffee" + separator) * length for length in lengths)
        for max_length in limits:
            expected = reference(content, max_length, [(query, document)])
            assert unpacked(PairTokenizer(content, max_length).pack(query, [document])) == expected


def test_long_texts_that_begin_with_nothing_are_read_on():
    content = tokenizer_json()
    document = "\x00 " * 5000 + "cheap coffee " * 10
    expected = reference(content, 16, [("tea", document)])
    assert unpacked(PairTokenizer(content, 16).pack("tea", [document])) == expected


def test_an_added_token_of_two_words_switches_the_shortcut_off():
    tokenizer = Tokenizer.from_str(tokenizer_json().decode())
    tokenizer.add_tokens(["coffee coffee"])
    content = tokenizer.to_str().encode()
    document = "coffee " * 3000
    expected = reference(content, 512, [("tea", document)])
    assert unpacked(PairTokenizer(content, 512).pack("tea", [document])) == expected


def test_a_long_text_is_tokenized_once_and_no_further_than_can_matter(monkeypatch: pytest.MonkeyPatch):
    tokenizer = PairTokenizer(tokenizer_json(), 512)
    tokenized: list[str] = []
    encode = tokenizer._encode
    monkeypatch.setattr(tokenizer, "_encode", lambda texts: tokenized.extend(texts) or encode(texts))
    long = "cheap coffee near me " * 50_000
    tokenizer.pack(long, ["a bar"] * 200)
    assert len(tokenized) == 201 and max(map(len, tokenized)) < len(long) / 10
    tokenized.clear()
    tokenizer.pack("a bar", [long] * 20)
    assert max(map(len, tokenized)) < len(long) / 10, "what is cut off anyway is not tokenized"


def test_of_many_long_texts_the_library_holds_only_some_at_a_time(monkeypatch: pytest.MonkeyPatch):
    tokenizer = PairTokenizer(tokenizer_json(), 512)
    texts = [*TEXTS, *("\u4e2d" * 90_000 for _ in range(5)), "\u4e2d" * 250_000, *TEXTS]
    batches: list[int] = []

    class Noting:
        def encode_batch_fast(self, batch: list[str], **options: bool) -> list[Encoding]:
            batches.append(sum(map(len, batch)))
            return whole.encode_batch_fast(batch, **options)

    whole = tokenizer._tokenizer
    expected = [whole.encode(text, add_special_tokens=False).ids for text in texts]
    monkeypatch.setattr(tokenizer, "_tokenizer", Noting())
    assert tokenizer._encode(texts) == expected
    assert sum(batches) == sum(map(len, texts)) and sorted(batches)[-2] < 200_000 < max(batches) < 350_000


def test_what_is_kept_of_a_long_text_depends_only_on_whether_it_is_the_longer_one():
    for room in range(12):
        for second in range(40):
            for is_longer in (False, True):
                firsts = [first for first in range(room + 1, 40) if (first > second) == is_longer]
                assert len({longest_first(first, second, room) for first in firsts}) <= 1
            if room % 2 == 0:
                assert len({longest_first(first, second, room) for first in range(room + 1, 40)}) == 1


def test_truncation_and_padding_in_the_file_are_ignored():
    tokenizer = Tokenizer.from_str(tokenizer_json().decode())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    packed = PairTokenizer(tokenizer.to_str().encode(), 32).pack("cheap coffee near me", ["a bar", "a bank near me"])
    assert packed.lengths.tolist() == [9, 11]


def changed(**parts: object) -> bytes:
    tokenizer = Tokenizer.from_str(tokenizer_json().decode())
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer.to_str().encode()


def template(pair: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing("[CLS] $A [SEP]", pair, [("[CLS]", 2), ("[SEP]", 3), ("[MASK]", 4)])


NOT_BERT = {
    "not json": b"no",
    "no unk": tokenizer_json().replace(b'"[UNK]":1,', b""),
    "no type": changed(post_processor=template("[CLS] $A [SEP] $B [SEP]")),
    "two separators": changed(post_processor=template("[CLS] $A [SEP] [SEP] $B:1 [SEP]:1")),
    "other single text": changed(
        post_processor=processors.TemplateProcessing(
            "$A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
        )
    ),
    "other end": changed(post_processor=template("[CLS] $A [SEP] $B:1 [MASK]:1")),
    "cls at the end": changed(post_processor=template("$A [SEP] $B:1 [SEP]:1 [CLS]:1")),
}


@pytest.mark.parametrize("name", NOT_BERT)
def test_other_tokenizers_are_refused(name):
    with pytest.raises(ValueError, match="not "):
        PairTokenizer(NOT_BERT[name], 32)


def test_other_normalizers_are_read_to_the_end():
    content = changed(normalizer=normalizers.Replace("q" * 10, "coffee "))
    document = "q " * 600 + "q" * 20
    expected = reference(content, 12, [("tea", document)])
    assert unpacked(PairTokenizer(content, 12).pack("tea", [document])) == expected


def test_threads_share_a_tokenizer():
    tokenizer = PairTokenizer(tokenizer_json(), 32)

    def pack(way: int) -> tuple[list[int], list[int], list[int]]:
        if way == 0:
            return unpacked(tokenizer.pack("tea", TEXTS))
        if way == 1:
            return unpacked(tokenizer.pack_texts(TEXTS))
        split = tokenizer.split_into_windows([("tea", text) for text in TEXTS], overlap=way)
        return unpacked(tokenizer.pack_windows([window for windows in split for window in windows]))

    expected = [pack(way) for way in range(4)]
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(pack, list(range(4)) * 50))
    assert results == expected * 50


def test_an_empty_document_beside_a_long_query_is_one_window():
    tokenizer = PairTokenizer(tokenizer_json(), 16)
    ((window,),) = tokenizer.split_into_windows([("a " * 40, "")], overlap=4)
    assert unpacked(tokenizer.pack_windows([window])) == unpacked(tokenizer.pack("a " * 40, [""]))


@pytest.mark.parametrize("overlap", [0, 1, 5, 10**9])
def test_windows_cover_the_document_and_step_by_what_they_do_not_share(overlap):
    tokenizer = PairTokenizer(tokenizer_json(), 16)
    for length in range(60):
        (windows,) = tokenizer.split_into_windows([("tea", "a " * length)], overlap)
        assert (windows[0].start, windows[-1].stop) == (0, length)
        steps = {after.start - before.start for before, after in pairwise(windows)}
        assert steps <= {max(12 - overlap, 1)}
        assert all(window.tokens == 16 for window in windows[:-1]) and windows[-1].tokens <= 16
        assert len(windows) == 1 or windows[-2].stop < length, "a window adds nothing"


def test_forking_after_use_neither_warns_nor_hangs():
    script = """
import os
from tests.client.fake_model import tokenizer_json
from clickbert.wire.tokenization import PairTokenizer
tokenizer = PairTokenizer(tokenizer_json(), 32)
tokenizer.pack("tea", ["a bar"] * 100)
if os.fork() == 0:
    tokenizer.pack("tea", ["a bar"] * 100)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
