"""Texts as they might have been written: words left out, synonyms exchanged, rows that were translated back.

Words are those that BERT's tokenizer sees, before it cuts them into pieces: lower case and without accents if the model
is uncased; a Chinese character or a punctuation mark is one. What happens to a text depends on seed, epoch and row
alone, so that a resumed run sees the texts that it would have seen.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.data.clicklog import ClickLogError, ClickRow, read_click_log
from finetune.training.settings import SettingsError, TrainSettings

Words = tuple[str, ...]


class Augmentation(TrainerCallback):
    """Changes a row's texts, anew in each epoch. A text that has a word keeps one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, settings: TrainSettings) -> None:
        """Read the synonyms, if there are any.

        Raises:
            SettingsError: see `read_synonyms`.
        """
        self.tokenizer = tokenizer
        self.dropped = settings.word_dropout
        self.seed = settings.seed
        self.synonyms = read_synonyms(Path(settings.synonyms), tokenizer) if settings.synonyms else {}
        self.longest = max(map(len, self.synonyms), default=0)
        self.epoch = 0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """Remember the epoch."""
        self.epoch = int(state.epoch or 0)

    def __call__(self, texts: Sequence[str], place: int) -> list[str]:
        """Change the texts of the row at `place` in the log."""
        chance = random.Random(f"{self.seed} {self.epoch} {place}")
        return [self._change(text, chance) for text in texts]

    def _change(self, text: str, chance: random.Random) -> str:
        words = self._exchange(split_words(self.tokenizer, text), chance)
        if not words:
            return text
        kept = [word for word in words if chance.random() >= self.dropped]
        return " ".join(kept or [chance.choice(words)])

    def _exchange(self, words: Sequence[str], chance: random.Random) -> list[str]:
        """Exchange each word, or row of words, for one of its set; itself as often as any other."""
        changed: list[str] = []
        place = 0
        while place < len(words):
            for length in range(min(self.longest, len(words) - place), 0, -1):
                found = self.synonyms.get(tuple(words[place : place + length]))
                if found:
                    changed += chance.choice(found)
                    place += length
                    break
            else:
                changed.append(words[place])
                place += 1
        return changed


def split_words(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """Split a text into the words that the tokenizer sees; joined with spaces, they give the same tokens."""
    core = tokenizer.backend_tokenizer
    normal = core.normalizer.normalize_str(text) if core.normalizer else text
    return [word for word, _ in core.pre_tokenizer.pre_tokenize_str(normal)]


def read_synonyms(path: Path, tokenizer: PreTrainedTokenizerFast) -> dict[Words, list[Words]]:
    """Read sets of synonyms, a comma-separated set a line: from each synonym's words to those of its whole set.

    Raises:
        SettingsError: the file cannot be read, or a line has fewer than two synonyms, or one that another line has.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"--synonyms {path}: cannot be read as text ({error}); write a comma-separated set a line, in UTF-8"
        ) from error
    found: dict[Words, list[Words]] = {}
    seen: dict[Words, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        synonyms = [tuple(split_words(tokenizer, synonym)) for synonym in line.split(",")]
        where = f"--synonyms {path}, line {number}"
        if len(synonyms) < 2 or not all(synonyms):
            raise SettingsError(f"{where}: a set has two or more synonyms, separated by commas; this is {line!r}")
        for words in synonyms:
            if words in seen:
                raise SettingsError(
                    f"{where}: {' '.join(words)!r} stands in line {seen[words]} already; join the two sets, "
                    "or leave it out of one"
                )
            seen[words] = number
            found[words] = synonyms
    if not found:
        raise SettingsError(f"--synonyms {path}: has no set; write a comma-separated set a line")
    return found


def read_translated(path: Path, train: Sequence[ClickRow], dev: Sequence[ClickRow]) -> list[ClickRow]:
    """Read rows of the training split that were translated into another language and back.

    They keep the names of their groups in the file, but become groups of their own in training, so that no row is ever
    compared with its own translation.

    Raises:
        ClickLogError: the file is no click log, or has a group that the training split has not: it may be one of dev's,
            whose answers would then be learned.
    """
    known = {row.group for row in train}
    held_out = {row.group for row in dev}
    rows = read_click_log(path)
    for row in rows:
        if row.group not in known:
            whose = "the dev split's" if row.group in held_out else "not in the training split"
            raise ClickLogError(
                f"{path}, line {row.line}: its group {row.group!r} is {whose}; translate rows of the training split, "
                "and keep their groups"
            )
    return [replace(row, group=f"{row.group} (translated)") for row in rows]
