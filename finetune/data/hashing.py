"""Hashes that stand for texts where millions are counted."""

from hashlib import blake2b


def hash_text(text: str) -> int:
    """Return 64 bits, the same in every process: two of a million texts are alike in one of 30 million logs."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
