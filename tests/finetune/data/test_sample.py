"""The sample click log: its size, its split, its lengths, and that no shortcut explains its clicks."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from finetune.data.clicklog import read_click_log
from finetune.data.sample import SPLITS, SampleRow, generate_sample, write_sample
from finetune.data.sample_words import DOMAINS

# Of the three files of seed 0, joined: the same bytes for every Python (checked with 3.11, 3.12 and 3.13).
SHA256 = "039c90829465234746bf01afd5c8bc0dec724a37feedb948412b29f020c891f8"


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
    users = [{sample.row.group.split("-")[1] for sample in samples} for samples in splits.values()]
    assert sum(map(len, users)) == len(set.union(*users))


def test_lengths_from_4_to_400_words(splits: dict[str, list[SampleRow]]) -> None:
    for side in ("query", "document"):
        words = [len(getattr(sample.row, side).split()) for samples in splits.values() for sample in samples]
        assert (min(words), max(words)) == (4, 400)
        assert np.median(words) < 20, "most texts are short, so that the demo trains in minutes"


def test_the_ceiling_is_neither_perfect_nor_low(splits: dict[str, list[SampleRow]]) -> None:
    everything = [sample for samples in splits.values() for sample in samples]
    clicks = [sample.row.clicks for sample in everything]
    assert 0.80 < roc_auc_score(clicks, [sample.probability for sample in everything]) < 0.87


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
    write_sample(tmp_path, 0)
    files = [tmp_path / f"{name}.jsonl" for name in SPLITS]
    assert sorted(tmp_path.iterdir()) == sorted(files), "no draft is left behind"
    assert hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest() == SHA256
    for path in files:
        assert read_click_log(path) == [sample.row for sample in splits[path.stem]]
        assert set(json.loads(path.read_text().splitlines()[0])) == {"group", "query", "document", "click"}


def test_another_seed_is_another_log(splits: dict[str, list[SampleRow]]) -> None:
    assert generate_sample(1)["dev"] != splits["dev"]


def test_a_failed_write_keeps_the_older_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample(tmp_path, 0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_text = Path.write_text

    def full_disk(path: Path, *args: object, **options: object) -> int:
        if "test" in path.name:
            raise OSError(28, "No space left on device")
        return write_text(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_sample(tmp_path, 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
