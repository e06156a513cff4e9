"""The checkpoint on the evaluation file, in PyTorch: what every engine is compared with.

A checkpoint that cannot rank is refused here. Every engine would keep its ranking, however bad, so no other gate would
notice that its tokenizer or its click label is the wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from export.graph.packed.packed_bert import PackedBert, output_widths
from export.graph.packing import Logits, Pair, pack
from export.verify.gates import MAX_UNKNOWN, MIN_AUC, TOLERANCE, GateError, Limits
from export.verify.heads import HeadReference, choose_texts, evenly
from export.verify.parity import name_row
from finetune.checkpoint.attention import SPECIAL_TOKENS, user_tokens
from finetune.checkpoint.heads import Heads, read_heads
from finetune.checkpoint.load import hash_checkpoint, label_names, load_checkpoint
from finetune.data.clicklog import ClickRow, read_click_log
from finetune.evaluation.metrics import click_column, click_probability, evaluate_ranking, group_rows, to_log_odds
from finetune.evaluation.scoring import score_documents, score_passages, score_rows, score_texts, tokenize_pairs
from release.expected import CANDIDATES, SCORES, TOKENS, Expected, shares
from release.manifest import CheckpointRecord
from release.names import PASSAGE_LOGITS


class TokenizerError(RuntimeError):
    """The tokenizer that clients are served makes other tokens than Hugging Face's."""


@dataclass(frozen=True)
class Checkpoint:
    """A click model with what is served of it."""

    origin: CheckpointRecord  # its folder's name and the hashes of its files
    model: BertForSequenceClassification
    heads: Heads  # without outputs, if it has the click alone
    tokenizer: PreTrainedTokenizerFast
    tokenizer_json: bytes  # exactly as clients get it
    max_length: int  # tokens of a pair
    labels: list[str]
    click_label: int  # the label that ranks

    @property
    def user_tokens(self) -> int | None:
        """The tokens that a user text keeps, which is computed once for all its candidates; None: full attention."""
        return user_tokens(self.model.config)

    @property
    def linear_names(self) -> list[str]:
        """Its linear layers, as the packed graph and `--keep-fp32` name them; not the further heads, always float32."""
        return [name for name, module in PackedBert(self.model).named_modules() if isinstance(module, nn.Linear)]

    @property
    def output_widths(self) -> dict[str, int]:
        """Its outputs in order, each with how many numbers a pair has."""
        return output_widths(self.model, self.heads)


@dataclass(frozen=True)
class Evaluation:
    """The evaluation file, and PyTorch's answer to it."""

    rows: list[ClickRow]
    pairs: list[Pair]  # the rows, tokenized
    labels: list[str]
    logits: Logits  # [rows, labels]
    metrics: dict[str, float]
    heads: HeadReference | None = None  # None: the checkpoint has the click alone
    once: bool = False  # a user text is computed once for all its candidates
    truncated: float = 0.0  # share of the pairs of which a text was cut
    unknown: float = 0.0  # share of [UNK] among the tokens that clients send, each group being a request

    def expect(self, logits: Logits) -> Expected:
        """How scores and inputs are distributed, for a manifest: those of an engine's `logits` [rows, labels]."""
        return Expected(
            scores=shares(click_probability(logits, self.labels).tolist(), SCORES),
            candidates=shares(map(len, group_rows(self.rows)), CANDIDATES),
            tokens=shares((len(pair["input_ids"]) for pair in self.pairs), TOKENS),
            truncated=self.truncated,
            unknown=self.unknown,
        )


def read_checkpoint(folder: Path, click_label: str | None) -> Checkpoint:
    """Loads a checkpoint; `click_label` is None if its own label names say which one ranks.

    Raises:
        CheckpointError, MetricError, UnsupportedModelError: it cannot be served; says why.
    """
    model, tokenizer, max_length = load_checkpoint(folder, click_label)
    labels = label_names(model)
    return Checkpoint(
        hash_checkpoint(folder),
        model,
        read_heads(folder, model.config.hidden_size),
        tokenizer,
        served_tokenizer(tokenizer),
        max_length,
        labels,
        click_column(labels),
    )


