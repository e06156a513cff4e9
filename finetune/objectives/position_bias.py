"""Position bias: a candidate that was shown higher is clicked more often, whatever it says.

The log-odds of a click are those of the text plus an offset of the position where it was shown. The offset is there in
training only; what is saved, and served, is the text's own part. Given as odds relative to the first position (a JSON
object from position to odds, such as {"1": 1.0, "2": 0.7}), or estimated with the model: a parameter of its own for
each position, of which the first is 0.

Estimated offsets are only right where texts of equal worth were shown at different positions; a log in which the best
text always stands first cannot tell the two apart. Source: the additive form is that of Zhao et al., "Recommending What
Video to Watch Next" (RecSys 2019), section 4.3.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

DEEPEST = 100  # positions beyond share one offset


class PositionBiasError(ValueError):
    """Raised for odds that cannot be used, and for a log without positions."""


class PositionBias(nn.Module):
    """An offset of the log-odds for each position, from 1; beyond the last it stays the last one's."""

    def __init__(self, positions: int, odds: Mapping[int, float] | None = None) -> None:
        """`positions`: the deepest one of the log; `odds`: given ones, which are not trained."""
        super().__init__()
        self.offsets: Tensor
        if odds is None:
            self.offsets = nn.Parameter(torch.zeros(max(0, min(positions, DEEPEST) - 1)))
        else:
            last = max(odds)
            first = odds[1]
            known = [math.log(odds[place] / first) for place in range(2, last + 1)]
            self.register_buffer("offsets", torch.tensor(known))

    def forward(self, positions: Tensor) -> Tensor:
        """Offsets [rows] of positions [rows]; 0 where the position is 0, not known."""
        table = torch.cat([self.offsets.new_zeros(2), self.offsets])
        return table[positions.clamp(max=len(table) - 1)]

    def odds(self) -> dict[str, float]:
        """The odds of a click by position, relative to the first."""
        values = self.offsets.detach().exp().tolist()
        return {str(place): round(value, 6) for place, value in enumerate([1.0, *values], start=1)}


def read_odds(path: Path) -> dict[int, float]:
    """Read given odds by position.

    Raises:
        PositionBiasError: not a JSON object from each position, 1 to the last, to a number over 0.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PositionBiasError(f'{path}: is not JSON ({error}); write {{"1": 1.0, "2": 0.7, ...}}') from error
    plain = isinstance(fields, dict) and all(
        not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < math.inf
        for value in fields.values()
    )
    if not plain or not fields or set(fields) != {str(place) for place in range(1, len(fields) + 1)}:
        raise PositionBiasError(
            f"{path}: must be one JSON object from every position to its odds of a click, over 0, "
            'without a gap: {"1": 1.0, "2": 0.7, ...}'
        )
    return {int(place): float(value) for place, value in fields.items()}
