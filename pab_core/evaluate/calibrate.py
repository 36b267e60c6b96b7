"""Searches a static schedule for a model: which branches to compute at which steps, for a wanted share of the time.

Errors of different kinds of branches partly cancel, so they do not add: every candidate is judged as a whole schedule,
by the distance of its clean latents from those of the same clips made without reuse. The search begins with a run that
computes everything and takes away what costs least error for the time that it saves (`remove`), then moves what
is computed to the steps beside it as long as that helps (`shift`). All that was judged is in a file of JSON lines: a
search that was interrupted goes on, and another of the same clips finds there what it has in common with it.
"""

from __future__ import annotations

import hashlib
import heapq
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..broadcast import BroadcastRun, ScheduleTable
from ..broadcast.schedule_file import ScheduleFile, schedule_of
from ..errors import PabError
from ..models.layers import Branch
from ..pipeline import Pipeline
from .generation import Clip, make_latents
from .quality import ResultFile

Unit = tuple[Branch, ...]  # branches that are computed at the same steps
Cell = tuple[int, int]  # unit and step
OnProgress = Callable[[float, float], None]  # share of the time that is left, error


@dataclass(frozen=True)
class Candidate:
    """The steps at which each unit is computed; step 0 always is."""

    units: tuple[Unit, ...]
    steps: int
    reused: frozenset[Cell] = frozenset()

    def with_reused(self, cells: Iterable[Cell]) -> Candidate:
        return Candidate(self.units, self.steps, self.reused | set(cells))

    def with_computed(self, cells: Iterable[Cell]) -> Candidate:
        return Candidate(self.units, self.steps, self.reused - set(cells))

    def table(self, off: ScheduleTable, name: str = "calibrated") -> ScheduleTable:
        source: dict[Branch, tuple[int, ...]] = {}
        for number, unit in enumerate(self.units):
            row: list[int] = []
            for i in range(self.steps):
                row.append(row[-1] if (number, i) in self.reused else i)
            source |= dict.fromkeys(unit, tuple(row))
        return ScheduleTable(name, off.timesteps, {branch: source[branch] for branch in off.branches})

    @property
    def digest(self) -> str:
        """The same for the same schedule, whatever its units."""
        cells = sorted((repr(branch), step) for unit, step in self.reused for branch in self.units[unit])
        return hashlib.sha256(repr(cells).encode()).hexdigest()[:24]


