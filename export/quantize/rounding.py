"""Rounds the weights of a layer so that their errors cancel on real inputs (Frantar et al., GPTQ, 2022).

To round each weight to the nearest step is best only where inputs are independent, and those of a BERT's layers are
not. So the weights are rounded an input at a time, and what this changes is made up for by the weights of the inputs
that are still to come, as far as those inputs follow the rounded one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.quantize.linears import FloatArray

DAMPING = 0.01  # of the inputs' mean square: how little correlations are trusted that few rows showed
BLOCK = 128  # inputs whose errors reach the later ones in one product


def round_to_nearest(weight: FloatArray, scale: FloatArray) -> NDArray[np.int8]:
    """`weight` [outputs, inputs] in steps of `scale` [outputs], -127..127."""
    return np.asarray(np.clip(np.rint(weight / scale[:, None]), -127, 127), dtype=np.int8)


def round_together(weight: FloatArray, scale: FloatArray, rows: FloatArray) -> NDArray[np.int8]:
    """`weight` [outputs, inputs] in steps of `scale` [outputs], -127..127, so that `rows` @ weight.T changes little.

    An input that is 0 in all of `rows` [rows, inputs] has its weights rounded to the nearest step. There may be fewer
    rows than inputs.
    """
    hessian = (rows.T @ rows).astype(np.float64)
    diagonal = np.diagonal(hessian)
    damping = np.where(diagonal > 0, DAMPING * diagonal.mean(), 1.0)
    # Row j of the factor says how the inputs after j make up for an error in input j.
    factor = np.linalg.cholesky(np.linalg.inv(hessian + np.diag(damping))).T
    left = weight.astype(np.float64)
    steps = np.empty(weight.shape, dtype=np.int8)
    for start in range(0, weight.shape[1], BLOCK):
        block = slice(start, min(start + BLOCK, weight.shape[1]))
        errors = np.empty((len(weight), block.stop - start))
        for place in range(start, block.stop):
            steps[:, place] = np.clip(np.rint(left[:, place] / scale), -127, 127)
            error = (left[:, place] - steps[:, place] * scale) / factor[place, place]
            left[:, place : block.stop] -= np.outer(error, factor[place, place : block.stop])
            errors[:, place - start] = error
        left[:, block.stop :] -= errors @ factor[block, block.stop :]
    return steps
