"""What a reused step is given in place of the update that it leaves out: by name, one file for each way.

    hold     the update that was computed last, as it is: Pyramid Attention Broadcast, and the default
    gate     the same under the gate of the present step (fresh_gate.py)
    linear   on along the line through the last two that were computed (extrapolation.py)
    taylor   on along the parabola through the last three (extrapolation.py)

The name stands in the schedule table, so that all that reads it knows how many updates a reuse needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ..errors import PabError
from ..models.layers import Branch

HISTORY = {"hold": 1, "gate": 1, "linear": 2, "taylor": 3}  # the computed updates that a reuse takes, at most


class Predictor(Protocol):
    """The state of one run."""

    def begin(self, model: Any) -> None:
        """Called once, before the first step."""
        ...

    def note(self, lane: str, branch: Branch, cond: Any) -> None:
        """An update was computed and is kept; `cond`: what its block was given, see the models' `Conditioning`."""
        ...

    def predict(self, lane: str, branch: Branch, step: int, kept: Sequence[tuple[int, Tensor]], cond: Any) -> Tensor:
        """The update to use at `step`, from those computed at earlier steps, latest first; they are not changed.

        Of several, a tensor of its own: the store may have lent them only until as many more are taken, and an update
        may wait longer to be added.
        """
        ...

    @property
    def held_bytes(self) -> int:
        """Size of what it keeps itself."""
        ...


def check_predictor(name: str) -> str:
    if name not in HISTORY:
        raise PabError(
            f"There is no predictor named '{name}': what is reused can be predicted by {', '.join(HISTORY)}, as in "
            "pab246+linear."
        )
    return name


def make_predictor(name: str, timesteps: Sequence[float]) -> Predictor | None:
    """For one run; None for hold, which predicts nothing."""
    check_predictor(name)
    if name == "hold":
        return None
    if name == "gate":
        from .fresh_gate import FreshGate

        return FreshGate()
    from .extrapolation import Extrapolation

    return Extrapolation(timesteps)
