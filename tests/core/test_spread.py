"""Placing the computed steps of a schedule that reuses everything at once."""

from __future__ import annotations

import time
from itertools import combinations
from typing import Any

import pytest

from pab_core.broadcast import ScheduleTable, find_policy, resolve
from pab_core.errors import PabError
from pab_core.evaluate.calibrate import TooLittleTime, make_units, remove
from pab_core.evaluate.candidates import Candidate, computing
from pab_core.evaluate.costs import Costs
from pab_core.evaluate.spread import spaced, spread
from pab_core.models.stdit3 import stdit3_branches

COSTS = Costs(dict.fromkeys(stdit3_branches(1), 1.0), 0.0)


def gaps(drift: list[float], computed: tuple[int, ...], power: int) -> float:
    """The cost of a placement, as spaced() is to make it least."""
    total = 0.0
    for start, stop in zip(computed, (*computed[1:], len(drift)), strict=True):
        sums = [sum(drift[start + 1 : step + 1]) for step in range(start + 1, stop)]
        total += sum(value**power for value in sums) ** (2 / power)
    return total


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_the_placement_is_the_best_of_all(count: int, power: int):
    drift = [0.0, 5.0, 2.0, 0.8, 0.5, 0.3, 0.4, 0.9, 2.5]
    found = spaced(drift, count, power)
    every = [(0, *others) for others in combinations(range(1, len(drift)), count - 1)]
    assert len(found) == count
    assert gaps(drift, found, power) == pytest.approx(min(gaps(drift, one, power) for one in every))


class Drifting:
    """A trial of a model that drifts: a reused step is off by all the drift since the step that it is taken from."""

    def __init__(self, steps: int):
        self.off = resolve(find_policy("off", "stdit3", 1), [900.0 - i for i in range(steps)], stdit3_branches(1))
        self.drift = [abs(i - 0.6 * steps) ** 2 / steps**2 + 0.02 for i in range(steps)]
        self.known: set[Any] = set()

    def knows_table(self, table: ScheduleTable) -> bool:
        return False

    def knows(self, candidate: Candidate) -> bool:
        return False

    def error(self, candidate: Candidate) -> float:
        return self.error_of(candidate.table(self.off))

    def error_of(self, table: ScheduleTable) -> float:
        row = next(iter(table.source.values()))
        self.known.add(row)
        return sum(sum(self.drift[source + 1 : step + 1]) ** 2 for step, source in enumerate(row)) ** 0.5


def test_it_is_better_than_taking_steps_away_one_by_one_and_judges_less():
    units = make_units(stdit3_branches(1), 1, "model")
    one, other = Drifting(30), Drifting(30)
    trials: list[Any] = [one, other]
    taken, placed = remove(trials[0], COSTS, units, share=0.4), spread(trials[1], COSTS, units, share=0.4)
    assert COSTS.share(placed) == pytest.approx(COSTS.share(taken)) == pytest.approx(0.4)
    assert one.error(placed) < one.error(taken)
    assert len(other.known) < len(one.known)


def test_as_few_steps_as_stay_within_the_error():
    units = make_units(stdit3_branches(1), 1, "model")
    trial: Any = Drifting(20)
    wanted = trial.error(computing(units, 20, spaced([0.0, *trial.drift[1:]], 8, 2)))
    found = spread(trial, COSTS, units, error=wanted)
    assert trial.error(found) <= wanted
    assert COSTS.share(found) <= 8 / 20
    nothing = spread(trial, COSTS, units, error=1e-9)
    assert nothing.reused == frozenset()


def test_one_aim_that_can_be_reached_in_time():
    units = make_units(stdit3_branches(1), 1, "model")
    trial: Any = Drifting(10)
    with pytest.raises(PabError, match="one aim"):
        spread(trial, COSTS, units)
    with pytest.raises(PabError, match="No schedule of this model takes 5%"):
        spread(trial, COSTS, units, share=0.05)
    with pytest.raises(TooLittleTime):
        spread(trial, COSTS, units, share=0.5, until=time.monotonic() - 1)
