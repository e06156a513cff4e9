"""Which label of a checkpoint is the click: the rule by which `python -m export` decides it; a test compares both."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from clickbert.errors import InvalidInputError

_CLICK = {"click", "clicked"}
_NO_CLICK = {
    "noclick", "noclicks", "notclick", "notclicked", "nonclick", "nonclicked", "unclicked", "didnotclick",
}  # fmt: skip
_OPPOSITES = {
    "yes": {"no"},
    "positive": {"negative"},
    "relevant": {"irrelevant", "notrelevant", "nonrelevant"},
    "1": {"0"},
    "true": {"false"},
}
_DENIALS = _NO_CLICK.union(*_OPPOSITES.values()) - {"0"}  # a single label may have its index as its name
_OF_ONE = (None, "regression", "multi_label_classification")  # problem types
_OF_SEVERAL = (None, "single_label_classification")
_EXPORT = "export it with `python -m export`, which takes --click-label, and give the published version"


def read_labels(config: Mapping[str, Any]) -> list[str]:
    """Return the label names of a config.json, in the order of their ids.

    Raises `InvalidInputError` where the fields are broken, disagree, or are those of several independent labels.
    """
    named, count = config.get("id2label"), config.get("num_labels", 2)
    if named is None and type(count) is int and 1 <= count <= 10_000:
        named = {str(index): f"LABEL_{index}" for index in range(count)}
    if not isinstance(named, dict) or not named or set(named) != {str(index) for index in range(len(named))}:
        raise InvalidInputError(f"id2label or num_labels of config.json cannot be read: correct it, or {_EXPORT}")
    if not all(isinstance(name, str | int | float) for name in named.values()):
        raise InvalidInputError(f"a label in the id2label of config.json has no name: correct it, or {_EXPORT}")
    labels = [str(named[str(index)]) for index in range(len(named))]
    ids = config.get("label2id")
    if ids is not None and not _fits(ids, labels):
        raise InvalidInputError(
            f"id2label and label2id of config.json disagree: make them fit each other, or {_EXPORT}"
        )
    kind = config.get("problem_type")
    if kind not in (_OF_ONE if len(labels) == 1 else _OF_SEVERAL):
        raise InvalidInputError(
            f"the problem_type of config.json does not go with {len(labels)} labels here: {_EXPORT}"
        )
    return labels


def find_click(labels: Sequence[str]) -> int:
    """Return the index of the label that means a click. Raises `InvalidInputError` if the names do not tell."""
    names = [_plain(label) for label in labels]
    clicks = [index for index, name in enumerate(names) if name in _CLICK]
    if len(clicks) == 1:
        return clicks[0]
    if not clicks and len(names) == 1 and names[0] not in _DENIALS:
        return 0
    if not clicks and len(names) == 2:
        if list(labels) == ["LABEL_0", "LABEL_1"]:
            return 1
        for index in (0, 1):
            if names[1 - index] in _OPPOSITES.get(names[index], ()):
                return index
    raise InvalidInputError(f"the labels {list(labels)} do not tell which one is the click: {_EXPORT}")


def _fits(ids: object, labels: Sequence[str]) -> bool:
    """Tell whether label2id says nothing else; transformers' default names contradict nothing."""
    if not isinstance(ids, dict):
        return False
    numbered = {_plain(str(name)): str(index) for name, index in ids.items()}
    wanted = {_plain(label): str(index) for index, label in enumerate(labels)}
    return numbered in (wanted, {f"label{index}": str(index) for index in range(len(ids))})


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()
