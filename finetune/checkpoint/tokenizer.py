"""Loads the checkpoint's tokenizer, and checks that it is the model's own and that clients get the same tokens.

Clients tokenize with the tokenizers library alone, from the tokenizer.json that `export` publishes. They make pairs
`[CLS] user [SEP] candidate [SEP]` with token types 0 and 1, and cut long pairs by "longest_first" on the right. If a
setting of tokenizer_config.json takes effect in transformers' Python code only, it is refused here, by its name.
"""

import json
import math
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from finetune.checkpoint.attention import SPECIAL_TOKENS, USER_TOKENS_FIELD, user_tokens
from finetune.checkpoint.files import (
    ADDED_TOKENS,
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    VOCABULARY,
    CheckpointError,
    check_file,
    read_object,
)
from finetune.checkpoint.quiet import quiet_transformers

SHORTEST = 16  # tokens; the server warms up with such pairs
# Embedding tables are padded to multiples of 8, 64 or (by Megatron) 128 rows: 30522 tokens, 30528 rows. A larger gap
# means another model's vocabulary, or a file cut short: bert-base-german-cased has 30000 tokens, bert-base 30522.
PADDED_TO = 128
SPECIAL = ("unk_token", "cls_token", "sep_token", "pad_token")
# Settings of tokenizer_config.json that change tokens in Python only: the values that change none, and the remedy.
NEUTRAL_VALUES: dict[str, tuple[tuple[object, ...], str]] = {
    "split_special_tokens": (
        (None, False),
        "clients do not split special tokens; set it to false, and evaluate the model that way",
    ),
    "auto_map": ((None, {}), "the tokenizer is code of its own, which is never run; give a BERT with a tokenizer.json"),
    "fast_tokenizer_files": ((None, [], [TOKENIZER]), f"rename the one to use to {TOKENIZER}, and remove this setting"),
}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer, free of any truncation and padding that its tokenizer.json carries.

    Raises:
        CheckpointError: there is none, it is not whole, or clients would get other tokens.
    """
    _check_files(folder)
    # Given this config, transformers does not read config.json, which may hold what it chokes on.
    config = BertConfig()
    if (folder / CONFIG).exists():
        config.tokenizer_class = read_object(folder / CONFIG).get("tokenizer_class")
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, config=config)
    except Exception as error:  # the tokenizers library raises nothing more special
        raise CheckpointError(
            f"{folder}: the tokenizer cannot be loaded: {error}; save the model's own tokenizer there"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(
            f"{folder}: {type(tokenizer).__name__} splits words in Python and saves no {TOKENIZER}, which clients "
            "tokenize with; use a model with a fast tokenizer"
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    _check_against_files(folder, tokenizer)
    if "token_type_ids" not in tokenizer.model_input_names:
        raise CheckpointError(
            f"{folder}: its model_input_names are {tokenizer.model_input_names}: transformers gives such a model no "
            f"token types, but clients send them; if it was trained with them, set model_input_names in "
            f'{TOKENIZER_CONFIG} to ["input_ids", "token_type_ids", "attention_mask"]'
        )
    if tokenizer.truncation_side != "right":
        raise CheckpointError(
            f"{folder}: its tokenizer cuts long texts on the left, but clients cut on the right; set "
            f'truncation_side to "right" in {TOKENIZER_CONFIG}, and fine-tune that way'
        )
    return tokenizer


def longest_pair(folder: Path, config: BertConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the longest pair in tokens that both the tokenizer and the position embeddings allow.

    Raises:
        CheckpointError: the tokenizer does not fit the model, a pair does not become `[CLS] user [SEP] candidate [SEP]`
            with token types 0 and 1, the longest pair has less than SHORTEST tokens, or the longest user text leaves
            a candidate no token of it.
    """
    _check_vocabulary(folder, config.vocab_size, tokenizer)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a b", "c"))
    encoded = tokenizer(["a b"], ["c"], return_token_type_ids=True)
    expected = [cls, *first, sep, *second, sep], [0] * (len(first) + 2) + [1] * (len(second) + 1)
    if (encoded["input_ids"][0], encoded["token_type_ids"][0]) != expected or config.type_vocab_size < 2:
        raise CheckpointError(
            f"{folder}: its tokenizer or its type_vocab_size does not make pairs [CLS] user [SEP] candidate [SEP] with "
            "token types 0 and 1; give a BERT with its own tokenizer"
        )
    longest = int(min(tokenizer.model_max_length, config.max_position_embeddings))
    if longest < SHORTEST:
        raise CheckpointError(
            f"{folder}: takes pairs of {longest} tokens at most; {SHORTEST} are the least that is served"
        )
    kept = user_tokens(config)
    if kept is not None and kept >= longest - SPECIAL_TOKENS:
        raise CheckpointError(
            f"{folder}: {USER_TOKENS_FIELD} is {kept}, which leaves a candidate nothing of pairs of {longest} tokens; "
            f"it must be below {longest - SPECIAL_TOKENS}"
        )
    return longest


