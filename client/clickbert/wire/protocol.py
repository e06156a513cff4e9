"""What goes over the wire: the names of models and tensors, the requests, and the answers with every field checked.

Nothing here does I/O. The contract is that of `model_repository/`: a click model takes packed pairs or texts, and one
that has the input USER_LENGTHS takes each query once, with its documents behind it. Version N of `clickbert_tokenizer`
takes no inputs, and answers with the tokenizer of version N of the click models.
"""

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from clickbert.errors import ProtocolError
from clickbert.wire.heads import Heads, read_heads
from clickbert.wire.inputs import Expected, read_expected
from clickbert.wire.packing import Packed, PackedUsers
from clickbert.wire.tokenization import PairTokenizer

TOKENIZER_MODEL = "clickbert_tokenizer"
DEFAULT_MODEL = "clickbert_onnx"
INPUT_IDS, TOKEN_TYPE_IDS, LENGTHS, LOGITS = "input_ids", "token_type_ids", "lengths", "logits"
USER_LENGTHS = "user_lengths"
# Further outputs, of a model that was trained jointly.
TOPIC_LOGITS, EMBEDDING, PASSAGE_LOGITS = "topic_logits", "embedding", "passage_logits"
# TensorRT models only: as many zeros as the request's longest pair has tokens; where each query is sent once, as its
# longest document and its longest query have.
LONGEST = "longest"
LONGEST_USER = "longest_user"
TOKENIZER_JSON, TOKENIZER_SHA256 = "tokenizer_json", "tokenizer_sha256"
MAX_LENGTH, LABELS_JSON, CLICK_LABEL = "max_length", "labels_json", "click_label"
HEADS_JSON = "heads_json"  # servers of an older release lack it
TOKENIZER_OUTPUTS = (TOKENIZER_JSON, TOKENIZER_SHA256, MAX_LENGTH, LABELS_JSON, CLICK_LABEL, HEADS_JSON)

# A random number, the same for all requests of a call: a gateway in front of servers of two versions sends them to one.
CALL_HEADER = "clickbert-call"

MAX_PAIRS_PARAMETER = "max_elements.lengths"
DEFAULT_MAX_PAIRS = 64
MAX_TOKENS_PARAMETER = "max_elements.input_ids"

_LENGTH_TOLERANCE = 1e-2  # of an embedding's length, which half precision and INT8 blur

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class InferRequest:
    """One request to one model. An empty `version` lets the server choose, which is the newest it serves."""

    model: str
    version: str
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class InferResponse:
    """The version that answered, and its outputs by name."""

    version: str
    outputs: Mapping[str, Array]


