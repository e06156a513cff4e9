"""The requests as the published tokenizer packs them, and what padding would add."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.load_gen.target import published_version
from benchmarks.load_gen.workload import Request
from clickbert.wire.tokenization import PackedPairs, PairTokenizer
from release.names import MAX_LENGTH, MODEL_FILE, TOKENIZER_JSON, TOKENIZER_MODEL


def published_tokenizer(repository: Path) -> PairTokenizer:
    """The newest tokenizer in a model repository, read without a server. Raises BenchmarkError if none is published."""
    graph = published_version(repository, TOKENIZER_MODEL) / MODEL_FILE
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    content, max_length = session.run([TOKENIZER_JSON, MAX_LENGTH], {})
    return PairTokenizer(content.tobytes(), int(max_length[0]))


def pack(tokenizer: PairTokenizer, requests: Sequence[Request]) -> list[PackedPairs]:
    """The requests as the client packs them."""
    return [tokenizer.pack(request.query, list(request.documents)) for request in requests]


def count_pairs(packed: Sequence[PackedPairs]) -> int:
    """Pairs of all requests."""
    return sum(len(each.lengths) for each in packed)


def count_tokens(packed: Sequence[PackedPairs], max_length: int) -> dict[str, int]:
    """Tokens of all requests: as they are packed, and with the usual kinds of padding."""
    lengths = [each.lengths.astype(np.int64) for each in packed]
    return {
        "packed": sum(int(each.sum()) for each in lengths),
        "padded to the request's longest": sum(int(each.max()) * len(each) for each in lengths),
        f"padded to {max_length}": sum(max_length * len(each) for each in lengths),
    }
