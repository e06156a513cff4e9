"""The requests that benchmarks send: the same every time, of the size and kind that was asked for."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks import BenchmarkError
from benchmarks.load_gen import workload
from benchmarks.load_gen.target import published_version
from benchmarks.load_gen.workload import (
    BLOCK,
    CLICKED,
    HISTORY,
    TITLES,
    Request,
    Selection,
    resize,
    sample_of_all_sizes,
    size_classes,
    spread,
)
from benchmarks.measure.recording import LARGEST, MIDDLE, SMALL
from benchmarks.saturation.tokens import count_tokens, pack, published_tokenizer
from tests.tiny import MAX_LENGTH, make_click_log


def groups(click_log: Path) -> Counter:
    """How often each query came with each candidates."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in click_log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault((row["group"], row["query"]), []).append(row["document"])
    return Counter((query, tuple(documents)) for (_, query), documents in found.items())


def test_the_requests_are_the_logs_groups_shuffled_and_the_same_every_time(published_log: Path) -> None:
    random.seed(1)
    first = Selection(published_log).read()
    random.seed(2)  # somebody's else
    assert Selection(published_log).read() == first
    assert Counter((request.query, request.documents) for request in first) == groups(published_log)
    assert [request.query for request in first] != [query for query, _ in groups(published_log)]
    assert Selection(published_log, 20).read() == Selection(published_log, 20).read()