def served_tokenizer(tokenizer: PreTrainedTokenizerFast) -> bytes:
    """The tokenizer.json that clients get, without the truncation and padding that earlier calls left in it."""
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain.to_str().encode()


def read_evaluation(path: Path) -> list[ClickRow]:
    """Reads the evaluation file.

    Raises:
        ClickLogError: it cannot be read.
        MetricError: its ranking cannot be measured, for instance because nobody clicked.
    """
    rows = read_click_log(path)
    evaluate_ranking(rows, np.full(len(rows), 0.5))  # the metrics that follow the scoring refuse the same files
    return rows


def evaluate(checkpoint: Checkpoint, rows: list[ClickRow], limits: Limits) -> Evaluation:
    """Scores the evaluation file in PyTorch, padded.

    Parity is about the graph, which knows pairs. So the metrics are those of cut pairs, even if the checkpoint reads
    long documents in passages. Only whether it ranks at all is asked of it as it was trained.

    Raises:
        TokenizerError: clients would make other tokens of its texts.
        GateError: the checkpoint cannot rank it: too many words are [UNK], all pairs have the same score, or the AUC is
            below chance.
    """
    pairs = tokenize_pairs(checkpoint.tokenizer, rows, checkpoint.max_length, checkpoint.user_tokens)
    cut = prove_tokenizer(checkpoint.tokenizer_json, rows, pairs, checkpoint.max_length, checkpoint.user_tokens)
    check_unknown(checkpoint, pairs, MAX_UNKNOWN.of(limits))
    logits = score_rows(checkpoint.model, checkpoint.tokenizer, rows, checkpoint.max_length)
    metrics = evaluate_ranking(rows, click_probability(logits, checkpoint.labels))
    if MIN_AUC.of(limits) > 0:
        refuse_one_score(checkpoint, to_log_odds(logits, checkpoint.click_label), TOLERANCE.of(limits))
    refuse_low_auc(checkpoint, rank_as_trained(checkpoint, rows) or metrics, MIN_AUC.of(limits))
    heads, once = score_heads(checkpoint, rows, pairs), checkpoint.user_tokens is not None
    truncated, unknown = sum(cut) / len(cut), unknown_share(checkpoint, rows, pairs)
    return Evaluation(rows, pairs, checkpoint.labels, logits, metrics, heads, once, truncated, unknown)


def rank_as_trained(checkpoint: Checkpoint, rows: list[ClickRow]) -> dict[str, float] | None:
    """The metrics of a checkpoint that reads long documents in passages; None of one that cuts them."""
    if checkpoint.heads.settings.passages is None:
        return None
    logits = score_documents(checkpoint.model, checkpoint.heads, checkpoint.tokenizer, rows, checkpoint.max_length)
    return evaluate_ranking(rows, click_probability(logits, checkpoint.labels))


def score_heads(checkpoint: Checkpoint, rows: Sequence[ClickRow], pairs: Sequence[Pair]) -> HeadReference | None:
    """The further heads' outputs in PyTorch, padded, on a sample of the rows' texts and pairs; None without heads."""
    model, heads, tokenizer = checkpoint.model, checkpoint.heads, checkpoint.tokenizer
    if not heads.outputs:
        return None
    texts = choose_texts(rows)
    outputs = score_texts(model, heads, tokenizer, texts, checkpoint.max_length)
    chosen: list[Pair] = []
    if heads.passage is not None:  # how much a passage counts is asked beside a user text
        chosen = [pairs[place] for place in evenly(len(pairs))]
        _, weights = score_passages(model, heads, tokenizer, chosen)
        assert weights is not None
        outputs[PASSAGE_LOGITS] = weights[:, None]
    served = Tokenizer.from_str(checkpoint.tokenizer_json.decode())  # as clients make the tokens
    served.enable_truncation(checkpoint.max_length)
    singles: list[Pair] = [{"input_ids": one.ids, "token_type_ids": one.type_ids} for one in served.encode_batch(texts)]
    return HeadReference([*singles, *chosen], len(texts), heads.settings.several_topics, outputs)


