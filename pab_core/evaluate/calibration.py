"""A calibration from its prompts to a schedule: record how updates change, propose window and ranges, search.

Everything that takes long is kept in a folder, so the same calibration, started again, goes on where it was cut off.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..broadcast import ScheduleTable, Window
from ..broadcast.predictors import HISTORY, check_predictor
from ..broadcast.schedule_file import VERSION, ModelId, Rule, ScheduleFile, Span
from ..broadcast.whole_file import write_whole
from ..errors import PabError
from ..models.layers import Kind
from ..pipeline import Pipeline
from .calibrate import GRID, Trial, Whole, calibrated_file, make_units, remove, shift
from .candidates import Candidate
from .clocked import at_time, computed_in, timed_shares
from .costs import Costs, find_costs
from .generation import Clip
from .recording import Recording, draw_recording, record, save_recording, stable_window
from .results import write_figure
from .spread import check_computed, spread

OnProgress = Callable[[str, int, int], None]  # stage, done, total; total 0 where it is not known
_LONGEST = 9
BEST = "best"  # no predictor: the best of these for the schedule at hand
_OF_THOSE = ("linear", "taylor", "hold")


@dataclass(frozen=True)
class Aim:
    """What a search is to reach: one of these; none: nothing is searched.

    speedup: of the denoising, 1.3 = 1.3 times as fast.
    like: a policy, whose share of the time is to be reached.
    error: root of the mean squared relative distance of the clean latents.
    error_like: a policy, whose error is to be reached.
    computed: calls of the model, where a search is by model.
    """

    speedup: float | None = None
    error: float | None = None
    like: str | None = None
    error_like: str | None = None
    computed: int | None = None

    def __post_init__(self) -> None:
        given = (self.speedup, self.error, self.like, self.error_like, self.computed)
        if sum(value is not None for value in given) > 1:
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
    timed_clips: int | None = None  # made together where the time is measured; None: `batch`

    def __post_init__(self) -> None:
        if self.whole not in ("kind", "block", "model"):
            raise PabError(f"A schedule is searched by kind, block or model, not by '{self.whole}'.")
        if self.predictor != BEST:
            check_predictor(self.predictor)
        elif self.whole != "model":
            raise PabError("The best predictor is found in a search by model alone: name one for this search.")

    @property
    def predictors(self) -> tuple[str, ...]:
        """Those to choose from; the first is the one to begin with."""
        return _OF_THOSE if self.predictor == BEST else (self.predictor,)

    @property
    def together(self) -> int:
        """Clips made together where the time is measured."""
        return self.timed_clips or self.batch

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
    """A finished one. `share` is that of the time, by the clock or as the costs predict; `error` is that of the clips
    it was made on."""

    schedule: ScheduleFile
    proposal: Proposal
    share: float
    error: float
    judged: int  # schedules, in this process
    clips: int
    computed: int | None = None  # calls of the model that compute all of it, where the others compute nothing

    def to_json(self) -> dict[str, Any]:
        numbers = {"share": round(self.share, 4), "speedup": round(1 / self.share, 4), "error": round(self.error, 6)}
        proposal = self.proposal.to_json()
        more = {} if self.computed is None else {"computed": self.computed, "predictor": self.schedule.predictor}
        return {"policy": self.schedule.name, **numbers, **more, **proposal, "judged": self.judged, "clips": self.clips}


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
    check_together(aim, search, len(pipe.schedule("off").timesteps))
    tell = on_progress or (lambda stage, done, total: None)
    units = make_units(pipe.spec.branches, search.groups, search.whole)
    path = folder / "recording.jsonl"
    recording = record(pipe, clips, path, lambda done, total: tell("record", done, total), search.batch)
    changes, figure = folder / "changes.json", folder / "changes.png"
    before = changes.read_bytes() if changes.is_file() else b""
    save_recording(recording, changes)
    if changes.read_bytes() != before or not figure.is_file():  # calibrations for several aims share the folder
        write_figure(figure, lambda path: draw_recording(recording, path))
    proposal = propose(recording)
    write_whole(folder / "proposal.json", json.dumps(proposal.to_json(), indent=2) + "\n")
    trial = Trial(pipe, clips, folder / "search.jsonl", search.batch, search.predictors[0], search.merge)
    if aim.is_none:
        tell("costs", 0, 0)
        note = f"proposed from the changes of {len(clips)} clips"
        made = proposal.schedule(pipe, name, search.predictor, note)
        table = pipe.schedule(made)
        share = kept_costs(trial, search).share(table)
        return Calibration(made, proposal, share, trial.error_of(table), trial.judged, len(clips))
    tell("costs", 0, 0)
    clocked = search.whole == "model" and search.costs == "measured"
    # By the clock it is enough to know how many steps are computed.
    costs = Costs(dict.fromkeys(trial.off.branches, 1.0), 0.0) if clocked else kept_costs(trial, search)
    share, error, count = wanted(trial, costs, aim, search)
    took: float | None = None
    if share is not None and clocked:
        tell("time", 0, 0)
        slowest = max(search.predictors, key=HISTORY.__getitem__)
        count, took = computed_in(trial, units, share, slowest, search.together, until)
        share = None
    tell("search", 0, 0)
    moves = trial.off.steps - 1 + (len(units) > 1) * len(units) * -(-trial.off.steps // GRID)  # that are judged first
    trial.on_judged = lambda known: tell("try", known, moves) if known < moves else None

    def on_found(left: float, reached: float) -> None:
        done = 1.0 if count is not None else (1 - left) / (1 - share) if share is not None else reached / (error or 1)
        tell("search", min(int(100 * done), 100), 100)

    find: Callable[..., Candidate] = remove
    if search.whole == "model":
        find = partial(spread, rounds=search.rounds, predictors=search.predictors)
    find = partial(find, trial, costs, units, until=until, on_progress=on_found)
    best = find(count=count) if count is not None else find(share=share, error=error)
    if share is not None and aim.like is not None and search.costs == "measured":
        best, took = at_time(trial, best, share, lambda asked: find(share=asked), search.together, until)
    best = shift(trial, costs, best, rounds=search.rounds, until=until)
    if took is None:
        took = timed_shares(trial, [trial.table(best)], search.together)[0] if clocked else costs.share(best)
    return finished(trial, search, aim, best, took, proposal, name)


def check_together(aim: Aim, search: Search, calls: int) -> None:
    """PabError where a search of a run of so many calls of the model cannot have that aim."""
    if aim.is_none and search.predictor == BEST:
        raise PabError("The best predictor is found by a search: give a wanted speed-up or error, or name one.")
    if aim.computed is None:
        return
    if search.whole != "model":
        raise PabError("So many calls are computed as a whole in a search by model alone: leave out --by.")
    check_computed(aim.computed, calls)


def finished(
    trial: Trial, search: Search, aim: Aim, best: Candidate, share: float, proposal: Proposal, name: str
) -> Calibration:
    """What was found, with a note of how."""
    pipe, error, calls = trial.pipe, trial.error(best), trial.off.steps
    computed = calls - len(best.reused) if search.whole == "model" else None
    note = "" if computed is None else f"{computed} of {calls} calls computed; "
    groups = f" in groups of {search.groups}" if search.groups > 1 else ""
    note += (
        f"searched by {search.whole}{groups} on {len(trial.clips)} clips, costs {search.costs}: {share:.3f} of the "
        f"time, error {error:.4g}"
    )
    for policy in filter(None, (aim.like, aim.error_like)):
        note += f", {policy}'s {trial.error_of(pipe.schedule(policy)):.4g}"
    schedule = calibrated_file(pipe, best, name, note, predictor=search.predictors[0], merge=search.merge)
    return Calibration(schedule, proposal, share, error, trial.judged, len(trial.clips), computed)


def kept_costs(trial: Trial, search: Search) -> Costs:
    """As they were found first: with others, a search that goes on would take another way."""
    told = {"costs": search.costs, "predictor": search.predictors[0], "merge": search.merge}
    line = trial.file.find(**told)
    if line is None:
        clips = trial.clips[: search.batch]
        found = find_costs(trial.pipe, search.costs, clips, search.predictors[0], search.merge)
        line = told | {"shares": found.to_json()}
        trial.file.add(line)
    return Costs.from_json(line["shares"], trial.off.branches)


def wanted(trial: Trial, costs: Costs, aim: Aim, search: Search) -> tuple[float | None, float | None, int | None]:
    """The share of the time, the error or the computed calls that an aim means, the others None."""
    if aim.speedup is not None or aim.error is not None or aim.computed is not None:
        return None if aim.speedup is None else 1 / aim.speedup, aim.error, aim.computed
    table = trial.pipe.schedule(aim.like or aim.error_like or "off")
    if table.sampler_steps is not None or table.decide is not None or table.scores:
        raise PabError(
            f"The policy {table.policy} has no schedule of this many steps to be like: choose one named pab."
        )
    if aim.like:
        return share_of(trial, costs, table, search), None, None
    return None, trial.error_of(table), None


def share_of(trial: Trial, costs: Costs, table: ScheduleTable, search: Search) -> float:
    """Of the time that a policy takes: by the clock where costs are, since they are those of another way to reuse."""
    return timed_shares(trial, [table], search.together)[0] if search.costs == "measured" else costs.share(table)
