"""Decides which label of a classifier is the click: the one rule for scoring, evaluation and export.

The names decide; case, spaces, hyphens and underscores do not matter:

    one label              that one, unless its name denies a click ("not clicked")
    "click", "clicked"     that one, among any number of labels
    two opposite labels    yes of yes/no, positive of positive/negative, relevant of relevant/irrelevant, 1 of 0/1,
                           true of false/true
    LABEL_0, LABEL_1       LABEL_1: these are transformers' own names for two classes, and class 1 is the positive one

If the names do not tell, the user must (`--click-label`). This module needs neither torch nor transformers.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.checkpoint.files import CheckpointError

CLICK = {"click", "clicked"}
NO_CLICK = {
    "noclick", "noclicks", "notclick", "notclicked", "nonclick", "nonclicked", "unclicked", "didnotclick",
}  # fmt: skip
OPPOSITES = {
    "yes": {"no"},
    "positive": {"negative"},
    "relevant": {"irrelevant", "notrelevant", "nonrelevant"},
    "1": {"0"},
    "true": {"false"},
}
# Without "0": a single label may have its index as its name.
DENIALS = NO_CLICK.union(*OPPOSITES.values()) - {"0"}
MULTI_LABEL = "multi_label_classification"
PROBLEM_TYPES = (None, "regression", "single_label_classification", MULTI_LABEL)


def click_column(labels: Sequence[str]) -> int:
    """Return the index of the label that means a click, by the names alone (see above).

    Raises:
        CheckpointError: the names do not tell, or more than one means a click.
    """
    names = [_plain(label) for label in labels]
    clicks = [index for index, name in enumerate(names) if name in CLICK]
    if len(clicks) == 1:
        return clicks[0]
    if not clicks and len(names) == 1 and names[0] not in DENIALS:
        return 0
    if not clicks and len(names) == 2:
        if _are_default(labels):
            return 1
        for index in (0, 1):
            if names[1 - index] in OPPOSITES.get(names[index], ()):
                return index
    raise CheckpointError(
        f"the labels {list(labels)} do not tell which one is the click; name it with --click-label (a name or an index)"
    )


def choose_click(labels: Sequence[str], click_label: str | int | None, problem_type: str | None) -> int:
    """Return the index of the click's label: the user's choice, or else what the names say.

    Raises:
        CheckpointError: there is no such label, it denies a click, or the names do not tell.
    """
    if click_label is None:
        if problem_type == MULTI_LABEL and len(labels) > 1 and _are_default(labels):
            raise CheckpointError(
                f"the labels {list(labels)} of a multi-label model do not tell which one is the click; "
                "name it with --click-label (a name or an index)"
            )
        return click_column(labels)
    index = _find_label(labels, click_label)
    if _plain(labels[index]) in NO_CLICK:
        raise CheckpointError(
            f"--click-label is {labels[index]!r}, which would rank backwards; the labels are {list(labels)}"
        )
    return index


def name_click(labels: Sequence[str], index: int) -> list[str]:
    """Rename labels so that `click_column` finds the chosen one; if it does already, change nothing."""
    try:
        if click_column(labels) == index:
            return list(labels)
    except CheckpointError:
        pass  # the names do not tell, so the user did
    others = [f"other {label}" if _plain(label) in CLICK else label for label in labels]
    return [*others[:index], "click", *others[index + 1 :]]


def read_labels(config: Mapping[str, Any]) -> list[str]:
    """Read the label names from a config.json, in the order of their ids.

    If `id2label` has transformers' default names (LABEL_0, ...) and `label2id` has real ones, `label2id` counts.

    Raises:
        CheckpointError: `id2label`, `label2id`, `num_labels` and `problem_type` are broken or contradict each other.
    """
    count = config.get("num_labels")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 10_000):
        raise CheckpointError(f"num_labels is {count!r}; it must be a number from 1, without quotes")
    given = config.get("id2label")
    labels = [f"LABEL_{index}" for index in range(count or 2)] if given is None else _names(given)
    if count is not None and count != len(labels):
        raise CheckpointError(f"num_labels is {count}, but id2label names {len(labels)} labels: {labels}")
    if config.get("label2id") is not None:
        labels = _reconcile(labels, config["label2id"])
    problem_type = config.get("problem_type")
    if problem_type not in PROBLEM_TYPES:
        raise CheckpointError(f"problem_type is {problem_type!r}; it must be one of {list(PROBLEM_TYPES)}")
    if problem_type == "regression" and len(labels) > 1:
        raise CheckpointError(f"problem_type is 'regression' with {len(labels)} labels; a click model predicts one")
    if problem_type == "single_label_classification" and len(labels) == 1:
        raise CheckpointError(
            "problem_type is 'single_label_classification' with one label, whose softmax is always 1; "
            "a click model of one label has no problem_type, or 'regression'"
        )
    return labels


def _names(id2label: object) -> list[str]:
    if not isinstance(id2label, dict) or not id2label:
        raise CheckpointError(
            f"id2label is {id2label!r}; it must map ids to names, as in {{'0': 'no click', '1': 'click'}}"
        )
    if set(id2label) != {str(index) for index in range(len(id2label))}:
        raise CheckpointError(f"id2label has the ids {list(id2label)}; they must be 0 to {len(id2label) - 1}")
    names = [id2label[str(index)] for index in range(len(id2label))]
    if not all(isinstance(name, str | int | float) for name in names):
        raise CheckpointError(f"id2label has the names {names}; they must be strings")
    return [str(name) for name in names]


def _reconcile(labels: list[str], label2id: object) -> list[str]:
    """Return the names on which both maps agree; transformers' default names contradict nothing."""
    ids = _ids(label2id)
    if ids is not None and all(name == f"LABEL_{index}" for name, index in ids.items()):
        return labels
    if ids is not None and sorted(ids.values()) == list(range(len(labels))):
        others = sorted(ids, key=lambda name: ids[name])
        if _are_default(labels):
            return others
        if [_plain(name) for name in others] == [_plain(name) for name in labels]:
            return labels
    raise CheckpointError(f"id2label names {labels}, but label2id is {label2id!r}; make them fit each other")


def _ids(label2id: object) -> dict[str, int] | None:
    if not isinstance(label2id, dict) or not all(str(index).isdecimal() for index in label2id.values()):
        return None
    return {str(name): int(index) for name, index in label2id.items()}


def _find_label(labels: Sequence[str], wanted: str | int) -> int:
    names = [_plain(label) for label in labels]
    plain = _plain(str(wanted))
    if wanted in labels and labels.count(str(wanted)) == 1:
        return labels.index(str(wanted))
    if isinstance(wanted, str) and names.count(plain) == 1:
        return names.index(plain)
    if plain.isdecimal() and int(plain) < len(labels):
        return int(plain)
    raise CheckpointError(f"--click-label is {wanted!r}; the labels are {list(labels)}, with ids from 0")


def _are_default(labels: Sequence[str]) -> bool:
    return list(labels) == [f"LABEL_{index}" for index in range(len(labels))]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()
