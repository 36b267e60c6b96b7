"""What each branch of a model costs, so that schedules can be compared before they are run: by the clock of the machine
at hand, or by the arithmetic of this or of another model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..broadcast import BroadcastRun, ScheduleTable
from ..broadcast.predictors import HISTORY
from ..broadcast.schedule_file import neighbours
from ..errors import PabError
from ..models.layers import Branch
from ..models.registry import MODELS
from ..pipeline import WARM_UP_STEPS, Pipeline
from .flops import PAPER, as_published, count_call
from .generation import Clip, make_latents, prepare

_STEPS = 8  # of the runs that are compared on a GPU
_ROUNDS = 3
_TOKENS = 20


class Rows(Protocol):
    """A schedule table, or a candidate for one."""

    @property
    def source(self) -> Mapping[Branch, tuple[int, ...]]: ...
    @property
    def steps(self) -> int: ...


@dataclass(frozen=True)
class Costs:
    """Of a call of each branch, and of the rest of a call of the model; in any unit."""

    branches: Mapping[Branch, float]
    rest: float

    @property
    def whole(self) -> float:
        """Of a call of the model."""
        return self.rest + sum(self.branches.values())

    def share(self, schedule: Rows) -> float:
        """Of the time of a run of as many steps without reuse."""
        saved = sum(
            self.branches[branch] * sum(source != i for i, source in enumerate(row))
            for branch, row in schedule.source.items()
        )
        return 1 - saved / (self.whole * schedule.steps)

    def to_json(self) -> dict[str, Any]:
        """The share of each kind and stream of a call, and that of the rest."""
        kinds: dict[str, float] = {}
        for branch, cost in self.branches.items():
            name = f"{branch.kind}/{branch.stream}"
            kinds[name] = kinds.get(name, 0.0) + cost
        return {name: cost / self.whole for name, cost in (kinds | {"rest": self.rest}).items()}

    @classmethod
    def from_json(cls, shares: Mapping[str, float], branches: Sequence[Branch]) -> Costs:
        """Of a model with these branches, all of a kind and stream alike."""
        counts: dict[str, int] = {}
        for branch in branches:
            name = f"{branch.kind}/{branch.stream}"
            counts[name] = counts.get(name, 0) + 1
        each = {name: shares[name] / count for name, count in counts.items()}
        return cls({branch: each[f"{branch.kind}/{branch.stream}"] for branch in branches}, shares["rest"])


def find_costs(pipe: Pipeline, by: str, clips: Sequence[Clip], predictor: str = "hold", merge: bool = False) -> Costs:
    """Costs "measured" here with these clips made together, or by the "flops" of the model or, for a small model that
    stands for a large one, by those of a released one's name.

    predictor, merge: of the schedules that are to be compared, since reuse takes time, too; counted costs leave it out.

    PabError for another word, or where the released model's blocks are built otherwise.
    """
    if by == "measured":
        return measure_costs(pipe, clips, predictor, merge)
    if by != "flops" and by not in PAPER:
        raise PabError(f"Costs are measured, or counted as flops, or those of {', '.join(PAPER)}; not '{by}'.")
    spec = pipe.spec if by == "flops" else MODELS[by]
    if spec.family != pipe.spec.family:
        raise PabError(f"{pipe.spec.title} is not built like {spec.title}: take the costs of its own kind.")
    if by == "flops":
        call = count_call(spec, pipe.transformer.config, _TOKENS)
    else:
        tokens = PAPER[by].text_tokens
        call = as_published(count_call(spec, PAPER[by].config, tokens), spec, PAPER[by], tokens)
    found = Costs({branch: float(flops.total) for branch, flops in call.branches.items()}, 0.0)
    found = Costs(found.branches, call.total - found.whole)
    return Costs.from_json(found.to_json(), pipe.spec.branches)


def measure_costs(pipe: Pipeline, clips: Clip | Sequence[Clip], predictor: str = "hold", merge: bool = False) -> Costs:
    """Seconds of each branch when these clips are made together, alike for branches of one kind and stream.

    On a CPU each call is timed. On a GPU, which works behind the program's back, waiting for it after each call would
    make small kernels look dear: there whole runs are timed, with and without each kind of branch.
    """
    clips = [clips] if isinstance(clips, Clip) else clips
    return by_calls(pipe, clips) if pipe.device.type == "cpu" else by_difference(pipe, clips, predictor, merge)


class Clock(BroadcastRun):
    """A run that times each branch."""

    def __init__(self, table: ScheduleTable):
        super().__init__(table)
        self.seconds: dict[Branch, list[float]] = {branch: [] for branch in table.branches}

    def __call__(self, branch: Branch, update: Callable[[Tensor, Any], Tensor], x: Tensor, cond: Any) -> Tensor:
        start = now(x.device)
        value = super().__call__(branch, update, x, cond)
        self.seconds[branch].append(now(x.device) - start)
        return value


def by_calls(pipe: Pipeline, clips: Sequence[Clip]) -> Costs:
    """The median of the calls of each kind and stream of a whole run."""
    table = pipe.schedule("off")
    clock = Clock(table)
    start = now(pipe.device)
    make_latents(pipe, clips, table, run=clock)
    whole = (now(pipe.device) - start) / table.steps
    alike: dict[tuple[str, str], list[float]] = {}
    for branch, seconds in clock.seconds.items():
        alike.setdefault((branch.kind, branch.stream), []).extend(seconds)
    medians = {key: sorted(values)[len(values) // 2] for key, values in alike.items()}
    branches = {branch: medians[branch.kind, branch.stream] for branch in table.branches}
    return Costs(branches, max(whole - sum(branches.values()), 0.0))


def by_difference(pipe: Pipeline, clips: Sequence[Clip], predictor: str = "hold", merge: bool = False) -> Costs:
    """What a run saves where a kind and stream is computed at its first steps only, as many as the predictor takes;
    together as much as a run saves where all are. Medians of a few rounds."""
    few = min(_STEPS, pipe.spec.steps)
    off = pipe.schedule("off", steps=few)
    first = HISTORY[predictor]
    computed, reused = tuple(range(off.steps)), tuple(min(i, first - 1) for i in range(off.steps))
    kinds = list(dict.fromkeys((branch.kind, branch.stream) for branch in off.branches))

    def without(some: Sequence[tuple[str, str]]) -> ScheduleTable:
        source = {b: reused if (b.kind, b.stream) in some else computed for b in off.branches}
        groups = neighbours(source) if merge else ()
        return ScheduleTable("costs", off.timesteps, source, groups=groups, predictor=predictor)

    tables = [off, *(without([kind]) for kind in kinds), without(kinds)]
    best = [statistics.median(seconds) for seconds in time_runs(pipe, clips, tables, steps=few, recorded=False)]
    # Noise must not make a branch free: it would be thought to save nothing.
    floor = 1e-4 * best[0] / len(off.branches)
    saved = [max(best[0] - seconds, floor) for seconds in best[1:]]
    scale = saved[-1] / sum(saved[:-1])
    calls = {kind: sum((b.kind, b.stream) == kind for b in off.branches) * (off.steps - first) for kind in kinds}
    each = {kind: scale * seconds / calls[kind] for kind, seconds in zip(kinds, saved, strict=False)}
    branches = {branch: each[branch.kind, branch.stream] for branch in off.branches}
    return Costs(branches, max(best[0] / off.steps - sum(branches.values()), 0.0))


def time_runs(
    pipe: Pipeline,
    clips: Sequence[Clip],
    tables: Sequence[ScheduleTable],
    *,
    steps: int | None = None,
    rounds: int = _ROUNDS,
    recorded: bool = True,
) -> list[list[float]]:
    """Seconds of the denoise loop of these clips made together, under each table in each round.

    As bench.measure_speed: each round begins with another table, and a short run goes before them all.

    Args:
        recorded: as videos are made; what a branch costs is told by steps that are not, since few records are made of
            those that leave one out.
    """
    noise, text = prepare(pipe, clips)

    def seconds(table: ScheduleTable, steps: int | None) -> float:
        start = now(pipe.device)
        pipe.denoise(noise, text, table, steps=steps, seed=clips[0].seed, run=pipe.new_run(table, recorded=recorded))
        return now(pipe.device) - start

    few = min(WARM_UP_STEPS, tables[0].steps)
    seconds(pipe.schedule("off", steps=few), few)
    found: list[list[float]] = [[] for _ in tables]
    for turn in range(rounds):
        for place in range(len(tables)):
            which = (turn + place) % len(tables)
            found[which].append(seconds(tables[which], steps))
    return found


def now(device: torch.device) -> float:
    """The clock, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