def prove_tokenizer(
    tokenizer_json: bytes, rows: Sequence[ClickRow], pairs: Sequence[Pair], max_length: int, kept: int | None = None
) -> list[bool]:
    """Holds the tokens of exactly the bytes that are served against `pairs`, Hugging Face's, on every row.

    `kept` are the tokens that a user text keeps; None: pairs are cut longest first. Returns which pairs were cut.

    Raises:
        TokenizerError: a pair differs in an id or a token type; names the first, and says what to do.
    """
    served = Tokenizer.from_str(tokenizer_json.decode())
    if kept is None:
        served.enable_truncation(max_length, strategy="longest_first")
        encoded = served.encode_batch([(row.query, row.document) for row in rows])
    else:
        sides = (
            served.encode_batch(texts, add_special_tokens=False)
            for texts in ([row.query for row in rows], [row.document for row in rows])
        )
        encoded = []
        for user, candidate in zip(*sides, strict=True):
            user.truncate(kept)
            candidate.truncate(max_length - SPECIAL_TOKENS - len(user))
            encoded.append(served.post_process(user, candidate))
    different = [
        index
        for index, (mine, pair) in enumerate(zip(encoded, pairs, strict=True))
        if (mine.ids, mine.type_ids) != (pair["input_ids"], pair["token_type_ids"])
    ]
    if different:
        first = different[0]
        raise TokenizerError(
            f"the tokens of {len(different)} of {len(rows)} pairs differ from Hugging Face's, first those of "
            f"{name_row(rows, first)}: tokenizer.json alone, which clients use, makes {encoded[first].ids}, Hugging "
            f"Face {pairs[first]['input_ids']}. An option in tokenizer_config.json changes what tokenizer.json does "
            "(split_special_tokens, for instance): remove the option, check the metrics, then export again"
        )
    return [bool(one.overflowing) for one in encoded]


def check_unknown(checkpoint: Checkpoint, pairs: Sequence[Pair], limit: float) -> None:
    """Raises GateError if more than this share of the words is [UNK]."""
    unknown = checkpoint.tokenizer.unk_token_id
    special = set(checkpoint.tokenizer.all_special_ids) - {unknown}
    words = [token for pair in pairs for token in pair["input_ids"] if token not in special]
    share = words.count(unknown) / max(1, len(words))
    if share > limit:
        raise GateError(
            f"{checkpoint.origin.name}: its tokenizer makes {share:.0%} of the evaluation's words [UNK], allowed is "
            f"{limit:.0%}. Probably the model was trained with another tokenizer, or the texts are in another "
            "language: put the model's own tokenizer.json beside the model (--max-unknown allows more)"
        )


def unknown_share(checkpoint: Checkpoint, rows: Sequence[ClickRow], pairs: Sequence[Pair]) -> float:
    """The share of [UNK] among the tokens that clients send, if each group is a request."""
    requests = [[pairs[place] for place in group] for group in group_rows(rows)]
    ids = pack(requests, once=checkpoint.user_tokens is not None)["input_ids"]
    return float(np.mean(ids == checkpoint.tokenizer.unk_token_id))


def refuse_one_score(checkpoint: Checkpoint, log_odds: NDArray[np.float64], tolerance: float) -> None:
    """Raises GateError if all scores are within what an engine may be off: it could have any order."""
    if np.ptp(log_odds) <= tolerance:
        raise GateError(
            f"{checkpoint.origin.name}: it scores all {len(log_odds)} pairs alike (log-odds of a click "
            f"{log_odds[0]:.3g}). Probably its training collapsed, its weights are damaged, or the texts, as they are "
            "cut, are all the same: look at the metrics of the training, and at the log (--min-auc 0 lets it pass)"
        )


def refuse_low_auc(checkpoint: Checkpoint, metrics: Mapping[str, float], limit: float) -> None:
    """Raises GateError if the AUC is less than this, or NaN."""
    if not metrics["auc"] >= limit:
        raise GateError(
            f"{checkpoint.origin.name}: its AUC in PyTorch is {metrics['auc']:.4f}, and at least {limit:g} is "
            f"demanded (0.5 is chance). Probably {checkpoint.labels[checkpoint.click_label]!r} of its labels "
            f"{checkpoint.labels} is not the click (--click-label names another), its tokenizer is another model's, or "
            "it was not trained on clicks (--min-auc demands less)"
        )
