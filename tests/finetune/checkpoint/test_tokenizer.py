"""The tokenizer: that it is the model's own, and that clients, who have only tokenizer.json, get the same tokens."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import BertTokenizerFast

from finetune.__main__ import main
from finetune.checkpoint.load import CheckpointError, load_checkpoint, load_tokenizer
from finetune.evaluation.scoring import tokenize_pairs
from tests.finetune.checkpoint.changes import PAIRS, score, set_config, set_json
from tests.tiny import CHINESE, WORDS, make_checkpoint, make_click_log

Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


def remove(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def setting(**values: object) -> Change:
    return lambda folder: set_json(folder / "tokenizer_config.json", **values)


def vocabulary_only(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def in_json(**parts: object) -> Change:
    return lambda folder: set_json(folder / "tokenizer.json", **parts)


def model_setting(**values: object) -> Change:
    def change(folder: Path) -> None:
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        set_json(folder / "tokenizer.json", model=model | values)

    return change


def japanese_by_the_models_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    set_config(folder, tokenizer_class="BertJapaneseTokenizer")


@pytest.mark.parametrize(
    "change",
    [
        remove("tokenizer.json", "vocab.txt", "tokenizer_config.json"),
        remove("tokenizer.json", "vocab.txt"),
    ],
)
def test_a_folder_without_a_vocabulary_is_refused(folder: Path, tmp_path: Path, capsys, change: Change) -> None:
    change(folder)
    with pytest.raises(CheckpointError, match=r"has no tokenizer \(tokenizer\.json or vocab\.txt\)"):
        load_checkpoint(folder)
    log = make_click_log(tmp_path / "train.jsonl")
    make_click_log(tmp_path / "dev.jsonl")
    output = tmp_path / "out"
    assert main(["evaluate", "--checkpoint", str(folder), "--data", str(log)]) == 1
    assert main(["train", "--data", str(tmp_path), "--base-model", str(folder), "--output", str(output)]) == 1
    assert capsys.readouterr().err.count("has no tokenizer") == 2
    assert not output.exists()


@pytest.mark.parametrize(
    ("tokens", "fits"), [(227, True), (228, False), (224, True), (100, True), (99, False), (5, False)]
)
def test_the_vocabulary_must_have_the_models_size(folder: Path, tokens: int, fits: bool) -> None:
    """227 embeddings: as many tokens, or up to 127 fewer (a padded table), but never more."""
    vocabulary_only(folder)
    lines = [*(folder / "vocab.txt").read_text().splitlines(), "one", "more"]
    (folder / "vocab.txt").write_text("\n".join(lines[:tokens]))
    if fits:
        load_checkpoint(folder)
    else:
        with pytest.raises(CheckpointError, match=f"{tokens} tokens, the model 227 embeddings"):
            load_checkpoint(folder)


def test_an_added_token_beyond_the_embeddings_is_refused(folder: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="228 tokens, the model 227 embeddings"):
        load_checkpoint(folder)


@pytest.mark.parametrize("token", ["[UNK]", "[CLS]", "[SEP]", "[PAD]"])
def test_a_vocabulary_without_a_special_token_is_refused_by_name(folder: Path, token: str) -> None:
    vocabulary_only(folder)
    text = (folder / "vocab.txt").read_text()
    (folder / "vocab.txt").write_text(text.replace(f"{token}\n", "w\n"))
    with pytest.raises(CheckpointError, match=rf"\{token[:-1]}"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (setting(split_special_tokens=True), "split_special_tokens is True"),
        (setting(auto_map={"AutoTokenizer": ["mine.Slow", "mine.Fast"]}), "auto_map"),
        (setting(fast_tokenizer_files=["tokenizer.4.0.0.json"]), "fast_tokenizer_files"),
        (setting(truncation_side="left"), "truncation_side"),
        (
            in_json(truncation={"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}),
            "truncation",
        ),
        (setting(model_input_names=["input_ids", "attention_mask"]), "model_input_names"),
        (setting(tokenizer_class="PreTrainedTokenizerFast"), "model_input_names"),
        (setting(do_lower_case=False), r"normalizer\.lowercase \(True against False\)"),
        (setting(strip_accents=False), r"normalizer\.strip_accents \(None against False\)"),
        (setting(tokenize_chinese_chars=False), r"normalizer\.handle_chinese_chars"),
        (in_json(normalizer={"type": "NFKC"}), r"disagree on normalizer\.type"),
        (in_json(pre_tokenizer={"type": "WhitespaceSplit"}), r"disagree on pre_tokenizer\.type"),
        (model_setting(max_input_chars_per_word=20), r"model\.max_input_chars_per_word \(20 against 100\)"),
        (model_setting(continuing_subword_prefix="@@"), r"model\.continuing_subword_prefix"),
        (setting(unk_token="[MASK]"), r"model\.unk_token"),
        (setting(cls_token="[START]"), r"cls_token '\[START\]'"),
        (setting(sep_token="[END]"), r"sep_token '\[END\]'"),
        (setting(pad_token="[FILL]"), r"pad_token '\[FILL\]'"),
        (setting(cls_token="[MASK]"), "disagree on the tokens of a pair"),
        (setting(tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="basic"), "BertJapaneseTokenizer"),
        (setting(tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="mecab"), "tokenizer cannot be loaded"),
        (japanese_by_the_models_config, "BertJapaneseTokenizer"),
        (setting(model_max_length="512"), "model_max_length is '512'"),
        (setting(model_max_length=0), "model_max_length is 0"),
        (setting(model_max_length=True), "model_max_length is True"),
        (setting(model_max_length=float("inf")), "model_max_length is infinite"),
        (setting(model_max_length=12), "pairs of 12 tokens at most; 16 are the least"),
        (
            setting(added_tokens_decoder={"9": {"content": "w1w2", "special": False}}),
            "gives 'w1w2' the id 9, it gets 227",
        ),
        (in_json(model={}), "tokenizer cannot be loaded"),
    ],
)
def test_what_clients_do_not_reproduce_is_refused_by_name(folder: Path, change: Change, fault: str) -> None:
    change(folder)
    with pytest.raises(CheckpointError, match=fault):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        vocabulary_only,
        setting(padding_side="left"),
        setting(clean_up_tokenization_spaces=True, model_max_length=10**30),
        setting(additional_special_tokens=["w1"]),
        setting(tokenizer_class="PreTrainedTokenizerFast", model_input_names=["input_ids", "token_type_ids"]),
        remove("tokenizer_config.json"),
        in_json(padding={"strategy": {"Fixed": 30}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 0,
                         "pad_type_id": 0, "pad_token": "[PAD]"}),
    ],
)  # fmt: skip
def test_the_served_tokenizer_json_gives_the_checkpoints_tokens(tmp_path: Path, change: Change) -> None:
    """What `export` publishes of the tokenizer is its backend; clients see nothing else."""
    folder = make_checkpoint(tmp_path / "checkpoint", words=[*WORDS, *CHINESE])
    change(folder)
    _, tokenizer, max_length = load_checkpoint(folder)
    client = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    assert (client.truncation, client.padding) == (None, None)
    client.enable_truncation(max_length)
    texts = [
        "w1 W2 \u00e9t\u00e9",
        "[CLS] w3 [MASK][SEP]",
        "我想买鞋 w4",
        "a" * 120,
        "",
        "w1w2 w5 " * 40,
        "\u212bb\u0000\u200dc",
    ]
    for query in texts:
        for document in texts:
            ids = client.encode(query, document).ids
            expected = tokenizer([query], [document], truncation=True, max_length=max_length)["input_ids"][0]
            assert ids == expected, (query, document)


def test_padding_on_the_left_changes_no_score(folder: Path) -> None:
    before = score(folder)
    assert len({len(query) + len(document) for query, document in PAIRS}) > 1, "or nothing would be padded"
    set_json(folder / "tokenizer_config.json", padding_side="left")
    np.testing.assert_array_equal(score(folder), before)


def test_truncation_and_padding_are_off_after_loading(folder: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    tokenizer.backend_tokenizer.enable_truncation(16)
    tokenizer.backend_tokenizer.enable_padding(length=16)
    tokenizer.save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == (None, None)
    assert tokenize_pairs(tokenizer, [], 16) == []
