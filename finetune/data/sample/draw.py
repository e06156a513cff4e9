"""A sample click log made from templates, to try every step on: shop and news impressions with noisy clicks.

A click is drawn. Its log-odds are a sum: the relevance, which the texts tell (does the user text mention the topic of
the candidate, for which the two sides use different words? how appealing is the candidate: "Half price", "Out of
stock"?), the position bias, and a drift over four weeks, in which news become more popular and the shop less. The
positions come from a ranker that knows something of the relevance, so that better candidates stand higher, and click
rates by position show far more than the bias. Users come one after the other, train before dev before test.

Since clicks are drawn, even the true relevance ranks imperfectly. `SampleRow` keeps it, to report that ceiling: the
best AUC possible for what sees the texts alone.

No real user is behind it: it shows that every step works, and not which model suits real traffic. The topics of the
test users also occur in training.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

from finetune.data.row import ClickRow, format_row
from finetune.data.sample.words import DOMAINS, SLOTS, USER_FILLER, Domain, Topic
from finetune.data.writing import whole_files
from finetune.evaluation.metrics import evaluate_ranking

T = TypeVar("T")
SPLITS = {"train": 4000, "dev": 800, "test": 1200}  # at least this many rows
CANDIDATES = (8, 20)
WORDS = (4, 400)
# Most texts are a query or a headline. The tail is drawn beyond 400 words and cut, so that full-length texts occur.
LENGTHS = ((0.83, 4, 16), (0.97, 17, 60), (1.00, 61, 1000))  # cumulative share, words from and to
MATCH_SHARE = 0.36
NAMED_SHARE = 0.6  # of the phrases name their topic, so both sides share a word in a third of the matches
MATCH_LOGIT, OTHER_LOGIT, APPEAL_LOGIT = 1.4, -2.1, 1.2
POSITION_LOGIT = -0.35  # with each doubling of the position: 0 at position 1, -0.35 at 2, -0.7 at 4
DRIFT_LOGIT = {"shop": -0.3, "news": 0.3}  # a week, and 0 in the middle of the four
RANKER_SHARE, RANKER_NOISE = 0.5, 1.0  # what the logging ranker knows of the relevance, and how far it errs
START = 1_767_571_200  # Monday, 2026-01-05 00:00 UTC
HOUR, WEEK = 3600, 7 * 24 * 3600
HOURS_A_USER = 3  # some 220 users fill four weeks


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A row of the sample, and what its click was drawn from."""

    row: ClickRow
    relevance: float  # in log-odds: all that the texts tell
    probability: float  # of the click, with position bias and drift


def generate_sample(seed: int) -> dict[str, list[SampleRow]]:
    """Generate the splits train, dev and test. A user is in one split only; a group is `domain-user-visit`."""
    # Positions and times have dice of their own, so that a change of theirs leaves every text as it is.
    dice, showing = _Dice(seed), _Dice(~seed)
    splits: dict[str, list[SampleRow]] = {name: [] for name in SPLITS}
    user = 0
    for name, size in SPLITS.items():
        while len(splits[name]) < size:
            domain = DOMAINS[user % len(DOMAINS)]
            interests = dice.shuffled(domain.topics)[:3]
            for visit in range(1 + dice.below(3)):
                time = START + (user * HOURS_A_USER + visit) * HOUR + showing.below(HOUR)
                shown = _Shown(f"{domain.name}-u{user:04d}-{visit}", f"u{user:04d}", time)
                splits[name] += _impression(dice, showing, domain, interests, shown)
            user += 1
    return splits


def write_sample(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Write `folder`/{train,dev,test}.jsonl, and return each split's rows, mean words of a pair and best AUC possible.

    The files get their names once all three are written, so an error or Ctrl-C leaves older ones untouched.
    """
    splits = generate_sample(seed)
    with whole_files([folder / f"{name}.jsonl" for name in splits]) as files:
        for file, rows in zip(files, splits.values(), strict=True):
            file.writelines(format_row(sample.row) for sample in rows)
    return {name: _summary(rows) for name, rows in splits.items()}


def _summary(samples: Sequence[SampleRow]) -> dict[str, float]:
    rows = [sample.row for sample in samples]
    ceiling = evaluate_ranking(rows, [_sigmoid(sample.relevance) for sample in samples])
    words = [len(row.query.split()) + len(row.document.split()) for row in rows]
    return {
        "rows": len(rows),
        "groups": ceiling["groups"],
        "click_rate": ceiling["clicks"] / len(rows),
        "mean_words": sum(words) / len(words),
        "best_auc_possible": ceiling["auc"],
    }


@dataclass(frozen=True, slots=True)
class _Shown:
    """An impression: its id, whose it was, and when, in whole seconds since 1970."""

    group: str
    user: str
    time: int


class _Dice:
    """Seeded draws from `Random.random` alone: Python promises never to change that method's sequence."""

    def __init__(self, seed: int):
        self.random = Random(seed).random

    def below(self, count: int) -> int:
        return int(self.random() * count)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def normal(self) -> float:
        """Draw from the standard normal distribution (Box and Muller)."""
        return math.sqrt(-2 * math.log(1 - self.random())) * math.cos(2 * math.pi * self.random())

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


def _impression(
    dice: _Dice, showing: _Dice, domain: Domain, interests: Sequence[Topic], shown: _Shown
) -> list[SampleRow]:
    length = dice.length()
    mentioned = dice.shuffled(interests)[: 1 if length < 20 else 2]
    others = [topic for topic in domain.topics if topic not in mentioned]
    sentences = [dice.fill(dice.pick(domain.user), phrase=_phrase(dice, topic, topic.user)) for topic in mentioned]
    query = _compose(dice, sentences, USER_FILLER, length)
    candidates = []
    for _ in range(CANDIDATES[0] + dice.below(CANDIDATES[1] - CANDIDATES[0] + 1)):
        matches = dice.random() < MATCH_SHARE
        topic = dice.pick(mentioned if matches else others)
        document, appeal = _candidate(dice, domain, topic)
        relevance = (MATCH_LOGIT if matches else OTHER_LOGIT) + APPEAL_LOGIT * appeal
        candidates.append((document, topic.name, relevance, dice.random()))
    drift = DRIFT_LOGIT[domain.name] * ((shown.time - START) / WEEK - 2)
    samples = []
    positions = _positions(showing, [relevance for _, _, relevance, _ in candidates])
    for (document, topic_name, relevance, draw), position in zip(candidates, positions, strict=True):
        probability = _sigmoid(relevance + POSITION_LOGIT * math.log2(position) + drift)
        row = ClickRow(
            shown.group,
            query,
            document,
            clicks=float(draw < probability),
            impressions=1.0,
            topics=(topic_name,),
            position=position,
            user=shown.user,
            time=shown.time,
            others={"domain": domain.name},
        )
        samples.append(SampleRow(row, relevance, probability))
    return samples


def _positions(showing: _Dice, relevances: Sequence[float]) -> list[int]:
    """Rank as the ranker did that made the log, and return each candidate's position, from 1."""
    guesses = [RANKER_SHARE * relevance + RANKER_NOISE * showing.normal() for relevance in relevances]
    order = sorted(range(len(guesses)), key=lambda index: -guesses[index])
    positions = {index: position for position, index in enumerate(order, start=1)}
    return [positions[index] for index in range(len(guesses))]


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


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
