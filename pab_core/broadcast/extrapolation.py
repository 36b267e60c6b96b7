"""Reused updates extrapolated along the timesteps: on the line through the last two that were computed, or on the
parabola through the last three. (TaylorSeer, arXiv 2503.06923, forecasts features of a diffusion transformer so.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..models.layers import Branch


class Extrapolation:
    """A predictor; of which order, the table says by the number of updates that it hands over."""

    held_bytes = 0

    def __init__(self, timesteps: Sequence[float]):
        self.timesteps = tuple(timesteps)

    def begin(self, model: Any) -> None:
        pass

    def note(self, lane: str, branch: Branch, cond: Any) -> None:
        pass

    def predict(self, lane: str, branch: Branch, step: int, kept: Sequence[tuple[int, Tensor]], cond: Any) -> Tensor:
        factors = difference_factors(self.timesteps[step], [self.timesteps[source] for source, _ in kept])
        value = kept[0][1]
        if not factors:
            return value.clone()
        # Differences of neighbours, not weighted sums of updates: in half precision those would lose what they tell.
        for factor, (_, later), (_, earlier) in zip(factors, kept, kept[1:], strict=False):
            value = torch.add(value, later - earlier, alpha=factor)
        return value

    def weights(self, step: int, sources: Sequence[int]) -> list[float]:
        """How often each update holds in what `predict` gives at `step`, of those computed at `sources`, latest first,
        as far as they do: for sums in more precision than the updates have."""
        factors = difference_factors(self.timesteps[step], [self.timesteps[source] for source in sources])
        return [later - earlier for earlier, later in pairwise((-1.0, *factors, 0.0))]


def difference_factors(at: float, nodes: Sequence[float]) -> tuple[float, ...]:
    """The polynomial through 1 to 3 values at `nodes`, latest first, at the place `at`: the first value, and so many
    times each difference of a value from the one before it.

    Some samplers visit a timestep twice: a node that coincides with a later one tells nothing, and is left out with
    those before it.
    """
    first, *others = nodes
    if not others or others[0] == first:
        return ()
    second, *rest = others
    line = (at - first) / (first - second)
    if not rest or rest[0] in (first, second):
        return (line,)
    third = rest[0]
    # Newton's form: the second divided difference is that of the two slopes, over first - third.
    bend = (at - first) * (at - second) / (first - third)
    return line + bend / (first - second), -bend / (second - third)
