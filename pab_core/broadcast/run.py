"""The state of one run: the updates that are still to be reused. It dies with the run, also when the run is cut off."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..models.layers import Branch
from .schedule import ScheduleTable


class BroadcastRun:
    """Follows a schedule table; pass it as the `seam` of each call of the model, after setting `step` (and `lane`)."""

    def __init__(self, table: ScheduleTable):
        self.table = table
        self.step = 0
        self.lane = "both"  # "cond" or "uncond" where guidance calls the model once for each
        self._kept: dict[tuple[str, Branch, int], Tensor] = {}

    def __call__(self, branch: Branch, update: Callable[[Tensor, Any], Tensor], x: Tensor, cond: Any) -> Tensor:
        source = self.table.source[branch][self.step]
        if source != self.step:
            key = (self.lane, branch, source)
            last = self.table.last_use[branch, source] == self.step
            return self._kept.pop(key) if last else self._kept[key]
        value = update(x, cond)
        if (branch, source) in self.table.last_use:
            self._kept[self.lane, branch, source] = value
        return value

    @property
    def kept_bytes(self) -> int:
        """Size of the updates held at this moment."""
        return sum(value.numel() * value.element_size() for value in self._kept.values())
