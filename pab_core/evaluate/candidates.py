"""What a search chooses between: the steps at which parts of a model are computed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..broadcast import ScheduleTable
from ..models.layers import Branch

Unit = tuple[Branch, ...]  # branches that are computed at the same steps
Cell = tuple[int, int]  # unit and step


@dataclass(frozen=True)
class Candidate:
    """The steps at which each unit is computed; step 0 always is. `predictor`: None stands for the trial's."""

    units: tuple[Unit, ...]
    steps: int
    reused: frozenset[Cell] = frozenset()
    predictor: str | None = None

    def with_reused(self, cells: Iterable[Cell]) -> Candidate:
        return replace(self, reused=self.reused | set(cells))

    def with_computed(self, cells: Iterable[Cell]) -> Candidate:
        return replace(self, reused=self.reused - set(cells))

    @property
    def source(self) -> dict[Branch, tuple[int, ...]]:
        """As that of a table, in the order of the units."""
        found: dict[Branch, tuple[int, ...]] = {}
        for number, unit in enumerate(self.units):
            row: list[int] = []
            for i in range(self.steps):
                row.append(row[-1] if (number, i) in self.reused else i)
            found |= dict.fromkeys(unit, tuple(row))
        return found

    def table(self, off: ScheduleTable, name: str = "calibrated", predictor: str = "hold") -> ScheduleTable:
        source = self.source
        rows = {branch: source[branch] for branch in off.branches}
        return ScheduleTable(name, off.timesteps, rows, predictor=self.predictor or predictor)


def computing(units: tuple[Unit, ...], steps: int, computed: Sequence[int], predictor: str | None = None) -> Candidate:
    """Everything, at these steps only; the first is computed anyhow."""
    left = set(range(1, steps)) - set(computed)
    return Candidate(units, steps, frozenset((unit, step) for unit in range(len(units)) for step in left), predictor)


def digest(table: ScheduleTable) -> str:
    """The same for tables by which a run does the same."""
    rows = sorted((repr(branch), row) for branch, row in table.source.items() if row != tuple(range(table.steps)))
    about = (table.timesteps, rows, (table.predictor, table.scores) if rows else "", table.groups, table.decide)
    return hashlib.sha256(repr(about).encode()).hexdigest()[:24]