@dataclass(frozen=True)
class ModelDescription:
    """The versions of a model that are served, and the `parameters` and `inputs` of its configuration."""

    versions: tuple[str, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What the configuration of a model says of a request. It may change while the version stays."""

    max_pairs: int
    max_tokens: float  # infinite if the configuration does not say
    takes_longest: bool  # whether there is the input LONGEST, and LONGEST_USER where each query is sent once


@dataclass(frozen=True)
class Release:
    """A published version as the client sees it: its tokenizer, its labels and its limits."""

    version: str
    sha256: str  # of tokenizer.json, lower-case hexadecimal
    tokenizer: PairTokenizer
    labels: tuple[str, ...]
    click_label: int
    limits: Limits
    heads: Heads
    expected: Expected | None = None  # how the evaluation log's inputs were distributed; None: it does not say

    def is_interchangeable_with(self, other: "Release") -> bool:
        """Tell whether both releases turn texts into the same requests, and outputs into the same results."""
        mine, theirs = (
            (r.sha256, r.tokenizer.max_length, r.labels, r.click_label, r.limits, r.heads) for r in (self, other)
        )
        return mine == theirs


def tokenizer_request(version: str) -> InferRequest:
    """Ask for the tokenizer of `version`: all outputs that there are, because older servers lack HEADS_JSON."""
    return InferRequest(TOKENIZER_MODEL, version, {}, ())


def model_request(
    model: str, version: str, packed: Packed, outputs: tuple[str, ...], *, takes_longest: bool
) -> InferRequest:
    """Ask `model` for these outputs of packed pairs or texts: the fields of `packed`, int32 [1, size] each.

    Where the model takes it, also int32 [1, longest]: TensorRT must know the longest pair as a shape, or the longest
    document and the longest query (at least 1: single texts have none, but an input may not be empty).
    """
    inputs = {name: array[np.newaxis] for name, array in vars(packed).items()}
    if takes_longest:
        inputs[LONGEST] = np.zeros((1, int(packed.lengths.max())), np.int32)
        if isinstance(packed, PackedUsers):
            inputs[LONGEST_USER] = np.zeros((1, int(packed.user_lengths.max(initial=1))), np.int32)
    return InferRequest(model, version, inputs, outputs)


def is_number(text: str) -> bool:
    """Tell whether a server's text is a whole number, and not one of thousands of digits."""
    return text.isdecimal() and len(text) < 20


def newest_version(description: ModelDescription, where: str) -> str:
    """Return the highest version served: the one that answers a request without a version.

    Raises `ProtocolError` when there is none, or one that is not a number.
    """
    if not description.versions or not all(is_number(version) for version in description.versions):
        raise ProtocolError(
            f"{where}: the server lists the versions {reprlib.repr(description.versions)}, but numbers were expected;"
            " check that the model is loaded"
        )
    return max(description.versions, key=int)


def read_limits(description: ModelDescription, where: str) -> Limits:
    """Read what the configuration of the click model says of a request; raises `ProtocolError` if it is no number."""
    return Limits(
        int(_limit(description, MAX_PAIRS_PARAMETER, DEFAULT_MAX_PAIRS, where)),
        _limit(description, MAX_TOKENS_PARAMETER, math.inf, where),
        LONGEST in description.inputs,
    )


def _limit(description: ModelDescription, parameter: str, default: float, where: str) -> float:
    if parameter not in description.parameters:
        return default
    text = description.parameters[parameter].strip()
    if not is_number(text) or int(text) < 1:
        raise ProtocolError(
            f"{where}: parameter {parameter} is {reprlib.repr(text)} in config.pbtxt, expected a number from 1 up"
        )
    return int(text)


def read_release(response: InferResponse, version: str, description: ModelDescription, where: str) -> Release:
    """Read the answer of `clickbert_tokenizer` for `version`, and check it against its own hash.

    `description` is the click model's. Raises `ProtocolError` when another version answered, an output is missing or
    malformed, or the hash differs.
    """
    if response.version != version:
        raise ProtocolError(f"{where}: asked for version {version}, but version {response.version!r} answered")
    content = _output(response, TOKENIZER_JSON, np.uint8, (-1,), where).tobytes()
    expected = _text(response, TOKENIZER_SHA256, where)
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise ProtocolError(
            f"{where}: {TOKENIZER_JSON} has SHA-256 {actual} but {reprlib.repr(expected)} was announced;"
            " the published tokenizer is damaged: publish it again"
        )
    labels = _labels(response, where)
    further: object = None
    heads = Heads()
    if HEADS_JSON in response.outputs:
        further = _json(response, HEADS_JSON, where)
        heads = read_heads(further, where)
    if (heads.user_tokens is not None) != (USER_LENGTHS in description.inputs):
        says = "has no" if heads.user_tokens is None else f"has {heads.user_tokens}"
        raise ProtocolError(
            f"{where}: it {says} user_tokens, but the click model's inputs are {list(description.inputs)};"
            " load the click model and its tokenizer of the same version"
        )
    max_length = _number(response, MAX_LENGTH, where)
    click_label = _number(response, CLICK_LABEL, where)
    if not 0 <= click_label < len(labels):
        raise ProtocolError(f"{where}: {CLICK_LABEL} is {click_label}, but the labels are {list(labels)}")
    try:
        tokenizer = PairTokenizer(content, max_length, heads.user_tokens)
    except ValueError as exc:
        raise ProtocolError(f"{where}: {exc}; publish the model again") from exc
    limits = read_limits(description, where)
    return Release(version, actual, tokenizer, labels, click_label, limits, heads, read_expected(further))


def read_rows(
    response: InferResponse, rows: int, outputs: Sequence[str], release: Release, where: str
) -> dict[str, npt.NDArray[np.float32]]:
    """Read outputs [1, rows, size] and return them as [rows, size], by name.

    Raises `ProtocolError` on a wrong shape or dtype, on values that are not finite numbers, and on embeddings whose
    length is not 1.
    """
    heads = release.heads
    sizes = {
        LOGITS: len(release.labels),
        TOPIC_LOGITS: len(heads.topics),
        EMBEDDING: heads.embedding_size,
        PASSAGE_LOGITS: 1,
    }
    found = {name: _output(response, name, np.float32, (1, rows, sizes[name]), where)[0] for name in outputs}
    for name, values in found.items():
        bad = int(np.count_nonzero(~np.isfinite(values).all(axis=1)))
        if bad:
            raise ProtocolError(
                f"{where}: the {name} of {bad} of {rows} pairs are not finite: the model could not read the request,"
                " or it overflows; see the server's log"
            )
    if EMBEDDING in found:
        lengths = np.linalg.norm(found[EMBEDDING].astype(np.float64), axis=1)
        worst = float(lengths[np.argmax(np.abs(lengths - 1))])
        if abs(worst - 1) > _LENGTH_TOLERANCE:
            raise ProtocolError(
                f"{where}: an embedding has the length {worst:.3g}, expected 1: publish the model again, with an export"
                " of this project"
            )
    return found


def click_log_odds(logits: npt.NDArray[np.floating[Any]], click_label: int) -> npt.NDArray[np.float64]:
    """Turn logits [pairs, labels] into the log-odds [pairs] of a click: of one label the logit itself.

    Of more labels, whose probabilities are their softmax, the click's logit less the logarithm of the others' sum.
    """
    wide = logits.astype(np.float64)
    if wide.shape[1] == 1:
        return wide[:, 0]
    others: npt.NDArray[np.float64] = np.logaddexp.reduce(np.delete(wide, click_label, axis=1), axis=1)
    return wide[:, click_label] - others


def click_probability(log_odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn the log-odds of clicks into their probabilities, by the sigmoid."""
    probability: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -log_odds))
    return probability


def _output(response: InferResponse, name: str, dtype: Any, shape: tuple[int, ...], where: str) -> Array:
    """Return one output after checking its dtype and shape; -1 stands for any size except zero."""
    array = response.outputs.get(name)
    if array is None:
        raise ProtocolError(
            f"{where}: the answer has no {name!r}, only {sorted(response.outputs)}; is it a ClickBERT model?"
        )
    fits = len(array.shape) == len(shape) and all(
        has == wants or (wants == -1 and has > 0) for has, wants in zip(array.shape, shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise ProtocolError(
            f"{where}: {name!r} is {array.dtype}{list(array.shape)}, expected {np.dtype(dtype)}{list(shape)};"
            " is it a ClickBERT model?"
        )
    return array


def _number(response: InferResponse, name: str, where: str) -> int:
    return int(_output(response, name, np.int32, (1,), where)[0])


def _text(response: InferResponse, name: str, where: str) -> str:
    try:
        return _output(response, name, np.uint8, (-1,), where).tobytes().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ProtocolError(f"{where}: {name!r} is not UTF-8: {exc}; publish the model again") from exc


def _json(response: InferResponse, name: str, where: str) -> object:
    try:
        return json.loads(_text(response, name, where))
    except (ValueError, RecursionError) as exc:  # ValueError also for a number of too many digits
        raise ProtocolError(f"{where}: {name!r} is not JSON: {exc}; publish the model again") from exc


def _labels(response: InferResponse, where: str) -> tuple[str, ...]:
    labels = _json(response, LABELS_JSON, where)
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise ProtocolError(f"{where}: {LABELS_JSON!r} is {reprlib.repr(labels)}, expected a JSON list of names")
    return tuple(labels)