def _check_files(folder: Path) -> None:
    """Refuse a folder without a vocabulary: transformers would make up five tokens, and every word would be [UNK]."""
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            check_file(folder / name)
    if not any((folder / name).exists() for name in (TOKENIZER, VOCABULARY)):
        raise CheckpointError(
            f"{folder}: has no tokenizer ({TOKENIZER} or {VOCABULARY}); copy the one the model was trained with"
        )
    settings = read_object(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).exists() else {}
    for name, (plain, remedy) in NEUTRAL_VALUES.items():
        if not any(settings.get(name) is value or settings.get(name) == value for value in plain):
            raise CheckpointError(f"{folder}/{TOKENIZER_CONFIG}: {name} is {settings[name]!r}: {remedy}")
    for name in ("model_max_length", "max_len"):
        value = settings.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            raise CheckpointError(
                f"{folder}/{TOKENIZER_CONFIG}: {name} is {value!r}; it must be a number over 0, without quotes"
            )
        if isinstance(value, float) and math.isinf(value):
            raise CheckpointError(f"{folder}/{TOKENIZER_CONFIG}: {name} is infinite; leave it out if there is no limit")


def _check_against_files(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer that differs from what the folder's own files say.

    For BERT, transformers takes the vocabulary from tokenizer.json, and the rules that split texts from
    tokenizer_config.json (do_lower_case, strip_accents, tokenize_chinese_chars). If the two files disagree, one of them
    is not what the model was trained with, and every other reader of tokenizer.json gets other tokens.
    """
    has_rules = (folder / TOKENIZER).exists()
    if has_rules:
        stored = Tokenizer.from_file(str(folder / TOKENIZER))
        stored.no_truncation()
        stored.no_padding()
    else:
        stored = Tokenizer(WordPiece.from_file(str(folder / VOCABULARY), unk_token=str(tokenizer.unk_token)))
    for name in SPECIAL:
        token = getattr(tokenizer, name)
        if token is None or stored.token_to_id(token) is None:
            raise CheckpointError(
                f"{folder}: its vocabulary does not hold the {name} {token!r}; give a BERT with its own tokenizer"
            )
    for token, index in _added_tokens(folder).items():
        if tokenizer.convert_tokens_to_ids(token) != index:
            raise CheckpointError(
                f"{folder}: gives {token!r} the id {index}, it gets {tokenizer.convert_tokens_to_ids(token)}; "
                f"save the tokenizer again, so that {TOKENIZER} holds it"
            )
    difference = _difference(stored, tokenizer.backend_tokenizer) if has_rules else None
    if difference:
        raise CheckpointError(
            f"{folder}: {TOKENIZER} and {TOKENIZER_CONFIG} disagree on {difference}; "
            "make both what the model was trained with"
        )


def _difference(stored: Tokenizer, used: Tokenizer) -> str | None:
    """Name the first setting on which two tokenizers differ, as in `normalizer.lowercase (false against true)`."""
    in_file, in_use = json.loads(stored.to_str()), json.loads(used.to_str())
    for part in ("normalizer", "pre_tokenizer", "model"):
        first, second = in_file[part] or {}, in_use[part] or {}
        for name in {**second, **first}:
            if first.get(name) != second.get(name):
                values = "" if name == "vocab" else f" ({first.get(name)!r} against {second.get(name)!r})"
                return f"{part}.{name}{values}"
    pairs = [each.encode("a b", "c") for each in (stored, used)]
    if stored.post_processor is not None and pairs[0].ids != pairs[1].ids:
        return f"the tokens of a pair ({pairs[0].tokens} against {pairs[1].tokens})"
    return None


def _added_tokens(folder: Path) -> dict[str, int]:
    """Read the ids that the folder gives to tokens added to the vocabulary."""
    added = {}
    if (folder / TOKENIZER_CONFIG).exists():
        decoder = read_object(folder / TOKENIZER_CONFIG).get("added_tokens_decoder") or {}
        added = {token["content"]: int(index) for index, token in decoder.items()}
    if (folder / ADDED_TOKENS).exists():
        added |= read_object(folder / ADDED_TOKENS)
    return added


def _check_vocabulary(folder: Path, rows: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a vocabulary that is not the model's: too large for the embeddings, or much too small."""
    tokens = max(tokenizer.get_vocab().values()) + 1
    if not tokens <= rows < tokens + PADDED_TO:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokens} tokens, the model {rows} embeddings; they belong to different models"
        )
