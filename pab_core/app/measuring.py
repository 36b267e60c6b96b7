"""A small measurement of speed against quality on the machine that the studio runs on: the chart of Explore.

It is a job like any other, so it waits its turn, shows how far it is and can be cancelled within a step. What comes of
it is a report as `pab bench quality` writes it, of fewer clips, each timed once; rivals of fewer steps are not timed
but counted, a step being as long as another.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import PabError
from ..evaluate.machine import describe_machine
from ..evaluate.quality import QualityReport, QualityRow, fewer_steps
from ..evaluate.results import write_report
from ..settings import schedule_for
from .comparing import compare_frames
from .jobs import Job, Report
from .making import follow
from .models import Offered
from .offering import calibrated_levels
from .rendering import Renderer
from .request import LEVELS, Clip
from .settings import StudioSettings, not_kept

CLIPS = 3  # prompts that each policy makes


def measured_policies(offered: Offered) -> tuple[str, ...]:
    """Those that a model has, of every prompt in this order; the rivals of fewer steps come last."""
    return ("off", *LEVELS, *calibrated_levels(offered))


def most_videos(offered: Offered) -> int:
    """That a measurement makes, where each policy has a rival of its own."""
    return CLIPS * (2 * len(measured_policies(offered)) - 1)


class Measurer:
    """Makes the clips of a measurement, which are not kept, and writes its report."""

    def __init__(self, settings: StudioSettings, renderer: Renderer):
        self._settings = settings
        self._renderer = renderer

    def __call__(self, job: Job, report: Report) -> None:
        self._settings.check_space()
        made = _Made(report, self._renderer, job)
        self._renderer.warm_up(job.clips[0], job.cancelled, follow(job.clips[0], report))
        # The prompts take turns, so that a machine that warms up or throttles favours no policy.
        for clip in job.clips:
            made.add(clip)
        rivals = {name: _rival(job.clips[0], made.share_of_time(name)) for name in made.policies}
        prompts = job.clips[:: len(job.clips) // CLIPS]
        last = [_with_policy(clip, name) for name in dict.fromkeys(filter(None, rivals.values())) for clip in prompts]
        made.total = len(job.clips) + len(last)
        for clip in last:
            made.add(clip)
        rows = tuple(made.row(name, rivals.get(name)) for name in made.seconds)
        report(stage="write", preview=None)
        spec = job.clips[0].offered.spec
        header = {
            "model": spec.name,
            "weights": "trained" if spec.trained else "random",
            "steps": spec.steps,
            "machine": self._machine(),
        }
        folder = folder_of(self._settings, spec.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_report(folder, "quality", QualityReport(header, CLIPS, rows))
        except OSError as error:
            raise PabError(not_kept("The measurement", error)) from None

    def _machine(self) -> dict[str, Any]:
        """Nothing here touches a GPU: it may be that of a worker."""
        rows = self._renderer.status()["workers"]
        names = dict.fromkeys(row["name"] or row["device"] for row in rows)
        found = describe_machine("cpu")
        return {**found, "device": f"{len(rows)} x {', '.join(names)}" if len(rows) > 1 else ", ".join(names)}


def folder_of(settings: StudioSettings, model: str) -> Path:
    """Where the report of a model goes: among those that Explore looks through."""
    return settings.bench / f"{model}-studio"


class _Made:
    """What was measured so far. `seconds`: policy -> of the denoising of each prompt, off's first."""

    def __init__(self, report: Report, renderer: Renderer, job: Job):
        self.seconds: dict[str, list[float]] = {}
        self._values: dict[str, list[Mapping[str, float | bool]]] = {}
        self._reused: dict[str, float] = {}
        self._calls: dict[str, int] = {}  # of the model
        self._references: dict[str, Tensor] = {}  # prompt -> frames without reuse
        self._report = report
        self._renderer = renderer
        self._job = job
        # As many rivals as policies at the most: some may turn out to be the same, or to save nothing.
        self.total = 2 * len(job.clips) - CLIPS

    @property
    def policies(self) -> list[str]:
        return list(dict.fromkeys(clip.table.policy for clip in self._job.clips if clip.table.policy != "off"))

    def add(self, clip: Clip) -> None:
        index = sum(len(row) for row in self.seconds.values())
        past = [seconds for row in self.seconds.values() for seconds in row]

        def tell(**changes: Any) -> None:
            left = changes.get("seconds_left")
            if left is not None:  # of this clip; those after it are as long as those before
                after = self.total - index - 1
                changes["seconds_left"] = left + statistics.fmean(past) * after if past else None
            self._report(**{**changes, "clip": index, "clips": self.total})

        tell(stage="denoise", done=0, total=clip.table.steps, seconds_left=None)
        made, _ = self._renderer.render(clip, self._job.cancelled, follow(clip, tell))
        name = clip.table.policy
        self.seconds.setdefault(name, []).append(made.seconds["denoise"])
        self._reused[name], self._calls[name] = made.table.reused_share(), made.table.steps
        if name == "off":
            self._references[clip.prompt] = made.frames
            return
        tell(stage="measure", preview=None, seconds_left=None)
        found = compare_frames(made.frames, self._references[clip.prompt])
        found.pop("identical")
        self._values.setdefault(name, []).append(found)

    def share_of_time(self, name: str) -> float:
        """Of off's; prompt by prompt, since a machine is not as fast at one time as at another."""
        return statistics.median(own / off for own, off in zip(self.seconds[name], self.seconds["off"], strict=True))

    def row(self, name: str, rival: str | None) -> QualityRow:
        rows: Sequence[Mapping[str, float | bool]] = self._values.get(name, [])
        # A metric that one clip lacks, as too small for its window, is told of none.
        metrics = [metric for metric in (rows[0] if rows else {}) if all(metric in row for row in rows)]
        values = {metric: tuple(float(row[metric]) for row in rows) for metric in metrics}
        # Fewer steps, of which each is one of off's, are made later than that: they are counted and not timed.
        share = self.share_of_time(name) if name in (*self.policies, "off") else self._calls[name] / self._calls["off"]
        seconds = statistics.median(self.seconds["off"]) * share
        return QualityRow(name, seconds, 1 / share, self._reused[name], values, rival)


def _rival(clip: Clip, share_of_time: float) -> str | None:
    """The policy of plainly fewer steps that takes as long."""
    spec = clip.offered.spec

    def calls(steps: int) -> int:
        try:
            return schedule_for(spec, "off", clip.offered.sampler, steps).steps
        except PabError:  # some samplers make no run of so few
            return 0

    return fewer_steps(share_of_time, spec.steps, calls)


def _with_policy(clip: Clip, name: str) -> Clip:
    size = clip.num_frames, clip.height, clip.width
    table = schedule_for(clip.offered.spec, name, clip.offered.sampler, clip.steps, *size)
    return replace(clip, policy=name, table=table)  # pyright: ignore[reportArgumentType] - by its name
