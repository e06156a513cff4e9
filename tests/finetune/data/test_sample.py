"""The sample click log: its size, its split, its lengths, what its clicks depend on, and that no shortcut does."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from finetune.data.clicklog import read_click_log
from finetune.data.sample.draw import (
    DRIFT_LOGIT,
    POSITION_LOGIT,
    SPLITS,
    START,
    WEEK,
    SampleRow,
    generate_sample,
    write_sample,
)
from finetune.data.sample.words import DOMAINS

# Of the three files of seed 0, joined: the same bytes for every Python.
SHA256 = "b05918f440daa393fe584b011af02faa9a7011ec1390a4344b039547ba4295af"


@pytest.fixture(scope="module")
def splits() -> dict[str, list[SampleRow]]:
    return generate_sample(0)


def test_size_and_groups(splits: dict[str, list[SampleRow]]) -> None:
    assert SPLITS["train"] >= 4000
    assert min(SPLITS["dev"], SPLITS["test"]) >= 800
    for name, samples in splits.items():
        assert len(samples) >= SPLITS[name]
        groups: dict[str, set[str]] = {}
        sizes: dict[str, int] = {}
        for sample in samples:
            groups.setdefault(sample.row.group, set()).add(sample.row.query)
            sizes[sample.row.group] = sizes.get(sample.row.group, 0) + 1
        assert all(len(queries) == 1 for queries in groups.values()), "a group has one user text"
        assert min(sizes.values()) >= 8
        assert max(sizes.values()) <= 20
        assert {group.split("-")[0] for group in groups} == {"shop", "news"}


def test_no_user_is_in_two_splits(splits: dict[str, list[SampleRow]]) -> None:
    users = [{sample.row.user for sample in samples} for samples in splits.values()]
    assert sum(map(len, users)) == len(set.union(*users))
    assert all(sample.row.group.split("-")[1] == sample.row.user for sample in splits["test"])


def test_each_split_is_later_than_the_one_before(splits: dict[str, list[SampleRow]]) -> None:
    times = [[time_of(sample) for sample in samples] for samples in splits.values()]
    assert max(times[0]) < min(times[1])
    assert max(times[1]) < min(times[2])
    assert min(times[0]) >= START
    assert max(times[2]) <= START + 4 * WEEK
    for samples in splits.values():
        shown = {(sample.row.group, sample.row.time) for sample in samples}
        assert len(shown) == len({group for group, _ in shown}), "candidates of a group are shown together"


def test_positions_count_from_1_and_the_files_order_does_not_tell_them(splits: dict[str, list[SampleRow]]) -> None:
    places, positions = [], []
    for samples in splits.values():
        groups: dict[str, list[int]] = {}
        for sample in samples:
            groups.setdefault(sample.row.group, []).append(sample.row.position or 0)
        assert all(sorted(group) == list(range(1, len(group) + 1)) for group in groups.values())
        for group in groups.values():
            places += range(len(group))
            positions += group
    # (both grow with the size of the group, so the comparison is within the first eight)
    first = np.array(places) < 8
    low = np.array(positions) <= 8
    assert abs(np.corrcoef(np.array(places)[first & low], np.array(positions)[first & low])[0, 1]) < 0.05


def test_the_topic_is_the_documents_and_the_domain_is_named(splits: dict[str, list[SampleRow]]) -> None:
    phrases = {topic.name: topic.candidate for domain in DOMAINS for topic in domain.topics}
    for sample in splits["dev"]:
        (topic,) = sample.row.topics
        assert any(phrase.casefold() in sample.row.document.casefold() for phrase in phrases[topic])
        assert sample.row.others == {"domain": sample.row.group.split("-")[0]}


def test_who_knows_the_relevance_finds_bias_and_drift_again(splits: dict[str, list[SampleRow]]) -> None:
    everything = [sample for samples in splits.values() for sample in samples]
    clicks = [sample.row.clicks for sample in everything]
    doublings = np.log2([sample.row.position for sample in everything])
    weeks = np.array([time_of(sample) - START for sample in everything]) / WEEK - 2
    shop = np.array([sample.row.others["domain"] == "shop" for sample in everything])
    relevance = [sample.relevance for sample in everything]
    seen = np.column_stack([relevance, doublings, weeks * shop, weeks * ~shop])
    found = LogisticRegression(C=1e6).fit(seen, clicks).coef_[0]
    assert found[0] == pytest.approx(1, abs=0.1)
    assert found[1] == pytest.approx(POSITION_LOGIT, abs=0.1)
    assert found[2] == pytest.approx(DRIFT_LOGIT["shop"], abs=0.1)
    assert found[3] == pytest.approx(DRIFT_LOGIT["news"], abs=0.1)
    # The ranker put better candidates higher: positions alone seem to matter far more than they do.
    alone = LogisticRegression(C=1e6).fit(doublings[:, None], clicks).coef_[0]
    assert alone[0] < 2 * POSITION_LOGIT


def time_of(sample: SampleRow) -> float:
    assert sample.row.time is not None
    return sample.row.time


def test_lengths_from_4_to_400_words(splits: dict[str, list[SampleRow]]) -> None:
    for side in ("query", "document"):
        words = [len(getattr(sample.row, side).split()) for samples in splits.values() for sample in samples]
        assert (min(words), max(words)) == (4, 400)
        assert np.median(words) < 20, "most texts are short, so that the demo trains in minutes"


def test_the_ceiling_is_neither_perfect_nor_low(splits: dict[str, list[SampleRow]]) -> None:
    everything = [sample for samples in splits.values() for sample in samples]
    clicks = [sample.row.clicks for sample in everything]
    by_relevance = roc_auc_score(clicks, [sample.relevance for sample in everything])
    assert 0.853 < by_relevance < roc_auc_score(clicks, [sample.probability for sample in everything]) < 0.93
    assert 0.23 < np.mean(clicks) < 0.31


def test_no_shortcut(splits: dict[str, list[SampleRow]]) -> None:
    clicks = {name: [sample.row.clicks for sample in splits[name]] for name in splits}
    documents = {name: [sample.row.document for sample in splits[name]] for name in splits}
    words = CountVectorizer(min_df=2, binary=True)
    model = LogisticRegression(C=0.05, max_iter=500).fit(words.fit_transform(documents["train"]), clicks["train"])
    by_document = model.predict_proba(words.transform(documents["test"]))[:, 1]
    assert roc_auc_score(clicks["test"], by_document) < 0.68
    by_length = roc_auc_score(clicks["test"], [len(document) for document in documents["test"]])
    assert 0.4 < by_length < 0.6


def test_the_matching_sentence_may_be_anywhere(splits: dict[str, list[SampleRow]]) -> None:
    phrases = [phrase.casefold() for domain in DOMAINS for topic in domain.topics for phrase in topic.candidate]
    places = []
    for sample in splits["train"]:
        document = sample.row.document.casefold()
        if len(document.split()) > 100:
            places.append(max(document.find(phrase) for phrase in phrases) / len(document))
    assert min(places) >= 0, "every candidate has a topic"
    assert np.quantile(places, 0.1) < 0.2
    assert np.quantile(places, 0.9) > 0.8


def test_writes_the_same_bytes_again(tmp_path: Path, splits: dict[str, list[SampleRow]]) -> None:
    summaries = write_sample(tmp_path, 0)
    assert summaries["test"]["best_auc_possible"] >= 0.853, "for a scorer that sees the texts alone"
    files = [tmp_path / f"{name}.jsonl" for name in SPLITS]
    assert sorted(tmp_path.iterdir()) == sorted(files), "no draft is left behind"
    assert hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest() == SHA256
    for path in files:
        assert read_click_log(path) == [sample.row for sample in splits[path.stem]]
        keys = ["group", "query", "document", "click", "topic", "position", "user", "time", "domain"]
        assert list(json.loads(path.read_text().splitlines()[0])) == keys


def test_another_seed_is_another_log(splits: dict[str, list[SampleRow]]) -> None:
    assert generate_sample(1)["dev"] != splits["dev"]