def make_units(branches: Sequence[Branch], groups: int) -> tuple[Unit, ...]:
    """The branches of one kind and stream in one of `groups` equal parts of the depth, each."""
    depth = 1 + max(branch.block for branch in branches)
    if not 1 <= groups <= depth:
        raise PabError(f"The model's {depth} blocks can be searched in 1 to {depth} groups, not {groups}.")
    found: dict[tuple[str, str, int], list[Branch]] = {}
    for branch in branches:
        found.setdefault((branch.kind, branch.stream, branch.block * groups // depth), []).append(branch)
    return tuple(tuple(unit) for unit in found.values())


class Trial:
    """Judges candidates on some clips."""

    def __init__(self, pipe: Pipeline, clips: Sequence[Clip], path: Path, batch: int = 8):
        self.pipe, self.clips, self.batch = pipe, clips, batch
        self.off = pipe.schedule("off")
        header = {"search": pipe.spec.name, "steps": pipe.spec.steps, "clips": [[c.prompt, c.seed] for c in clips]}
        self.file = ResultFile(path, header)
        self.known = {line["digest"]: line["error"] for line in self.file.lines}
        self.judged = 0  # in this process
        self._plain: list[Tensor] | None = None

    def error(self, candidate: Candidate) -> float:
        """Root of the mean, over the clips, of the squared relative distance from the latents without reuse."""
        if candidate.digest not in self.known:
            error = self._judge(candidate.table(self.off))
            self.judged += 1
            self.known[candidate.digest] = error
            self.file.add({"digest": candidate.digest, "error": error})
        return self.known[candidate.digest]

    def _judge(self, table: ScheduleTable) -> float:
        if self._plain is None:
            self._plain = [self._made(start, self.off) for start in range(0, len(self.clips), self.batch)]
        total = 0.0
        for number, plain in enumerate(self._plain):
            made = self._made(number * self.batch, table)
            distance = (made - plain).flatten(1).square().sum(1) / plain.flatten(1).square().sum(1)
            total += float(distance.double().sum())
        return (total / len(self.clips)) ** 0.5

    def _made(self, start: int, table: ScheduleTable) -> Tensor:
        return make_latents(self.pipe, self.clips[start : start + self.batch], table)[0]


@dataclass(frozen=True)
class Costs:
    """Seconds of a call of each branch, and of the rest of a call of the model."""

    branches: Mapping[Branch, float]
    rest: float

    def share(self, candidate: Candidate) -> float:
        """Of the time of a run without reuse."""
        whole = self.rest + sum(self.branches.values())
        saved = sum(self.of_unit(candidate.units[unit]) for unit, _ in candidate.reused)
        return 1 - saved / (whole * candidate.steps)

    def of_unit(self, unit: Unit) -> float:
        return sum(self.branches[branch] for branch in unit)


class _Clock(BroadcastRun):
    """A run without reuse that times each branch."""

    def __init__(self, table: ScheduleTable):
        super().__init__(table)
        self.seconds: dict[Branch, list[float]] = {branch: [] for branch in table.branches}

    def __call__(self, branch: Branch, update: Callable[[Tensor, Any], Tensor], x: Tensor, cond: Any) -> Tensor:
        _wait(x.device)
        start = time.perf_counter()
        value = update(x, cond)
        _wait(x.device)
        self.seconds[branch].append(time.perf_counter() - start)
        return value


def measure_costs(pipe: Pipeline, clip: Clip) -> Costs:
    """Times the branches of one run, of one clip: the median of each, alike for branches of one kind and stream."""
    table = pipe.schedule("off")
    clock, text, noise = _Clock(table), pipe.encode_prompt(clip.prompt), pipe.prepare_latents(clip.seed)
    _wait(pipe.device)
    start = time.perf_counter()
    pipe.denoise(noise, text, table, seed=clip.seed, run=clock)
    _wait(pipe.device)
    whole = (time.perf_counter() - start) / table.steps
    alike: dict[tuple[str, str], list[float]] = {}
    for branch, seconds in clock.seconds.items():
        alike.setdefault((branch.kind, branch.stream), []).extend(seconds)
    medians = {key: sorted(values)[len(values) // 2] for key, values in alike.items()}
    branches = {branch: medians[branch.kind, branch.stream] for branch in table.branches}
    return Costs(branches, max(whole - sum(branches.values()), 0.0))


def remove(
    trial: Trial,
    costs: Costs,
    units: tuple[Unit, ...],
    *,
    share: float | None = None,
    error: float | None = None,
    on_progress: OnProgress | None = None,
) -> Candidate:
    """Takes computations away, the cheapest in error for the time saved first, until the run takes `share` of the time
    or comes to `error`.

    A removal is one unit at one step, or everything at one step: what is reused together errs less. Errors grow as
    others are removed, so an old estimate is a bound from below, nearly always: only the best of them are judged anew.

    Raises:
        PabError: neither or both of share and error are given; the share cannot be reached.
    """
    if (share is None) == (error is None):
        raise PabError("A calibration has one aim: give either the wanted share of the time or the wanted error.")
    steps = trial.off.steps
    moves = [((unit, step),) for step in range(1, steps) for unit in range(len(units))]
    moves += [tuple((unit, step) for unit in range(len(units))) for step in range(1, steps)]
    best, reached = Candidate(units, steps), 0.0
    # (error for the time saved, round in which it was judged, move)
    queue: list[tuple[float, int, tuple[Cell, ...]]] = [(0.0, -1, move) for move in moves]
    turn = 0
    while share is None or costs.share(best) > share:
        if not queue:
            raise PabError(f"No schedule of this model takes {share:.0%} of the time: ask for a smaller saving.")
        price, judged, move = heapq.heappop(queue)
        fresh = [cell for cell in move if cell not in best.reused]
        if not fresh:
            continue
        candidate = best.with_reused(fresh)
        if judged != turn:
            saved = costs.share(best) - costs.share(candidate)
            # Squares, as those of independent errors add.
            price = (trial.error(candidate) ** 2 - reached**2) / max(saved, 1e-12)
            heapq.heappush(queue, (price, turn, move))
            continue
        found = trial.error(candidate)
        if error is not None and found > error:
            break
        best, reached, turn = candidate, found, turn + 1
        if on_progress is not None:
            on_progress(costs.share(best), reached)
    return best


def shift(
    trial: Trial, costs: Costs, start: Candidate, *, rounds: int = 1, on_progress: OnProgress | None = None
) -> Candidate:
    """Moves computed steps of a unit, and of all units together, to the step beside it where that lowers the error; the
    time stays as it is."""
    best, reached = start, trial.error(start)
    everything = tuple(range(len(start.units)))
    for _ in range(rounds):
        before = reached
        for step in range(1, start.steps):
            for group in (everything, *((unit,) for unit in everything)):
                for other in (step - 1, step + 1):
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


def calibrated_file(pipe: Pipeline, candidate: Candidate, name: str, note: str = "") -> ScheduleFile:
    """The schedule as a file that serves runs of any length."""
    spec, off = pipe.spec, pipe.schedule("off")
    made = schedule_of(candidate.table(off, name), spec.family, spec.depth, name, note)
    return made.model_copy(update={"stretch": True})


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
