"""A model's calibrated schedules against everything that takes the same time, on clips that calibration never saw.

In order, all of it in one folder that an interrupted comparison goes on with: record, fit TeaCache, search a schedule
for the time of each of some policies and for the error of the first, in each of some ways; then measure the quality of
the best of each beside the policies themselves, TeaCache and fewer steps in the same time, T-GATE and delta-DiT.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..broadcast import AnyPolicy
from ..broadcast.calibrated import write_coefficients
from ..broadcast.predictors import HISTORY
from ..broadcast.schedule_file import ScheduleFile, load_schedule, save_schedule
from ..broadcast.teacache import TeaCache, polynomial
from ..errors import PabError
from ..pipeline import Pipeline
from .calibrate import TooLittleTime, Trial
from .calibration import Aim, Search, calibrate, kept_costs, share_of
from .costs import Costs
from .generation import Clip
from .lpips import Lpips
from .quality import Judge, measure_quality
from .quality_report import QualityReport
from .recording import Recording, fit_polynomial, record

OnProgress = Callable[[str, int, int], None]
SEARCH_SHARE = 0.55  # of the time given, at most, that goes into calibration
_OTHERS = ("pab444", "tgate", "delta-dit")


@dataclass(frozen=True)
class Found:
    """One search. `like`: the policy whose time, or error, it was to reach."""

    like: str
    by: str  # "time" or "error"
    way: str
    share: float
    error: float
    like_share: float
    like_error: float
    schedule: ScheduleFile

    @property
    def name(self) -> str:
        return self.schedule.name

    def to_json(self) -> dict[str, Any]:
        numbers = {"share": self.share, "error": self.error, "like_share": self.like_share}
        told = {name: round(value, 5) for name, value in (numbers | {"like_error": self.like_error}).items()}
        return {"policy": self.name, "like": self.like, "by": self.by, "way": self.way, **told}


@dataclass(frozen=True)
class RivalsReport:
    """`predicted`: policy -> predictor -> error of the latents, on the clips of calibration."""

    quality: QualityReport
    searches: tuple[Found, ...]
    unfinished: tuple[str, ...]  # searches that time was too short for
    predicted: Mapping[str, Mapping[str, float]]
    costs: Mapping[str, float]
    calibration_clips: int

    def to_json(self) -> dict[str, Any]:
        return {
            "quality": self.quality.to_json(),
            "searches": [found.to_json() for found in self.searches],
            "unfinished": list(self.unfinished),
            "predictors": {name: dict(errors) for name, errors in self.predicted.items()},
            "costs": dict(self.costs),
            "calibration_clips": self.calibration_clips,
        }

    def to_markdown(self) -> str:
        names = list(HISTORY)
        parts = [self.quality.to_markdown(), f"Searches, on {self.calibration_clips} clips of their own:\n"]
        parts += ["| like | aim | way | share of the time | error | its share | its error |", "|-|-|-|-|-|-|-|"]
        parts += [
            f"| {f.like} | {f.by} | {f.way} | {f.share:.3f} | {f.error:.4f} | {f.like_share:.3f} | {f.like_error:.4f} |"
            for f in self.searches
        ]
        if self.unfinished:
            parts.append(f"\nNot finished in the time given: {'; '.join(self.unfinished)}.")
        parts += ["\nError of fixed pyramids by predictor:\n", "| policy | " + " | ".join(names) + " |"]
        parts += ["|" + "-|" * (len(names) + 1)]
        for policy, errors in self.predicted.items():
            parts.append(f"| {policy} | " + " | ".join(f"{errors[name]:.4f}" for name in names) + " |")
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.costs.items())
        return "\n".join(parts) + f"\n\nShares of a step's time by which schedules were searched: {shares}.\n"


def compare_rivals(
    pipe: Pipeline,
    like: Sequence[str],
    ways: Mapping[str, Search],
    asked: Sequence[Clip],
    seen: Sequence[Clip],
    folder: Path,
    *,
    lpips: Lpips | None,
    judge: Judge | None = None,
    timed_clips: int = 1,
    repeat: int = 3,
    seconds: float | None = None,
    on_progress: OnProgress | None = None,
) -> RivalsReport:
    """The whole of it.

    Args:
        like: policies with a schedule, gentlest first.
        ways: how to search, by name; all of one kind of costs. The best of each aim is compared.
        asked: clips to calibrate on.
        seen: clips to compare on; they must share no prompt and no seed with those.
        seconds: to come to an end in, as far as each stage can; the same call goes on later.

    Raises:
        PabError: clips of both kinds share a prompt or a seed; results of other settings; too little time.
    """
    if {clip.prompt for clip in asked} & {clip.prompt for clip in seen} or {c.seed for c in asked} & {
        c.seed for c in seen
    }:
        raise PabError("A schedule is compared on clips that it was not calibrated on: give other prompts and seeds.")
    tell = on_progress or (lambda stage, done, total: None)
    started = time.monotonic()
    path, batch = folder / "recording.jsonl", next(iter(ways.values())).batch
    recording = record(pipe, asked, path, lambda done, total: tell("record", done, total), batch)
    coefficients = fit_polynomial(recording)
    note = f"fitted to {len(asked)} clips"
    family, depth = pipe.spec.family, pipe.spec.depth
    write_coefficients(folder / f"{family}-{depth}.teacache.json", family, depth, coefficients, note)

    first = next(iter(ways.values()))
    trial = Trial(pipe, asked, folder / "search.jsonl", first.batch, merge=first.merge)
    tell("costs", 0, 0)
    costs = kept_costs(trial, first)
    aims = [("time", policy) for policy in like] + [("error", like[0])]
    jobs = [(way, by, policy) for way in ways for by, policy in aims]
    searches: list[Found] = []
    unfinished: list[str] = []
    for number, (way, by, policy) in enumerate(jobs):
        part = None if seconds is None else started + SEARCH_SHARE * seconds * (number + 1) / len(jobs)
        try:
            searches.append(_search(pipe, trial, costs, asked, folder, way, ways[way], by, policy, part, tell))
        except TooLittleTime:
            unfinished.append(f"{policy} by {by}, {way}")
    if not searches:
        raise TooLittleTime("The time was too short for the first search: run it again, and it goes on.")
    predicted = {policy: _predicted(pipe, trial, policy) for policy in like}

    best = [min(same, key=lambda found: found.error) for same in _by_name(searches, "time")]
    best += [min(same, key=lambda found: found.share) for same in _by_name(searches, "error")]
    for found in best:
        save_schedule(found.schedule, folder / f"{found.name}.json")
    policies: list[str | AnyPolicy] = [*like, *(name for name in _OTHERS if name not in like)]
    policies += [found.schedule for found in best]
    savings = [1 - share_of(trial, costs, pipe.schedule(policy), first) for policy in like]
    policies += teacaches(recording, coefficients, savings, costs)
    quality = measure_quality(
        pipe,
        policies,
        seen,
        folder / "quality.jsonl",
        lpips=lpips,
        judge=judge,
        batch=first.batch,
        repeat=repeat,
        timed_clips=timed_clips,
        until=None if seconds is None else started + seconds,
        on_progress=lambda done, total: tell("clips", done, total),
    )
    return RivalsReport(quality, tuple(searches), tuple(unfinished), predicted, costs.to_json(), len(asked))


def _search(
    pipe: Pipeline,
    trial: Trial,
    costs: Costs,
    asked: Sequence[Clip],
    folder: Path,
    way: str,
    search: Search,
    by: str,
    policy: str,
    until: float | None,
    tell: OnProgress,
) -> Found:
    """Finished ones lie in files and are not searched again, whatever the time."""
    wanted = pipe.schedule(policy)
    like_share, like_error = share_of(trial, costs, wanted, search), trial.error_of(wanted)
    name = f"calibrated-{'e' if by == 'error' else ''}{policy.removeprefix('pab')}"
    path = folder / "searches" / f"{name}-{way.replace(' ', '-')}.json"
    if path.is_file():
        schedule = load_schedule(path)
        schedule.check_model(pipe.spec.family, pipe.spec.depth)
        table = pipe.schedule(schedule)
        share = share_of(trial, costs, table, search)
        return Found(policy, by, way, share, trial.error_of(table), like_share, like_error, schedule)
    aim = Aim(like=policy) if by == "time" else Aim(error_like=policy)
    made = calibrate(pipe, asked, folder, aim, search, name=name, until=until, on_progress=tell)
    if until is None or time.monotonic() < until:
        save_schedule(made.schedule, path)
    return Found(policy, by, way, made.share, made.error, like_share, like_error, made.schedule)


def _predicted(pipe: Pipeline, trial: Trial, policy: str) -> dict[str, float]:
    return {name: trial.error_of(pipe.schedule(f"{policy}+{name}")) for name in HISTORY}


def _by_name(searches: Sequence[Found], by: str) -> list[list[Found]]:
    names = dict.fromkeys(found.name for found in searches if found.by == by)
    return [[found for found in searches if found.name == name] for name in names]


def teacaches(
    recording: Recording, coefficients: tuple[float, ...], savings: Sequence[float], costs: Costs
) -> list[AnyPolicy]:
    """TeaCache with the threshold at which it saves each of these shares of the time, or a little less."""
    reusable = 1 - costs.rest / costs.whole
    found: dict[str, AnyPolicy] = {}
    for saving in savings:
        threshold = threshold_for(recording, coefficients, saving / reusable)
        if threshold is not None:
            name = f"teacache{threshold:.4g}"
            found[name] = TeaCache(threshold, coefficients, name)
    return list(found.values())


def threshold_for(recording: Recording, coefficients: tuple[float, ...], reused: float) -> float | None:
    """The largest threshold at which TeaCache would reuse at most this share of the recorded clips' steps.

    By the recorded changes, which reuse itself alters a little. None where there is none.
    """
    low, high = 1e-6, 50.0
    reused += 1e-9  # rounding must not cost a step
    if reused_share(recording, coefficients, low) > reused:
        return None
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if reused_share(recording, coefficients, middle) <= reused else (low, middle)
    return float(f"{low:.4g}")


def reused_share(recording: Recording, coefficients: tuple[float, ...], threshold: float) -> float:
    """Of the recorded clips' steps, if TeaCache decided by the recorded changes; see teacache.TeaCacheDecision."""
    reused = 0
    for signal in recording.signal:
        total = 0.0
        for change in signal[:-1]:  # the last step is always computed
            total += polynomial(coefficients, change)
            if total < threshold:
                reused += 1
            else:
                total = 0.0
    return reused / (len(recording.signal) * len(recording.timesteps))
