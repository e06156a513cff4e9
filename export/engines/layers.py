"""The names of layers that `--keep-fp32` takes, checked before anything slow begins."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from export.engines import find_engines
from export.graph.layer_names import LayerNameError, belongs

if TYPE_CHECKING:
    from export.engines.base import Engine


def check_layer_names(keep_fp32: Iterable[str], engines: Collection[Engine], linears: Sequence[str]) -> None:
    """Checks that every layer named by `--keep-fp32` exists, and is reduced by one of the engines.

    Raises:
        LayerNameError: the first name that is not.
    """
    for name in keep_fp32:
        able = [
            engine
            for engine in find_engines().values()
            if any(belongs(layer, name) for layer in engine.reduced_layers(linears))
        ]
        if not able:
            raise LayerNameError(f"--keep-fp32: the model has no layer {name!r}; it has {', '.join(linears)}")
        if not {engine.name for engine in able} & {engine.name for engine in engines}:
            raise LayerNameError(
                f"--keep-fp32: {name} is float32 anyway in what is exported here; only "
                f"{', '.join(engine.name for engine in able)} would reduce it"
            )
