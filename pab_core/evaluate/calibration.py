"""A calibration from its prompts to a schedule: record how updates change, propose window and ranges, search.

Everything that takes long is kept in a folder, so the same calibration, started again, goes on where it was cut off.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..broadcast import ScheduleTable, Window
from ..broadcast.predictors import check_predictor
from ..broadcast.schedule_file import VERSION, ModelId, Rule, ScheduleFile, Span, neighbours
from ..broadcast.whole_file import whole_file, write_whole
from ..errors import PabError
from ..models.layers import Kind
from ..pipeline import Pipeline
from .calibrate import GRID, Candidate, Trial, Whole, calibrated_file, digest, late, make_units, remove, shift
from .costs import Costs, find_costs, seconds_of
from .generation import Clip
from .recording import Recording, draw_recording, record, save_recording, stable_window
from .spread import spread

OnProgress = Callable[[str, int, int], None]  # stage, done, total; total 0 where it is not known
_LONGEST = 9
_CORRECTIONS = 3  # of a schedule that the clock found to take another time than costs said
_CLOSE = 0.985  # of the wanted time is near enough to it
_ROUNDS = 3


@dataclass(frozen=True)
class Aim:
    """What a search is to reach: one of these; none: nothing is searched.

    speedup: of the denoising, 1.3 = 1.3 times as fast.
    like: a policy, whose share of the time is to be reached.
    error: root of the mean squared relative distance of the clean latents.
    error_like: a policy, whose error is to be reached.
    """

    speedup: float | None = None
    error: float | None = None
    like: str | None = None
    error_like: str | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.speedup, self.error, self.like, self.error_like)) > 1:
            raise PabError("A calibration has one aim: give either the wanted speed-up or the wanted error.")
        for name, value, least in (("speed-up", self.speedup, 1), ("error", self.error, 0)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise PabError(f"The wanted {name} is a number, not {value!r}.")
            if value is not None and not least < value < 100:
                raise PabError(f"The wanted {name} is a number above {least}, not {value:g}.")

    @property
    def is_none(self) -> bool:
        return self == Aim()


@dataclass(frozen=True)
class Search:
    """How to search; see calibrate.make_units, predictors and costs.find_costs."""

    whole: Whole = "kind"
    groups: int = 1
    predictor: str = "hold"
    costs: str = "measured"
    batch: int = 8
    rounds: int = 2  # of moving computations to the steps beside

    def __post_init__(self) -> None:
        if self.whole not in ("kind", "block", "model"):
            raise PabError(f"A schedule is searched by kind, block or model, not by '{self.whole}'.")
        check_predictor(self.predictor)

    @property
    def merge(self) -> bool:
        """Whether what is reused together is kept as its sum."""
        return self.whole != "kind" and self.predictor != "gate"


@dataclass(frozen=True)
class Proposal:
    """A pyramid that suits what was recorded."""

    window: Window
    ranges: Mapping[Kind, int]

    def to_json(self) -> dict[str, Any]:
        return {"window": [self.window.start, self.window.stop], "ranges": dict(self.ranges)}

    def schedule(self, pipe: Pipeline, name: str, predictor: Any = "hold", note: str = "") -> ScheduleFile:
        start, stop = self.window.start, self.window.stop
        rules = tuple(
            Rule(kinds=(kind,), windows=(Span(start=start, stop=stop, range=value),))
            for kind, value in self.ranges.items()
        )
        model = ModelId(family=pipe.spec.family, depth=pipe.spec.depth)
        about = {"pab_schedule": VERSION, "name": name, "model": model, "predictor": predictor, "note": note}
        return ScheduleFile(rules=rules, **about)


@dataclass(frozen=True)
class Calibration:
    """A finished one. `share` is that of the time which the costs predict, `error` that of the clips it was made on."""

    schedule: ScheduleFile
    proposal: Proposal
    share: float
    error: float
    judged: int  # schedules, in this process
    clips: int

    def to_json(self) -> dict[str, Any]:
        numbers = {"share": round(self.share, 4), "speedup": round(1 / self.share, 4), "error": round(self.error, 6)}
        proposal = self.proposal.to_json()
        return {"policy": self.schedule.name, **numbers, **proposal, "judged": self.judged, "clips": self.clips}


def propose(recording: Recording, times: float = 3.0) -> Proposal:
    """The floor of the U as the window, and ranges by how much each kind of attention changes there: 2 for the one that
    changes most, one more for each time that another would fit into its change.

    PabError where the changes are not numbers.
    """
    start, stop = stable_window(recording, times)
    steps = len(recording.timesteps)
    kinds: list[Kind] = [kind for kind in recording.kinds if kind != "mlp"]
    change = [statistics.fmean(recording.of_kind(kind)[start - 1 : stop - 1]) for kind in kinds]
    most = max(change)
    fits = [min(1 + round(most / max(value, most / _LONGEST)), _LONGEST) for value in change]
    ranges: dict[Kind, int] = dict(zip(kinds, fits, strict=True))
    return Proposal(Window(round(start / steps, 4), round(stop / steps, 4)), ranges)


def calibrate(
    pipe: Pipeline,
    clips: Sequence[Clip],
    folder: Path,
    aim: Aim,
    search: Search,
    *,
    name: str = "calibrated",
    until: float | None = None,
    on_progress: OnProgress | None = None,
) -> Calibration:
    """Records the clips and searches a schedule for the aim; without one, the proposed pyramid is the schedule.

    Args:
        folder: of recording.jsonl, changes.json and .png, proposal.json and search.jsonl, to go on with.
        until: of time.monotonic(), when a search is to come to an end with what it has.

    Raises:
        PabError: the folder holds another calibration; the aim cannot be reached; a user's policy is unknown.
    """
    tell = on_progress or (lambda stage, done, total: None)
    units = make_units(pipe.spec.branches, search.groups, search.whole)
    recording = record(pipe, clips, folder / "recording.jsonl", lambda done, total: tell("record", done, total))
    save_recording(recording, folder / "changes.json")
    with whole_file(folder / "changes.png") as part:
        draw_recording(recording, part)
    proposal = propose(recording)
    write_whole(folder / "proposal.json", json.dumps(proposal.to_json(), indent=2) + "\n")
    trial = Trial(pipe, clips, folder / "search.jsonl", search.batch, search.predictor)
    tell("costs", 0, 0)
    costs = kept_costs(trial, search)
    tell("search", 0, 0)
    moves = trial.off.steps - 1 + (len(units) > 1) * len(units) * -(-trial.off.steps // GRID)  # that are judged first
    trial.on_judged = lambda known: tell("try", known, moves) if known < moves else None
    if aim.is_none:
        note = f"proposed from the changes of {len(clips)} clips"
        made = proposal.schedule(pipe, name, search.predictor, note)
        table = pipe.schedule(made)
        return Calibration(made, proposal, costs.share(table), trial.error_of(table), trial.judged, len(clips))
    share, error = wanted(trial, costs, aim, search)

    def on_found(left: float, reached: float) -> None:
        done = (1 - left) / (1 - share) if share is not None else reached / (error or 1)
        tell("search", min(int(100 * done), 100), 100)

    find = partial(spread, rounds=search.rounds) if search.whole == "model" else remove
    best, took = find(trial, costs, units, share=share, error=error, until=until, on_progress=on_found), None
    if share is not None and aim.like is not None and search.costs == "measured":
        again = partial(find, trial, costs, units, until=until)
        best, took = at_time(trial, search, best, share, lambda asked: again(share=asked), until)
    best = shift(trial, costs, best, rounds=search.rounds, until=until)
    share, error = costs.share(best) if took is None else took, trial.error(best)
    note = (
        f"searched by {search.whole} in groups of {search.groups} on {len(clips)} clips, costs {search.costs}: "
        f"{share:.3f} of the time, error {error:.4g}"
    )
    schedule = calibrated_file(pipe, best, name, note, predictor=search.predictor, merge=search.merge)
    return Calibration(schedule, proposal, share, error, trial.judged, len(clips))


def at_time(
    trial: Trial,
    search: Search,
    found: Candidate,
    share: float,
    find: Callable[[float], Candidate],
    until: float | None = None,
) -> tuple[Candidate, float]:
    """The schedule that takes `share` of the time by the clock, and its share: costs predict a few percent wrong, so
    what they led to is timed, and a schedule found again for as much more or less."""
    asked, tried = share, dict[Candidate, float]()
    for _ in range(_CORRECTIONS):
        tried[found] = timed_share(trial, as_run(trial, found, search))
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


def as_run(trial: Trial, candidate: Candidate, search: Search) -> ScheduleTable:
    """Its table, with what is reused together kept as the search says."""
    table = candidate.table(trial.off, predictor=search.predictor)
    return replace(table, groups=neighbours(table.source)) if search.merge else table


def timed_share(trial: Trial, table: ScheduleTable) -> float:
    """Of the time of a run without reuse, the shortest of a few: kept with what was judged."""
    key = digest(table)
    line = trial.file.find(timed=key)
    if line is None:
        clips, least = trial.clips[: trial.batch], [math.inf, math.inf]  # the first round is a warm-up, nearly always
        for _ in range(_ROUNDS):
            for number, one in enumerate((trial.off, table)):
                least[number] = min(least[number], seconds_of(trial.pipe, clips, one))
        line = {"timed": key, "share": least[1] / least[0]}
        trial.file.add(line)
    return line["share"]


def kept_costs(trial: Trial, search: Search) -> Costs:
    """As they were found first: with others, a search that goes on would take another way."""
    told = {"costs": search.costs, "predictor": search.predictor, "merge": search.merge}
    line = trial.file.find(**told)
    if line is None:
        clips = trial.clips[: search.batch]
        found = find_costs(trial.pipe, search.costs, clips, search.predictor, search.merge)
        line = told | {"shares": found.to_json()}
        trial.file.add(line)
    return Costs.from_json(line["shares"], trial.off.branches)


def wanted(trial: Trial, costs: Costs, aim: Aim, search: Search) -> tuple[float | None, float | None]:
    """The share of the time or the error that an aim means, the other None."""
    if aim.speedup is not None:
        return 1 / aim.speedup, None
    if aim.error is not None:
        return None, aim.error
    table = trial.pipe.schedule(aim.like or aim.error_like or "off")
    if table.sampler_steps is not None or table.decide is not None or table.scores:
        raise PabError(
            f"The policy {table.policy} has no schedule of this many steps to be like: choose one named pab."
        )
    return (share_of(trial, costs, table, search), None) if aim.like else (None, trial.error_of(table))


def share_of(trial: Trial, costs: Costs, table: ScheduleTable, search: Search) -> float:
    """Of the time that a policy takes: by the clock where costs are, since they are those of another way to reuse."""
    return timed_share(trial, table) if search.costs == "measured" else costs.share(table)