def test_groups_that_do_not_lie_together_are_one_request(tmp_path: Path) -> None:
    rows = [("a", "q", "1"), ("b", "q", "2"), ("a", "q", "3"), ("a", "other", "4")]
    lines = [json.dumps({"group": group, "query": query, "document": text, "click": 0}) for group, query, text in rows]
    (tmp_path / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    expected = {Request("q", ("1", "3")), Request("q", ("2",)), Request("other", ("4",))}
    assert set(Selection(tmp_path / "log.jsonl").read()) == expected


def test_a_history_is_a_user_text_of_titles_of_the_log(tmp_path: Path) -> None:
    rows = [("visit", "q", f"title {number}", 0) for number in range(20)] + [("visit", "q", "long " * 50, 1)]
    lines = [json.dumps(dict(zip(("group", "query", "document", "click"), row, strict=True))) for row in rows]
    (tmp_path / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (request,) = Selection(tmp_path / "log.jsonl", texts=HISTORY).read()
    assert len(request.documents) == 20, "the long one is left out"
    clicked = request.query.split(" ; ")
    assert len(set(clicked)) == CLICKED
    assert set(clicked) <= set(request.documents)
    assert Selection(tmp_path / "log.jsonl", texts=HISTORY).read() == [request]


@pytest.mark.parametrize("candidates", [1, 5, 30])
def test_every_request_has_just_as_many_candidates(tmp_path: Path, candidates: int) -> None:
    log = make_click_log(tmp_path / "log.jsonl")
    requests = Selection(log, candidates).read()
    texts = {text for request in Selection(log).read() for text in request.documents}
    own = dict(groups(log).keys())
    assert len(requests) == len(own)
    for request in requests:
        assert len(request.documents) == candidates
        assert set(request.documents) <= texts
        kept = min(candidates, len(own[request.query]))
        assert request.documents[:kept] == own[request.query][:kept]  # its own first, others fill up
        assert len(set(request.documents)) == candidates  # the client would score the same one once


def test_where_the_log_has_too_few_texts_some_come_twice() -> None:
    request = Request("q", ("a", "b"))
    documents = resize(request, 5, ["a", "b", "c"], random.Random(0)).documents
    assert documents[:3] == ("a", "b", "c")
    assert len(documents) == 5
    assert set(documents) == {"a", "b", "c"}


def of_size(characters: int) -> Request:
    return Request("", ("x" * characters,))


@pytest.mark.parametrize("count", [1, 7, 20, 21, 87, 200])
def test_every_stretch_of_the_order_has_the_mix_of_all(count: int) -> None:
    requests = [of_size(size) for size in range(count)]
    order = spread(requests, random.Random(3))
    assert order == spread(requests, random.Random(3))
    assert count == 1 or order != spread(requests, random.Random(4))
    assert Counter(order) == Counter(requests)
    turns = -(-count // BLOCK)
    for first in range(0, max(1, count - BLOCK + 1)):
        stretch = [request.characters for request in order[first : first + BLOCK]]
        # Each block of the order has one of each stratum, and a stretch lies in two blocks.
        largest = sum(size >= count - turns for size in stretch)
        assert largest <= 2
        assert np.mean(stretch) == pytest.approx((count - 1) / 2, rel=0.25)


def test_size_classes_are_the_smaller_half_the_largest_twentieth_and_the_rest() -> None:
    requests = [of_size(size) for size in random.Random(1).sample(range(100), 100)]
    found = size_classes(requests)
    assert Counter(found.values()) == {SMALL: 50, MIDDLE: 45, LARGEST: 5}
    assert all(found[of_size(size)] == SMALL for size in range(50))
    assert all(found[of_size(size)] == LARGEST for size in range(95, 100))
    assert size_classes([of_size(3)] * 4) == {of_size(3): SMALL}
    assert set(size_classes([of_size(1), of_size(2)]).values()) == {SMALL, LARGEST}
    assert Request("ab", ("c", "de")).characters == 7  # what is read: the query once for each


def test_titles_are_the_candidates_up_to_the_limit(tmp_path: Path) -> None:
    lengths = [workload.TITLE - 1, workload.TITLE, workload.TITLE + 1]
    lines = [json.dumps({"group": "g", "query": "q" * 500, "document": "d" * length, "click": 0}) for length in lengths]
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(lines), encoding="utf-8")
    (request,) = Selection(log, texts=TITLES).read()
    assert [len(text) for text in request.documents] == lengths[:2]
    (request,) = Selection(log, candidates=20, texts=TITLES).read()
    assert {len(text) for text in request.documents} == set(lengths[:2])  # what fills up is short, too
    log.write_text(lines[2], encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"log\.jsonl has no candidate of 150 characters or fewer.*--texts all"):
        Selection(log, texts=TITLES).read()


def test_a_few_requests_have_the_sizes_of_all() -> None:
    chance = random.Random(0)
    requests = [Request(f"q{number}", ("x" * int(chance.lognormvariate(5, 1)),)) for number in range(400)]
    chosen = sample_of_all_sizes(requests, 40)
    assert len(set(chosen)) == 40
    assert set(chosen) <= set(requests)
    assert chosen == sample_of_all_sizes(requests, 40)
    assert np.mean([each.characters for each in chosen]) == pytest.approx(
        np.mean([each.characters for each in requests]), rel=0.05
    )
    halves = [sum(each.characters for each in half) for half in (chosen[:20], chosen[20:])]
    assert max(halves) < 1.5 * min(halves)  # spread, too
    assert sample_of_all_sizes(requests, None) == sample_of_all_sizes(requests, 400) == requests


def test_the_published_tokenizer_is_the_checkpoints(
    published_repository: Path, published_checkpoint: Path, published_log: Path
) -> None:
    requests = Selection(published_log).read()
    packed = pack(published_tokenizer(published_repository), requests)
    theirs = AutoTokenizer.from_pretrained(published_checkpoint)
    for request, pairs in zip(requests, packed, strict=True):
        queries = [request.query] * len(request.documents)
        each = theirs(queries, list(request.documents), truncation=True, max_length=MAX_LENGTH)["input_ids"]
        assert pairs.lengths.tolist() == [len(ids) for ids in each]
        assert pairs.input_ids.tolist() == [token for ids in each for token in ids]


def test_the_published_version_is_by_number(tmp_path: Path) -> None:
    for name in ("9", "10", "11.staging", "warmup"):
        (tmp_path / "model" / name).mkdir(parents=True)
        (tmp_path / "model" / name / "model.onnx").touch()
    assert published_version(tmp_path, "model").name == "10"
    with pytest.raises(BenchmarkError, match=r"other has no published version; publish one with"):
        published_version(tmp_path, "other")


def test_tokens_with_and_without_padding(published_repository: Path, tmp_path: Path) -> None:
    requests = Selection(make_click_log(tmp_path / "log.jsonl", groups=3)).read()
    tokenizer = published_tokenizer(published_repository)
    packed = pack(tokenizer, requests)
    lengths = [pairs.lengths.tolist() for pairs in packed]
    assert count_tokens(packed, tokenizer.max_length) == {
        "packed": sum(len(pairs.input_ids) for pairs in packed),
        "padded to the request's longest": sum(max(each) * len(each) for each in lengths),
        f"padded to {MAX_LENGTH}": sum(MAX_LENGTH * len(each) for each in lengths),
    }
