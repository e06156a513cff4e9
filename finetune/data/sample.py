"""A sample click log made from templates, to try every step on: shop and news impressions with noisy clicks.

A click is drawn with a probability that depends on whether the user text mentions the candidate's topic (the two sides
use different words for it) and on the candidate's own appeal ("Half price", "Out of stock"). Since clicks are drawn,
even the true probabilities rank imperfectly; `SampleRow.probability` keeps them, to report that ceiling.

No real user is behind it: it shows that every step works, and not which model suits real traffic. It has no position
bias, and the topics of the test users also occur in training.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

from finetune.data.clicklog import ClickRow
from finetune.data.sample_words import DOMAINS, SLOTS, USER_FILLER, Domain, Topic
from finetune.evaluation.metrics import evaluate_ranking

T = TypeVar("T")
SPLITS = {"train": 4000, "dev": 800, "test": 1200}  # at least this many rows
CANDIDATES = (8, 20)
WORDS = (4, 400)
# Most texts are a query or a headline. The tail is drawn beyond 400 words and cut, so that full-length texts occur.
LENGTHS = ((0.83, 4, 16), (0.97, 17, 60), (1.00, 61, 1000))  # cumulative share, words from and to
MATCH_SHARE = 0.36
NAMED_SHARE = 0.6  # of the phrases name their topic, so both sides share a word in a third of the matches
MATCH_LOGIT, OTHER_LOGIT, APPEAL_LOGIT = 0.65, -2.8, 1.2


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A row of the sample and the probability its click was drawn with."""

    row: ClickRow
    probability: float


def generate_sample(seed: int) -> dict[str, list[SampleRow]]:
    """Generate the splits train, dev and test. A user is in one split only; a group is `domain-user-visit`."""
    dice = _Dice(seed)
    splits: dict[str, list[SampleRow]] = {name: [] for name in SPLITS}
    user = 0
    for name, size in SPLITS.items():
        while len(splits[name]) < size:
            domain = DOMAINS[user % len(DOMAINS)]
            interests = dice.shuffled(domain.topics)[:3]
            for visit in range(1 + dice.below(3)):
                splits[name] += _impression(dice, domain, interests, f"{domain.name}-u{user:04d}-{visit}")
            user += 1
    return splits


def write_sample(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Write `folder`/{train,dev,test}.jsonl, and return each split's rows, mean words of a pair and best AUC possible.

    The files get their names once all three are written, so an error or Ctrl-C leaves older ones untouched.
    """
    splits = generate_sample(seed)
    folder.mkdir(parents=True, exist_ok=True)
    drafts = {folder / f".{name}.jsonl.draft": folder / f"{name}.jsonl" for name in splits}
    try:
        for draft, rows in zip(drafts, splits.values(), strict=True):
            draft.write_text("".join(_line(sample.row) for sample in rows), encoding="utf-8", newline="\n")
        for draft, final in drafts.items():
            draft.replace(final)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
    return {name: _summary(rows) for name, rows in splits.items()}


def _summary(samples: Sequence[SampleRow]) -> dict[str, float]:
    rows = [sample.row for sample in samples]
    ceiling = evaluate_ranking(rows, [sample.probability for sample in samples])
    words = [len(row.query.split()) + len(row.document.split()) for row in rows]
    return {
        "rows": len(rows),
        "groups": ceiling["groups"],
        "click_rate": ceiling["clicks"] / len(rows),
        "mean_words": sum(words) / len(words),
        "best_auc_possible": ceiling["auc"],
    }


def _line(row: ClickRow) -> str:
    fields = {"group": row.group, "query": row.query, "document": row.document, "click": int(row.clicks)}
    return json.dumps(fields, ensure_ascii=False) + "\n"


class _Dice:
    """Seeded draws from `Random.random` alone: Python promises never to change that method's sequence."""

    def __init__(self, seed: int):
        self.random = Random(seed).random

    def below(self, count: int) -> int:
        return int(self.random() * count)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = self.below(last + 1)
            result[last], result[other] = result[other], result[last]
        return result

    def fill(self, template: str, **known: str) -> list[str]:
        """Fill a template's slots, and split it into words."""
        text = re.sub(r"\{(\w+)\}", lambda slot: known.get(slot[1]) or self.pick(SLOTS[slot[1]]), template)
        return text.split()

    def length(self) -> int:
        """Draw a text's number of words; log-uniform within a range, so the shorter ones are the more common."""
        draw = self.random()
        low, high = next((low, high) for up_to, low, high in LENGTHS if draw < up_to)
        return min(WORDS[1], int(low * math.exp(self.random() * math.log((high + 1) / low))))


def _impression(dice: _Dice, domain: Domain, interests: Sequence[Topic], group: str) -> list[SampleRow]:
    length = dice.length()
    mentioned = dice.shuffled(interests)[: 1 if length < 20 else 2]
    others = [topic for topic in domain.topics if topic not in mentioned]
    sentences = [dice.fill(dice.pick(domain.user), phrase=_phrase(dice, topic, topic.user)) for topic in mentioned]
    query = _compose(dice, sentences, USER_FILLER, length)
    samples = []
    for _ in range(CANDIDATES[0] + dice.below(CANDIDATES[1] - CANDIDATES[0] + 1)):
        matches = dice.random() < MATCH_SHARE
        document, appeal = _candidate(dice, domain, dice.pick(mentioned if matches else others))
        logit = (MATCH_LOGIT if matches else OTHER_LOGIT) + APPEAL_LOGIT * appeal
        probability = 1 / (1 + math.exp(-logit))
        row = ClickRow(group, query, document, clicks=float(dice.random() < probability), impressions=1.0)
        samples.append(SampleRow(row, probability))
    return samples


def _phrase(dice: _Dice, topic: Topic, vocabulary: Sequence[str]) -> str:
    phrase = dice.pick(vocabulary)
    return f"{phrase} ({topic.name})" if dice.random() < NAMED_SHARE else phrase


def _candidate(dice: _Dice, domain: Domain, topic: Topic) -> tuple[str, int]:
    """Write a candidate; its appeal is 1, 0 or -1, and always 0 if there is no room for the remark that shows it."""
    length = dice.length()
    sentences = [dice.fill(dice.pick(domain.candidate), phrase=_phrase(dice, topic, topic.candidate))]
    appeal = dice.below(3) - 1
    remark = dice.fill(dice.pick(domain.appealing if appeal > 0 else domain.repelling))
    if appeal and len(sentences[0]) + len(remark) <= length:
        sentences.append(remark)
    else:
        appeal = 0
    return _compose(dice, sentences, domain.candidate_filler, length), appeal


def _compose(dice: _Dice, sentences: Sequence[list[str]], filler: Sequence[str], length: int) -> str:
    """Join the sentences in any order, with enough filler to make `length` words.

    Only filler is ever cut, and the cut piece comes last. A text is longer if its sentences alone are.
    """
    parts = list(sentences)
    cut: list[str] = []
    room = length - sum(map(len, parts))
    while room > 0:
        part = dice.fill(dice.pick(filler))
        if len(part) > room:
            cut = part[:room]
        else:
            parts.append(part)
        room -= len(part)
    written = [" ".join(part) for part in [*dice.shuffled(parts), cut] if part]
    return " ".join(part[0].upper() + part[1:] for part in written)
