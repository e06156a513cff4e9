"""The engines that a checkpoint can become, one file each.

A module of this package that defines `ENGINE` adds an engine: the command offers it, the gates check it, the report
draws it, and it is published. No list names it. The model repository needs its config.pbtxt.
"""

from __future__ import annotations

import pkgutil
import zlib
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.engines.base import Engine
    from export.verify.gates import Gate

OTHER_COLOURS = ("#b8860b", "#4a90a4", "#a05a7a", "#6b7a3a", "#555555")  # of models that no engine here makes


def find_engines() -> dict[str, Engine]:
    """Every engine by its name on the command line, in alphabetical order."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    engines: list[Engine] = [module.ENGINE for module in modules if hasattr(module, "ENGINE")]
    return {engine.name: engine for engine in sorted(engines, key=lambda engine: engine.name)}


def find_gates() -> list[Gate]:
    """The gates of all engines; those that engines share occur more than once."""
    return [gate for engine in find_engines().values() for gate in engine.gates]


def colour_of(model: str) -> str:
    """The colour of a published model in every plot; a model that no engine makes gets one by its name."""
    for engine in find_engines().values():
        if engine.model == model:
            return engine.colour
    return OTHER_COLOURS[zlib.crc32(model.encode()) % len(OTHER_COLOURS)]
