"""Schedules by the clock of the machine at hand, which costs alone predict a few percent wrong."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from ..broadcast import ScheduleTable
from ..errors import PabError
from .calibrate import TooLittleTime, Trial, late
from .candidates import Candidate, Unit, computing, digest
from .costs import time_runs

_CORRECTIONS = 3  # of a schedule that the clock found to take another time than costs said
_CLOSE = 0.985  # of the wanted time is near enough to it


def timed_shares(trial: Trial, tables: Sequence[ScheduleTable], clips: int) -> list[float]:
    """Of the time of a run without reuse, with so many clips made together: the medians of a few rounds in which all
    take turns. Kept with what was judged, and then not timed again."""
    keys = [digest(table) for table in tables]
    lacking = [i for i, key in enumerate(keys) if trial.file.find(timed=key, clips=clips) is None]
    if lacking:
        some = [trial.clips[i % len(trial.clips)] for i in range(clips)]
        off, *others = time_runs(trial.pipe, some, [trial.off, *(tables[i] for i in lacking)])
        for i, seconds in zip(lacking, others, strict=True):
            share = statistics.median(a / b for a, b in zip(seconds, off, strict=True))
            trial.file.add({"timed": keys[i], "clips": clips, "share": share})
    lines = [trial.file.find(timed=key, clips=clips) for key in keys]
    return [line["share"] for line in lines if line is not None]


def computed_in(
    trial: Trial, units: tuple[Unit, ...], share: float, predictor: str, clips: int, until: float | None = None
) -> tuple[int, float]:
    """How many steps can be computed in `share` of the time, everything at the same steps; and the share of the time
    that this takes. Which steps these are does not matter to the clock.

    PabError where not even one can; TooLittleTime where that was not found before `until`, of time.monotonic().
    """
    steps = trial.off.steps

    def timed(*counts: int) -> list[float]:
        places = [[i * steps // count for i in range(count)] for count in counts]
        tables = [trial.table(computing(units, steps, computed, predictor)) for computed in places]
        return timed_shares(trial, tables, clips)

    half = max(steps // 2, 1)
    slope = (1 - timed(half)[0]) / (steps - half)
    count = min(max(int(steps - (1 - share) / max(slope, 1e-3)), 1), steps - 1)
    took, more = timed(count, count + 1) if count + 1 < steps else (*timed(count), math.inf)
    took = min(took, more)  # fewer steps take no longer: a reading that says so was disturbed
    while took > share and count > 1 and not late(until):
        count, more = count - 1, took
        (took,) = timed(count)
    if took > share and count > 1:
        raise TooLittleTime("The time was too short to find how many steps fit in: run it again, and it goes on.")
    if took > share:
        raise PabError(f"No schedule of this model takes {share:.0%} of the time: ask for a smaller saving.")
    while more <= share and count + 1 < steps and not late(until):
        count, took = count + 1, more
        more = timed(count + 1)[0] if count + 1 < steps else math.inf
    return count, took


def at_time(
    trial: Trial,
    found: Candidate,
    share: float,
    find: Callable[[float], Candidate],
    clips: int,
    until: float | None = None,
) -> tuple[Candidate, float]:
    """The schedule that takes `share` of the time by the clock, and its share: what costs led to is timed, and a
    schedule found again for as much more or less."""
    asked, tried = share, dict[Candidate, float]()
    for _ in range(_CORRECTIONS):
        (tried[found],) = timed_shares(trial, [trial.table(found)], clips)
        if _CLOSE * share <= tried[found] <= share or late(until):
            break
        asked = min(asked * share / tried[found], 0.99)
        try:
            found = find(asked)
        except PabError:  # no such, or no time for it: what is there has to do
            break
        if found in tried:
            break
    fitting = {candidate: took for candidate, took in tried.items() if took <= share}
    best = max(fitting, key=lambda c: fitting[c]) if fitting else min(tried, key=lambda c: tried[c])
    return best, tried[best]
