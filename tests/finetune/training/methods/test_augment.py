"""Augmentation: which words are left out and exchanged, again so in a resumed run, and what is refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.clicklog import ClickLogError, ClickRow, read_click_log
from finetune.training.batches import Collator
from finetune.training.build import build
from finetune.training.methods.augment import Augmentation, read_synonyms, read_translated, split_words
from finetune.training.run import train
from finetune.training.settings import SettingsError, TrainSettings
from tests.finetune.conftest import make_tokenizer, write_log
from tests.finetune.training.interrupt import CtrlC

TOKENIZER = make_tokenizer()
SETTINGS = TrainSettings(epochs=2, batch_size=16, learning_rate=3e-3)


@pytest.fixture
def synonyms(tmp_path: Path) -> Path:
    path = tmp_path / "synonyms.txt"
    path.write_text("tea, soup, moon bike\n\nLikes,loves\n", encoding="utf-8")
    return path


def augment(**settings: object) -> Augmentation:
    return Augmentation(TOKENIZER, replace(TrainSettings(), **settings))


def test_the_share_of_words_that_are_left_out_is_the_one_asked_for() -> None:
    words = " ".join("abcdefghij")
    change = augment(word_dropout=0.3)
    kept = sum(len(change([words], place)[0].split()) for place in range(500))
    assert kept / 5000 == pytest.approx(0.7, abs=0.03)
    order = [list(change([words], place)[0].replace(" ", "")) for place in range(20)]
    assert all(left == sorted(left) for left in order), "what is kept stays in its order"


@given(text=st.text(), place=st.integers(0, 1000))
def test_a_text_is_never_left_without_a_word(text: str, place: int) -> None:
    (changed,) = augment(word_dropout=0.99)([text], place)
    before, after = split_words(TOKENIZER, text), split_words(TOKENIZER, changed)
    assert bool(before) == bool(after)
    assert Counter(after) <= Counter(before)


@given(text=st.text())
def test_words_that_are_not_changed_give_the_same_tokens(text: str) -> None:
    (same,) = augment()([text], 0)
    assert TOKENIZER(same)["input_ids"] == TOKENIZER(text)["input_ids"]


def test_words_become_synonyms_of_their_own_set_and_each_as_often(synonyms: Path) -> None:
    change = augment(synonyms=str(synonyms))
    found = Counter(change(["LIKES new Tea"], place)[0] for place in range(1200))
    expected = {f"{a} new {b}" for a in ("likes", "loves") for b in ("tea", "soup", "moon bike")}
    assert found.keys() == expected
    assert min(found.values()) > 150
    assert {change(["moon", "about moon bike"], place)[0] for place in range(50)} == {"moon"}, "half a synonym is none"
    assert {change(["about moon bike"], place)[0] for place in range(50)} == {
        "about tea", "about soup", "about moon bike"
    }  # fmt: skip


def test_changes_differ_by_row_epoch_and_seed_and_by_nothing_else() -> None:
    text = " ".join("abcdefghijklmnopqrst")
    change, same, other = augment(word_dropout=0.5), augment(word_dropout=0.5), augment(word_dropout=0.5, seed=1)
    first = [change([text], place)[0] for place in range(10)]
    assert len(set(first)) == 10
    assert [same([text], place)[0] for place in reversed(range(10))] == first[::-1]
    assert not set(first) & {other([text], place)[0] for place in range(10)}
    change.epoch = 1
    assert not set(first) & {change([text], place)[0] for place in range(10)}


def test_batches_have_the_changed_texts(base: Path, click_folder: Path) -> None:
    rows = read_click_log(click_folder / "train.jsonl")[:64]
    model, tokenizer, length = build(str(base), rows, SETTINGS)
    plain = Collator(rows, tokenizer, model.heads.settings, length)
    changed = Collator(rows, tokenizer, model.heads.settings, length, augment=augment(word_dropout=0.5))
    items = [[place] for place in range(64)]
    assert changed(items)["pairs"]["attention_mask"].sum() < 0.85 * plain(items)["pairs"]["attention_mask"].sum()


@pytest.mark.slow
def test_a_resumed_run_sees_the_same_texts(base: Path, click_folder: Path, synonyms: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, word_dropout=0.2, synonyms=str(synonyms))
    whole = train(click_folder, str(base), tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        train(click_folder, str(base), tmp_path / "stopped", settings, callbacks=[CtrlC(30)])
    assert train(click_folder, str(base), tmp_path / "stopped", settings) == whole
    plain = train(click_folder, str(base), tmp_path / "plain", SETTINGS)
    assert plain["log_loss"] != whole["log_loss"]


def test_another_file_of_synonyms_cannot_take_over_a_stopped_run(
    base: Path, click_folder: Path, synonyms: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, synonyms=str(synonyms))
    with pytest.raises(KeyboardInterrupt):
        train(click_folder, str(base), tmp_path / "model", settings, callbacks=[CtrlC(2)])
    synonyms.write_text("tea, moon", encoding="utf-8")
    with pytest.raises(SettingsError, match="another data was stopped"):
        train(click_folder, str(base), tmp_path / "model", settings)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"tea, soup\nbike\n", r"synonyms\.txt, line 2: a set has two or more"),
        (b"tea,,soup\n", r"line 1: a set has two or more"),
        (b"tea, soup\n\nbike, TEA\n", r"line 3: 'tea' stands in line 1 already"),
        (b"\n\n", r"synonyms\.txt: has no set"),
        ("thé, soup".encode("latin-1"), r"synonyms\.txt: cannot be read as text"),
        (None, r"synonyms\.txt: cannot be read as text"),
    ],
)
def test_bad_synonyms_are_refused_with_file_and_line(content: bytes | None, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=fault):
        read_synonyms(path, TOKENIZER)


def line(group: str, document: str) -> dict[str, object]:
    return {"group": group, "query": "likes tea", "document": document, "click": 1}


def test_translated_rows_are_learned_in_groups_of_their_own(tmp_path: Path) -> None:
    write_log(tmp_path / "translated.jsonl", [line("a", "soup"), line("b", "moon")])
    train_rows = [ClickRow(group, "likes tea", "tea", 1, 1) for group in "ab"]
    rows = read_translated(tmp_path / "translated.jsonl", train_rows, [])
    assert [row.document for row in rows] == ["soup", "moon"]
    assert len({row.group for row in [*rows, *train_rows]}) == 4


def test_translated_rows_add_what_the_training_split_lacks(base: Path, click_folder: Path, tmp_path: Path) -> None:
    """Documents that say nothing, and translations that do."""
    rows = [json.loads(each) for each in (click_folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    poor = tmp_path / "poor"
    poor.mkdir()
    write_log(poor / "train.jsonl", [{**row, "document": "new"} for row in rows])
    (poor / "dev.jsonl").write_bytes((click_folder / "dev.jsonl").read_bytes())
    write_log(tmp_path / "translated.jsonl", rows)
    settings = replace(SETTINGS, epochs=3, metric="log_loss", translated=str(tmp_path / "translated.jsonl"))
    both = train(poor, str(base), tmp_path / "both", settings)
    alone = train(poor, str(base), tmp_path / "alone", replace(settings, translated=None))
    assert both["log_loss"] < 0.5 < alone["log_loss"]


@pytest.mark.parametrize(("group", "whose"), [("dev", "the dev split's"), ("other", "not in the training split")])
def test_translated_rows_of_other_groups_are_refused(group: str, whose: str, tmp_path: Path) -> None:
    write_log(tmp_path / "translated.jsonl", [line("a", "soup"), line(group, "moon")])
    with pytest.raises(ClickLogError, match=rf"translated\.jsonl, line 2: its group '{group}' is {whose}"):
        read_translated(tmp_path / "translated.jsonl", [ClickRow("a", "", "", 1, 1)], [ClickRow("dev", "", "", 1, 1)])
