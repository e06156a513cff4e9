"""Keeps Triton's Python process alive when a request claims a shape that no memory holds.

Triton 2.51 multiplies dimensions with overflow: it takes [1, 2**62] of int32 for 2**64 bytes, which are 0 in 64 bits,
and so for a request without data. (Releases of 2026 do not.) The process makes a numpy array of it before any Python
runs. numpy refuses, nobody catches that, and the process ends with the requests of all its callers.

So where the process takes numpy's function from, in the table of numpy's C interface, this puts one that makes an
array without elements instead. The request still has the shape that it claimed, and model.py refuses it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

LARGEST = 2**59  # elements; those of 8 bytes still have a number of bytes
PLACE = 94  # of PyArray_NewFromDescr in the table, which grows at its end only
NewArray = ctypes.PYFUNCTYPE(
    ctypes.c_void_p,  # the array, a new reference
    ctypes.c_void_p,  # its class
    ctypes.c_void_p,  # its dtype, a reference that is taken
    ctypes.c_int,  # how many dimensions
    ctypes.POINTER(ctypes.c_ssize_t),  # the shape
    *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p),  # strides, memory, flags, base
)
REPLACED: list[Any] = []  # must live as long as the table


def is_wild(shape: Sequence[int]) -> bool:
    """Whether no array can have this shape."""
    return min(shape, default=0) < 0 or prod(shape) > LARGEST


def survive_wild_shapes() -> None:
    """Replaces numpy's function, for those that take it from the table from now on."""
    if REPLACED:
        return
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    interface: Any = np._core.multiarray._ARRAY_API  # type: ignore[attr-defined]
    table = ctypes.cast(pointer_of(interface, None), ctypes.POINTER(ctypes.c_void_p))
    make = NewArray(table[PLACE])

    def make_or_empty(
        kind: int, dtype: int, dimensions: int, shape: Any, strides: int, memory: int, flags: int, base: int
    ) -> int:
        if is_wild(shape[:dimensions]):
            return int(make(kind, dtype, 1, (ctypes.c_ssize_t * 1)(0), None, None, 0, None))
        return int(make(kind, dtype, dimensions, shape, strides, memory, flags, base))

    REPLACED.append(NewArray(make_or_empty))
    table[PLACE] = ctypes.cast(REPLACED[0], ctypes.c_void_p).value
