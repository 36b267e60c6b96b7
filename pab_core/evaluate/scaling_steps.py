"""Some steps of a schedule that stand for all: steps that compute, reuse and keep the same branches take the same time.

A run of the shortened schedule does at each step just what the whole run does at the step that it stands for, so the
whole run's time, or its bytes, is the sum over all steps of the mean over those of their kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..broadcast import ScheduleTable

_LEAST = 6  # steps
_START = 3  # steps at the beginning: all that computes without keeping is like them, and the first is often slower
_WORTH = 0.75  # of the run: with more than that it is not worth being shortened

Key = tuple[tuple[bool, ...], tuple[bool, ...]]  # by branch: whether it is computed; whether that is kept


def step_keys(table: ScheduleTable) -> list[Key]:
    """For each step what it does, so that steps with equal keys cost the same."""
    return [
        (
            tuple(not table.reuses(branch, step) for branch in table.branches),
            tuple((branch, step) in table.last_use for branch in table.branches),
        )
        for step in range(table.steps)
    ]


def choose_steps(table: ScheduleTable) -> list[int] | None:
    """A step for each set of branches that is computed together, with the steps whose updates it reuses.

    None where that is most of the run, or where the run itself decides what it computes.
    """
    if table.decide is not None:
        return None
    first: dict[tuple[bool, ...], int] = {}
    for step, (computed, _) in enumerate(step_keys(table)):
        first.setdefault(computed, step)
    chosen = _with_sources(table, [*first.values(), *range(min(_START, table.steps))])
    for step in range(table.steps):
        if len(chosen) >= _LEAST:
            break
        chosen |= _with_sources(table, [step])
    return sorted(chosen) if len(chosen) <= _WORTH * table.steps else None


def busiest_steps(table: ScheduleTable) -> list[int]:
    """The step that reuses most, with those whose updates it reuses: a short run in which all that happens happens."""
    last = max(range(table.steps), key=lambda step: sum(table.reuses(branch, step) for branch in table.branches))
    return sorted(_with_sources(table, [0, last]))


def shorten(table: ScheduleTable, steps: Sequence[int], timesteps: Sequence[float], asked: int) -> ScheduleTable:
    """The schedule of these steps alone, which hold the sources of each.

    Args:
        timesteps: those of a run with `asked` steps of the sampler; what a step costs does not depend on them. As many,
            or more where the sampler makes no run as short as that: the rest is computed, if it is not left out.
    """
    place = {step: number for number, step in enumerate(steps)}
    rest = tuple(range(len(steps), len(timesteps)))
    source = {branch: (*(place[row[step]] for step in steps), *rest) for branch, row in table.source.items()}
    return replace(table, timesteps=tuple(timesteps), source=source, sampler_steps=asked)


def whole_run(table: ScheduleTable, part: ScheduleTable, values: Sequence[float]) -> float:
    """What a run of `table` takes, from what each step of a run of `part`, made of it by `shorten`, took.

    values: of the steps that `part` was made of.
    """
    keys = step_keys(part)[: len(values)]
    exact: dict[Key, list[float]] = {}
    alike: dict[tuple[bool, ...], list[float]] = {}
    for key, value in zip(keys, values, strict=True):
        exact.setdefault(key, []).append(value)
        alike.setdefault(key[0], []).append(value)
    for found in (exact[keys[0]], alike[keys[0][0]]):
        # The first step waits for what goes ahead of the loop: it counts only where it is the only one of its kind.
        if len(found) > 1:
            del found[0]
    return math.fsum(_mean(exact.get(key) or alike[key[0]]) for key in step_keys(table))


def _with_sources(table: ScheduleTable, steps: Iterable[int]) -> set[int]:
    found: set[int] = set()
    waiting = list(steps)
    while waiting:
        step = waiting.pop()
        if step not in found:
            found.add(step)
            waiting += {source for branch in table.branches for source in table.sources(branch, step)}
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
