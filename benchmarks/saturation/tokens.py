"""The requests as the published tokenizer packs them, and what padding would add."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.load_gen.target import published_version
from benchmarks.load_gen.workload import Request
from clickbert.wire.packing import Packed, PackedUsers
from clickbert.wire.tokenization import PairTokenizer
from release.names import HEADS_JSON, MAX_LENGTH, MODEL_FILE, TOKENIZER_JSON, TOKENIZER_MODEL, USER_TOKENS


def published_tokenizer(repository: Path) -> PairTokenizer:
    """The newest tokenizer in a model repository, read without a server. Raises BenchmarkError if none is published."""
    graph = published_version(repository, TOKENIZER_MODEL) / MODEL_FILE
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    content, max_length = session.run([TOKENIZER_JSON, MAX_LENGTH], {})
    settings = {}
    if HEADS_JSON in {value.name for value in session.get_outputs()}:  # former releases lack it
        settings = json.loads(session.run([HEADS_JSON], {})[0].tobytes())
    return PairTokenizer(content.tobytes(), int(max_length[0]), settings.get(USER_TOKENS))


def pack(tokenizer: PairTokenizer, requests: Sequence[Request]) -> list[Packed]:
    """The requests as the client packs them."""
    return [tokenizer.pack(request.query, list(request.documents)) for request in requests]


def count_pairs(packed: Sequence[Packed]) -> int:
    """Pairs of all requests."""
    return sum(len(each.lengths) for each in packed)


def count_tokens(packed: Sequence[Packed], max_length: int) -> dict[str, int]:
    """Tokens of all requests: as they are packed, and as pairs with the usual kinds of padding."""
    lengths = [pair_lengths(each) for each in packed]
    return {
        "packed": sum(each.input_ids.size for each in packed),
        "padded to the request's longest": sum(int(each.max()) * len(each) for each in lengths),
        f"padded to {max_length}": sum(max_length * len(each) for each in lengths),
    }


def pair_lengths(packed: Packed) -> NDArray[np.int64]:
    """Tokens of each pair, with its user text."""
    lengths = packed.lengths.astype(np.int64)
    return lengths + np.repeat(packed.user_lengths, packed.user_pairs) if isinstance(packed, PackedUsers) else lengths
