"""The names of the packed graph's layers, as `--keep-fp32` takes them. Cheap to import: `--help` does."""

from __future__ import annotations

EMBEDDINGS = "embeddings.word_embeddings"
HEADS = "heads."  # begins the names of a jointly trained checkpoint's further heads, which stay in float32
WEIGHT = ".weight"  # ends the name of a layer's weight


class LayerNameError(ValueError):
    """`--keep-fp32` names a layer that the model does not have, or that no exported engine reduces."""


def belongs(layer: str, name: str) -> bool:
    """Whether a layer is the named one, or part of it (`layers.0.output.dense` of `layers.0`)."""
    return layer == name or layer.startswith(f"{name}.")
