"""What is wrong with a checkpoint itself: another tokenizer, another label, tokens unlike Hugging Face's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from export.verify.evaluation import (
    TokenizerError,
    evaluate,
    prove_tokenizer,
    read_checkpoint,
    read_evaluation,
    served_tokenizer,
)
from export.verify.gates import GateError
from finetune.checkpoint.load import CheckpointError, load_tokenizer
from finetune.data.clicklog import ClickRow, read_click_log
from finetune.evaluation.metrics import click_probability, evaluate_ranking
from finetune.evaluation.scoring import score_documents, score_rows, tokenize_pairs
from tests.export.command import engines, run
from tests.tiny import JOINT, MAX_LENGTH, make_checkpoint, make_click_log

ODD_WORDS = ["w1", "[SEP]", "[UNK]", "[CLS]x", "w2", "##w", "a[MASK]b", "W3"]


def test_a_tokenizer_that_knows_no_word_is_refused_before_anything_is_scored(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    log = make_click_log(tmp_path / "log.jsonl", words=list("我想买一双跑步鞋"))
    evaluate(read_checkpoint(checkpoint, None), read_evaluation(log), {"max_unknown": 1, "min_auc": 0})
    monkeypatch.setattr("export.verify.evaluation.score_rows", lambda *_: pytest.fail("it scored"))
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx")) == 1
    error = capsys.readouterr().err
    assert "its tokenizer makes 100% of the evaluation's words [UNK], allowed is 20%" in error
    assert "the model's own tokenizer.json" in error


def test_a_ranking_worse_than_chance_is_refused(tmp_path: Path, capsys) -> None:
    log = make_click_log(tmp_path / "log.jsonl")
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    model = BertForSequenceClassification.from_pretrained(checkpoint)
    for _ in range(2):  # one of a ranking and its reverse is worse than chance
        auc = evaluate(read_checkpoint(checkpoint, None), read_evaluation(log), {"min_auc": 0}).metrics["auc"]
        if auc < 0.5:
            break
        with torch.no_grad():
            model.classifier.weight.neg_()
            model.classifier.bias.neg_()
        model.save_pretrained(checkpoint)
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx"), "--min-auc", "0.5") == 1
    error = capsys.readouterr().err
    assert f"its AUC in PyTorch is {auc:.4f}, and at least 0.5 is demanded" in error
    assert "Probably 'click' of its labels ['click'] is not the click (--click-label names another)" in error


def test_a_model_that_scores_all_alike_is_refused(tmp_path: Path, capsys) -> None:
    """Its AUC is that of chance, and no engine could fail to keep its order."""
    log, checkpoint = make_click_log(tmp_path / "log.jsonl"), make_checkpoint(tmp_path / "checkpoint")
    model = BertForSequenceClassification.from_pretrained(checkpoint)
    with torch.no_grad():  # every token alike; what is left between scores is rounding
        for table in model.bert.embeddings.children():
            if isinstance(table, torch.nn.Embedding):
                table.weight[:] = table.weight[0].clone()
    model.save_pretrained(checkpoint)
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx"), "--min-auc", "0.5") == 1
    assert "it scores all" in (error := capsys.readouterr().err) and "Probably its training collapsed" in error
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx")) == 0, "--min-auc 0"


def test_the_label_that_the_user_names_is_the_one_that_ranks(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", labels=2)
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "engaged", "1": "ignored"}, "label2id": {"engaged": 0, "ignored": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="name it with --click-label"):
        read_checkpoint(folder, None)
    rows = read_evaluation(make_click_log(tmp_path / "log.jsonl"))
    auc = {}
    for label, index in {"engaged": 0, "1": 1}.items():
        checkpoint = read_checkpoint(folder, label)
        assert checkpoint.click_label == index
        auc[label] = evaluate(checkpoint, rows, {"min_auc": 0}).metrics["auc"]
    assert auc["engaged"] == pytest.approx(1 - auc["1"])


def test_a_checkpoint_that_reads_passages_must_rank_in_passages(tmp_path: Path) -> None:
    rows = read_click_log(make_click_log(tmp_path / "log.jsonl", groups=30))
    checkpoint = read_checkpoint(make_checkpoint(tmp_path / "checkpoint", heads=JOINT), None)
    parts = (checkpoint.model, checkpoint.heads, checkpoint.tokenizer, rows, checkpoint.max_length)
    cut, read = (
        evaluate_ranking(rows, click_probability(logits, checkpoint.labels))["auc"]
        for logits in (
            score_rows(checkpoint.model, checkpoint.tokenizer, rows, checkpoint.max_length),
            score_documents(*parts),
        )
    )
    assert cut != read
    least = (cut + read) / 2
    if read > cut:
        assert evaluate(checkpoint, rows, {"min_auc": least}).metrics["auc"] == cut, "the gates compare cut pairs"
    else:
        with pytest.raises(GateError, match=f"its AUC in PyTorch is {read:.4f}"):
            evaluate(checkpoint, rows, {"min_auc": least})


def odd_rows() -> list[ClickRow]:
    texts = [*ODD_WORDS, " ".join(ODD_WORDS), "", "w9 " * 80]
    return [ClickRow("g", query, document, 0, 1) for query in texts for document in texts]


def test_the_served_tokenizer_is_proved_on_texts_of_every_kind(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_checkpoint(tmp_path / "checkpoint"))
    rows = odd_rows() + read_click_log(make_click_log(tmp_path / "log.jsonl"))
    pairs = tokenize_pairs(tokenizer, rows, MAX_LENGTH)
    cut = prove_tokenizer(served_tokenizer(tokenizer), rows, pairs, MAX_LENGTH)
    assert cut == [length_of(tokenizer, row) > MAX_LENGTH for row in rows]


def length_of(tokenizer: PreTrainedTokenizerFast, row: ClickRow) -> int:
    """The tokens of a pair that nobody cuts."""
    return len(tokenizer(row.query, row.document, truncation=False)["input_ids"])


def test_the_served_tokenizer_is_proved_where_the_user_text_has_a_share_of_its_own(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_checkpoint(tmp_path / "checkpoint"))
    rows, kept = [*odd_rows(), ClickRow("g", "w1 " * 60, "w2 " * 60, 0, 1)], 10
    pairs = tokenize_pairs(tokenizer, rows, MAX_LENGTH, kept)
    cut = prove_tokenizer(served_tokenizer(tokenizer), rows, pairs, MAX_LENGTH, kept)
    lengths = [len(pair["input_ids"]) for pair in pairs]
    assert cut == [length < length_of(tokenizer, row) for length, row in zip(lengths, rows, strict=True)]
    with pytest.raises(TokenizerError, match="differ from Hugging Face's"):
        prove_tokenizer(served_tokenizer(tokenizer), rows, pairs, MAX_LENGTH)


def test_a_tokenizer_that_splits_special_tokens_is_refused_with_the_pair(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config | {"split_special_tokens": True}))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    rows = odd_rows()
    pairs = tokenize_pairs(tokenizer, rows, MAX_LENGTH)
    with pytest.raises(TokenizerError, match=r"of 121 pairs differ.* pair 2 \(.*document '\[SEP\]'\)") as caught:
        prove_tokenizer(served_tokenizer(tokenizer), rows, pairs, MAX_LENGTH)
    assert str(pairs[1]["input_ids"]) in str(caught.value)
    assert "split_special_tokens" in str(caught.value)


def test_a_wrong_token_type_is_a_difference(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_checkpoint(tmp_path / "checkpoint"))
    rows = [ClickRow("g", "w1", "w2", 0, 1), ClickRow("g", "w3", "w4 w5", 0, 1)]
    pairs = tokenize_pairs(tokenizer, rows, MAX_LENGTH)
    pairs[1]["token_type_ids"][0] = 1
    with pytest.raises(TokenizerError, match=r"1 of 2 pairs differ.*pair 2 "):
        prove_tokenizer(served_tokenizer(tokenizer), rows, pairs, MAX_LENGTH)


def test_the_command_refuses_a_checkpoint_whose_tokens_clients_cannot_make(tmp_path: Path, capsys) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config | {"split_special_tokens": True}))
    log = make_click_log(tmp_path / "log.jsonl", words=ODD_WORDS)
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx"), "--max-unknown", "1") == 1
    assert "split_special_tokens" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()
