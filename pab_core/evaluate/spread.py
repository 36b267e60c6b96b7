"""The search where everything is reused at once: which steps to compute, spread over the run.

Taking away the cheapest step again and again ends in long stretches without any computation, since each step alone is
cheap where the model changes little. Here the number of computed steps is given, and dynamic programming places them:
over a gap the drift of the model adds up, so that long gaps are dear. Few of the placements are judged; `shift` then
moves single steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import PabError
from .calibrate import OnProgress, TooLittleTime, Trial, late, shift
from .candidates import Candidate, Unit, computing
from .costs import Costs

_POWERS = (1, 2)  # how the drift within a gap adds up: as what errs alike, and as what errs independently


def spread(
    trial: Trial,
    costs: Costs,
    units: tuple[Unit, ...],
    *,
    share: float | None = None,
    error: float | None = None,
    count: int | None = None,
    predictors: Sequence[str | None] = (None,),
    rounds: int = 1,
    until: float | None = None,
    on_progress: OnProgress | None = None,
) -> Candidate:
    """Everything is computed at the same steps: as many as take `share` of the time, or `count`, or the fewest that
    stay within `error`. As calibrate.remove otherwise, which searches in the same way unit by unit.

    predictors: what a reused step may be given, of which the best is taken; None: as the trial says.

    Raises:
        PabError: not one of share, error and count is given; the share cannot be reached.
        TooLittleTime: nothing was found before `until`, of time.monotonic().
    """
    if sum(aim is not None for aim in (share, error, count)) != 1:
        raise PabError("A calibration has one aim: give either the wanted share of the time or the wanted error.")
    steps = trial.off.steps
    if count is not None:
        check_computed(count, steps)
    drift = drifts(trial, units, until)

    def placed(count: int, moved: bool) -> Candidate:
        places = [spaced(drift, count, power) for power in _POWERS]
        made = [computing(units, steps, place, predictor) for predictor in predictors for place in places]
        if late(until) and not all(map(trial.knows, made)):
            raise TooLittleTime("The time was too short to place the steps: run it again, and it goes on.")
        best = min(made, key=trial.error)
        best = shift(trial, costs, best, rounds=rounds, until=until) if moved else best
        if on_progress is not None:
            on_progress(costs.share(best), trial.error(best))
        return best

    if share is not None:
        counts = [n for n in range(1, steps) if costs.share(computing(units, steps, range(n))) <= share]
        if not counts:
            raise PabError(f"No schedule of this model takes {share:.0%} of the time: ask for a smaller saving.")
        return placed(counts[-1], True)
    if count is not None:
        return placed(count, True)
    assert error is not None
    low, high = 1, steps  # the error is above the wanted one with `low` computed steps, or as if it were
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if trial.error(placed(middle, False)) <= error else (middle, high)
    best = placed(high, False) if high < steps else Candidate(units, steps)
    while low > 1 and not late(until) and trial.error(found := placed(low, True)) <= error:
        best, low = found, low - 1
    return best


def check_computed(count: int, calls: int) -> None:
    """PabError where a run of so many calls of the model cannot have so many computed and others reused."""
    if not 1 <= count < calls:
        raise PabError(f"Of {calls} calls of the model, 1 to {calls - 1} can be computed, not {count}.")


def drifts(trial: Trial, units: tuple[Unit, ...], until: float | None = None) -> list[float]:
    """For each step, the error of reusing everything there alone, as it is; 0 for the first."""
    found = [0.0]
    for step in range(1, trial.off.steps):
        alone = computing(units, trial.off.steps, [i for i in range(trial.off.steps) if i != step], "hold")
        if late(until) and not trial.knows(alone):
            raise TooLittleTime("The time was too short to reuse every step once: run it again, and it goes on.")
        found.append(trial.error(alone))
    return found


def spaced(drift: Sequence[float], count: int, power: int) -> tuple[int, ...]:
    """The `count` steps to compute, the first among them, for which what the drift adds up to over the gaps is least.

    Within a gap, a step is off by the sum of the drifts since the last computed one; `power` 1 adds these up and
    squares, 2 adds up their squares.
    """
    steps = len(drift)

    def cost(start: int, stop: int) -> float:
        off = total = 0.0
        for step in range(start + 1, stop):
            off += drift[step]
            total += off**power
        return total ** (2 / power)

    costs = [[cost(start, stop) for stop in range(steps + 1)] for start in range(steps)]
    # best[n][stop]: with n steps computed before `stop`, which is computed itself or the end; and the last of those.
    best = [[(math.inf, 0)] * (steps + 1) for _ in range(count + 1)]
    best[0][0] = (0.0, 0)
    for n in range(1, count + 1):
        for stop in range(n, steps + 1):
            best[n][stop] = min((best[n - 1][start][0] + costs[start][stop], start) for start in range(n - 1, stop))
    found: list[int] = []
    stop = steps
    for n in range(count, 0, -1):
        stop = best[n][stop][1]
        found.insert(0, stop)
    return tuple(found)
