"""How long pairs are cut where a user text is computed once: by itself alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from finetune.checkpoint.attention import default_user_tokens
from finetune.checkpoint.load import load_tokenizer
from finetune.data.clicklog import ClickRow
from finetune.evaluation.scoring import tokenize_pairs, tokenize_passages
from tests.tiny import CHINESE, MAX_LENGTH, WORDS, make_checkpoint

Tokens = dict[str, list[int]]
TEXTS = st.lists(st.sampled_from([*WORDS[:20], *CHINESE[:4], "[SEP]", "é!", "unknownword"]), max_size=70).map(" ".join)
LENGTHS = st.integers(16, MAX_LENGTH)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return load_tokenizer(make_checkpoint(tmp_path_factory.mktemp("cut") / "checkpoint"))


def cut(tokenizer: PreTrainedTokenizerFast, user: str, document: str, length: int, kept: int | None) -> Tokens:
    (pair,) = tokenize_pairs(tokenizer, [ClickRow("g", user, document, 0, 1)], length, kept)
    return pair


def parts(pair: Tokens) -> tuple[list[int], list[int]]:
    """[CLS] user [SEP], and the rest."""
    first = pair["token_type_ids"].count(0)
    assert pair["token_type_ids"] == [0] * first + [1] * (len(pair["input_ids"]) - first)
    return pair["input_ids"][:first], pair["input_ids"][first:]


def size(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False))


@settings(max_examples=150)
@given(TEXTS, TEXTS, TEXTS, LENGTHS, st.data())
def test_the_user_text_never_depends_on_the_candidate(
    tokenizer: PreTrainedTokenizerFast, user: str, document: str, other: str, length: int, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, length - 4))
    pair = cut(tokenizer, user, document, length, kept)
    ours, candidate = parts(pair)
    assert ours == parts(cut(tokenizer, user, other, length, kept))[0]
    assert len(ours) - 2 == min(kept, size(tokenizer, user))
    assert len(candidate) - 1 == min(length - 3 - (len(ours) - 2), size(tokenizer, document))
    assert len(pair["input_ids"]) <= length
    for overlap in (0, 4, 100):
        passages = tokenize_passages(tokenizer, user, document, length, overlap, kept)
        assert all(parts(passage)[0] == ours for passage in passages)
        assert all(len(passage["input_ids"]) <= length for passage in passages)
        assert passages[0] == pair, "the first passage begins where a cut document does"
        if not overlap:
            whole = [token for passage in passages for token in parts(passage)[1][:-1]]
            assert whole == tokenizer.backend_tokenizer.encode(document, add_special_tokens=False).ids


@settings(max_examples=150)
@given(TEXTS, TEXTS, LENGTHS)
def test_short_pairs_have_the_tokens_of_full_attention(
    tokenizer: PreTrainedTokenizerFast, user: str, document: str, length: int
) -> None:
    kept = default_user_tokens(length)
    full, once = (cut(tokenizer, user, document, length, each) for each in (None, kept))
    sizes = size(tokenizer, user), size(tokenizer, document)
    if sizes[0] <= kept and sum(sizes) <= length - 3:
        assert once == full
    elif sizes[0] > kept < sizes[1]:
        assert len(once["input_ids"]) == length


def test_an_earlier_cut_is_not_left_on(tokenizer: PreTrainedTokenizerFast) -> None:
    long = " ".join(WORDS)
    cut(tokenizer, long, long, 16, None)
    assert len(cut(tokenizer, long, long, 40, 10)["input_ids"]) == 40
    assert tokenize_pairs(tokenizer, [], 40, 10) == []
