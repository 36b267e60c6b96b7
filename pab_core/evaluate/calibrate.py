"""Searches a static schedule for a model: which branches to compute at which steps, for a wanted share of the time.

Errors of different kinds of branches partly cancel, so they do not add: every candidate is judged as a whole schedule,
by the distance of its clean latents from those of the same clips made without reuse. The search begins with a run that
computes everything and takes away what costs least error for the time that it saves (`remove`), or where all of the
model is computed at the same steps, spreads these over the run (spread.py); then it moves what is computed to the steps
beside it as long as that helps (`shift`). All that was judged is in a file of JSON lines: a search that was interrupted
goes on, and another of the same clips finds there what it has in common with it.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from ..broadcast import ScheduleTable
from ..broadcast.schedule_file import Rule, ScheduleFile, neighbours, schedule_of
from ..errors import PabError
from ..models.layers import Branch, Kind
from ..pipeline import Pipeline
from .candidates import Candidate, Cell, Unit, digest
from .costs import Costs
from .generation import Clip, make_latents
from .results import ResultFile

Move = tuple[Cell, ...]  # reused together
Whole = Literal["kind", "block", "model"]
OnProgress = Callable[[float, float], None]  # share of the time that is left, error
GRID = 5  # of the steps at which single units are judged first, one in so many
_BOLD = 0.7  # of what a removal is expected to cost, where it was not judged


class TooLittleTime(PabError):
    """What was asked for needs more time; what was done so far is kept."""


def make_units(branches: Sequence[Branch], groups: int, whole: Whole = "kind") -> tuple[Unit, ...]:
    """The branches that are computed together: those of one kind and stream in one of `groups` equal parts of the
    depth, or all of such a part ("block": what is reused is then the residual of whole blocks), or all of the model.
    """
    depth = 1 + max(branch.block for branch in branches)
    if not 1 <= groups <= depth:
        raise PabError(f"The model's {depth} blocks can be searched in 1 to {depth} groups, not {groups}.")
    found: dict[tuple[str, str, int], list[Branch]] = {}
    for branch in branches:
        kind, stream = (branch.kind, branch.stream) if whole == "kind" else ("", "")
        part = 0 if whole == "model" else branch.block * groups // depth
        found.setdefault((kind, stream, part), []).append(branch)
    return tuple(tuple(unit) for unit in found.values())


class Trial:
    """Judges schedules on some clips, made `batch` at a time; `merge`: what is reused together is kept as its sum."""

    def __init__(
        self,
        pipe: Pipeline,
        clips: Sequence[Clip],
        path: Path,
        batch: int = 8,
        predictor: str = "hold",
        merge: bool = False,
    ):
        self.pipe, self.clips, self.batch, self.predictor, self.merge = pipe, clips, batch, predictor, merge
        self.off = pipe.schedule("off")
        header = {"search": pipe.spec.name, "steps": pipe.spec.steps, "clips": [[c.prompt, c.seed] for c in clips]}
        self.file = ResultFile(path, header)
        told = {line["digest"]: line["error"] for line in self.file.lines if "digest" in line}
        self.known = {key: math.inf if error is None else error for key, error in told.items()}
        self.judged = 0  # in this process
        self.on_judged: Callable[[int], None] | None = None  # told how many are known
        self._plain: list[Tensor] | None = None

    def table(self, candidate: Candidate) -> ScheduleTable:
        """As a run follows it."""
        made = candidate.table(self.off, predictor=self.predictor)
        return replace(made, groups=neighbours(made.source)) if self.merge and made.predictor != "gate" else made

    def error(self, candidate: Candidate) -> float:
        return self.error_of(self.table(candidate))

    def knows(self, candidate: Candidate) -> bool:
        return self.knows_table(self.table(candidate))

    def knows_table(self, table: ScheduleTable) -> bool:
        return digest(table) in self.known

    def error_of(self, table: ScheduleTable) -> float:
        """Root of the mean, over the clips, of the squared relative distance from the latents without reuse; infinite
        where that is no number.

        PabError where the latents without reuse are not all numbers.
        """
        key = digest(table)
        if key not in self.known:
            self.known[key] = self._judge(table)
            self.judged += 1
            error = self.known[key]
            self.file.add({"digest": key, "error": error if math.isfinite(error) else None})
            if self.on_judged is not None:
                self.on_judged(len(self.known))
        return self.known[key]

    def _judge(self, table: ScheduleTable) -> float:
        if self._plain is None:
            self._plain = [self._made(start, self.off) for start in range(0, len(self.clips), self.batch)]
            if not all(bool(plain.isfinite().all()) for plain in self._plain):
                raise PabError("Without any reuse the model already makes what are no numbers: calibrate another.")
        total = 0.0
        for number, plain in enumerate(self._plain):
            made = self._made(number * self.batch, table)
            distance = (made - plain).flatten(1).square().sum(1) / plain.flatten(1).square().sum(1)
            total += float(distance.double().sum())
        return (total / len(self.clips)) ** 0.5 if math.isfinite(total) else math.inf

    def _made(self, start: int, table: ScheduleTable) -> Tensor:
        return make_latents(self.pipe, self.clips[start : start + self.batch], table)[0]


def late(until: float | None) -> bool:
    """Whether that moment, of time.monotonic(), is past."""
    return until is not None and time.monotonic() > until


def remove(
    trial: Trial,
    costs: Costs,
    units: tuple[Unit, ...],
    *,
    share: float | None = None,
    error: float | None = None,
    until: float | None = None,
    on_progress: OnProgress | None = None,
) -> Candidate:
    """Takes computations away, the cheapest in error for the time saved first, until the run takes `share` of the time
    or comes to `error`.

    A removal is one unit at one step, or everything at one step: what is reused together errs less. Errors grow as
    others are removed, so an old estimate is a bound from below, nearly always: only the best of them are judged anew.
    The first estimates are those of `first_prices`.

    Args:
        until: of time.monotonic(); from then on nothing more is judged, and old estimates are taken as they are.

    Raises:
        PabError: neither or both of share and error are given; the share cannot be reached.
        TooLittleTime: it cannot be reached before `until`; of an error, nothing could be removed by then.
    """
    if (share is None) == (error is None):
        raise PabError("A calibration has one aim: give either the wanted share of the time or the wanted error.")
    best, reached, left = Candidate(units, trial.off.steps), 0.0, 1.0
    # (error for the time saved, round in which it was judged, move)
    queue: list[tuple[float, int, Move]] = [
        (price, -1, move) for move, price in first_prices(trial, costs, units, until).items()
    ]
    heapq.heapify(queue)
    turn, hurried = 0, late(until)
    while queue and (share is None or left > share):
        price, judged, move = heapq.heappop(queue)
        if all(cell in best.reused for cell in move):
            continue
        candidate = best.with_reused(move)
        now_left = costs.share(candidate)
        unjudged = late(until) and not trial.knows(candidate)
        hurried = hurried or unjudged
        if unjudged and error is not None:
            break
        if judged != turn and not unjudged:
            # Squares, as those of independent errors add.
            price = (trial.error(candidate) ** 2 - reached**2) / max(left - now_left, 1e-12)
            heapq.heappush(queue, (price, turn, move))
            continue
        found = reached if unjudged else trial.error(candidate)
        if error is not None and found > error:
            break
        best, reached, left, turn = candidate, found, now_left, turn + 1
        if on_progress is not None:
            on_progress(left, reached)
    if (share is not None and left > share) or (hurried and not best.reused):
        if hurried:
            raise TooLittleTime("The time was too short to try every computation once: run it again, and it goes on.")
        raise PabError(f"No schedule of this model takes {share:.0%} of the time: ask for a smaller saving.")
    return best


def first_prices(trial: Trial, costs: Costs, units: tuple[Unit, ...], until: float | None = None) -> dict[Move, float]:
    """The squared error for the time saved of each removal alone, everything at one step and single units.

    Single units are judged at every few steps only. Between those the price is an estimate, a little low: in proportion
    to that of everything at the same step, as at the nearer judged steps, of which the cheaper counts. It is smooth in
    the step, nearly, and far most of the single units are never the best. What there was no time for, and nothing to
    estimate it from, is left out.
    """
    steps, everything, nothing = trial.off.steps, range(len(units)), Candidate(units, trial.off.steps)
    whole = {step: tuple((unit, step) for unit in everything) for step in range(1, steps)}
    found: dict[Move, float] = {}

    def judge(moves: Sequence[Move]) -> None:
        for move in moves:
            candidate = nothing.with_reused(move)
            if not late(until) or trial.knows(candidate):
                found[move] = trial.error(candidate) ** 2 / max(1 - costs.share(candidate), 1e-12)

    judge(list(whole.values()))
    if len(units) == 1:
        return found
    grid = sorted({*range(1, steps, GRID), steps - 1})
    judge([((unit, step),) for step in grid for unit in everything])
    for unit in everything:
        ratios = {
            step: found[((unit, step),)] / found[whole[step]]
            for step in grid
            if ((unit, step),) in found and 0 < found.get(whole[step], 0) < math.inf
        }
        for step in range(1, steps):
            near = [ratio for place, ratio in ratios.items() if abs(place - step) < GRID]
            if ((unit, step),) not in found and whole[step] in found and near:
                found[((unit, step),)] = _BOLD * min(near) * found[whole[step]]
    return found


def shift(
    trial: Trial,
    costs: Costs,
    start: Candidate,
    *,
    rounds: int = 1,
    until: float | None = None,
    on_progress: OnProgress | None = None,
) -> Candidate:
    """Moves computed steps of a unit, and of all units together, to the step beside it where that lowers the error; the
    time stays as it is. It ends after `until`, of time.monotonic()."""
    best, reached = start, trial.error(start)
    everything = tuple(range(len(start.units)))
    for _ in range(rounds):
        before = reached
        for step in range(1, start.steps):
            for group in (everything, *((unit,) for unit in everything)):
                for other in (step - 1, step + 1):
                    if late(until):
                        return best
                    candidate = _moved(best, group, step, other)
                    if candidate is None:
                        continue
                    found = trial.error(candidate)
                    if found < reached:
                        best, reached = candidate, found
                        if on_progress is not None:
                            on_progress(costs.share(best), reached)
        if reached == before:
            break
    return best


def _moved(candidate: Candidate, group: Sequence[int], step: int, other: int) -> Candidate | None:
    """Computed at `other` instead of at `step`, for the units of a group that do the reverse; None if none does."""
    if not 1 <= other < candidate.steps:
        return None
    units = [u for u in group if (u, step) not in candidate.reused and (u, other) in candidate.reused]
    if not units:
        return None
    return candidate.with_computed((u, other) for u in units).with_reused((u, step) for u in units)


def calibrated_file(
    pipe: Pipeline, candidate: Candidate, name: str, note: str = "", *, predictor: str = "hold", merge: bool = False
) -> ScheduleFile:
    """The schedule as a file that serves runs of any length; `merge`: what is reused together is kept as its sum."""
    spec, off = pipe.spec, pipe.schedule("off")
    table = candidate.table(off, name, predictor)
    made = schedule_of(table, spec.family, spec.depth, name, note)
    rules = made.rules
    if len(set(table.source.values())) == 1 and rules:  # all of the model at the same steps: one rule says it
        rules = (Rule(kinds=get_args(Kind), source=rules[0].source),)
    return made.model_copy(update={"rules": rules, "stretch": True, "merge": merge and table.predictor != "gate"})
