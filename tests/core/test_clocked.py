"""Schedules by the clock: how many steps fit into a time, and what is timed is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pab_core.broadcast import ScheduleTable
from pab_core.errors import PabError
from pab_core.evaluate import clocked
from pab_core.evaluate.calibrate import TooLittleTime, Trial, make_units
from pab_core.evaluate.candidates import Candidate, computing
from pab_core.evaluate.generation import Clip
from pab_core.pipeline import Pipeline

CLIPS = [Clip("a red ball rolls left", 1), Clip("a blue cube spins around", 2)]


def by_reuse(_: Trial, tables: list[ScheduleTable], clips: int) -> list[float]:
    """A clock by which a reused step takes a fifth of a computed one's time."""
    return [0.2 + 0.8 * (1 - table.reused_share()) for table in tables]


@pytest.mark.parametrize(("share", "count"), [(0.62, 5), (0.6001, 5), (0.59, 4), (0.95, 9), (0.29, 1), (1.2, 9)])
def test_as_many_computed_steps_as_the_time_is_enough_for(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, count: int
):
    trial = Trial(pipe, CLIPS, tmp_path / "a.jsonl", merge=True)
    units = make_units(pipe.spec.branches, 1, "model")
    monkeypatch.setattr(clocked, "timed_shares", by_reuse)
    assert clocked.computed_in(trial, units, share, "linear", 2) == (count, pytest.approx(0.2 + 0.08 * count))


def test_a_clock_that_bends_is_followed(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where time is not in proportion to the computed steps, the first guess is wrong."""
    trial = Trial(pipe, CLIPS, tmp_path / "a.jsonl", merge=True)
    units = make_units(pipe.spec.branches, 1, "model")
    for power in (0.3, 3):
        monkeypatch.setattr(
            clocked, "timed_shares", lambda _, tables, n, power=power: [(1 - t.reused_share()) ** power for t in tables]
        )
        for count in (2, 4, 8):
            assert clocked.computed_in(trial, units, (count / 10) ** power + 1e-9, "linear", 2)[0] == count
    with pytest.raises(PabError, match="No schedule of this model takes 0%"):
        clocked.computed_in(trial, units, 1e-6, "linear", 2)
    with pytest.raises(TooLittleTime, match="how many steps fit in"):
        clocked.computed_in(trial, units, 0.02, "linear", 2, until=0.0)


def test_a_disturbed_reading_does_not_lead_away_from_what_fits(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trial = Trial(pipe, CLIPS, tmp_path / "a.jsonl", merge=True)
    units = make_units(pipe.spec.branches, 1, "model")

    told = {5: 0.6, 6: 0.9, 7: 0.67, 8: 0.84}  # from 6 the search sets out

    def clock(_: Trial, tables: list[ScheduleTable], clips: int) -> list[float]:
        return [told[round(10 * (1 - table.reused_share()))] for table in tables]

    monkeypatch.setattr(clocked, "timed_shares", clock)
    assert clocked.computed_in(trial, units, 0.7, "linear", 2) == (7, 0.67)


def test_times_are_kept_with_what_was_judged(pipe: Pipeline, tmp_path: Path):
    trial, tables = Trial(pipe, CLIPS, tmp_path / "a.jsonl"), [pipe.schedule("pab246"), pipe.schedule("pab999")]
    first = clocked.timed_shares(trial, tables[:1], 3)
    assert 0 < first[0] < 2
    both = clocked.timed_shares(Trial(pipe, CLIPS, tmp_path / "a.jsonl"), tables, 3)
    assert both[0] == first[0]
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8").count('"timed"') == 2


def test_a_schedule_is_searched_again_until_the_clock_agrees(pipe: Pipeline, tmp_path: Path, monkeypatch: Any):
    trial = Trial(pipe, CLIPS, tmp_path / "a.jsonl")
    units = make_units(pipe.spec.branches, 1, "model")
    made = {count: computing(units, trial.off.steps, range(count)) for count in range(1, trial.off.steps + 1)}
    # By the clock a step costs less than the costs say.
    monkeypatch.setattr(clocked, "timed_shares", by_reuse)
    asked: list[float] = []

    def find(share: float) -> Candidate:
        asked.append(share)
        return made[int(share * trial.off.steps)]

    best, took = clocked.at_time(trial, made[6], 0.6, find, 2)
    assert took == pytest.approx(0.6)
    assert best == made[5]
    assert len(asked) <= 3
    # Nothing fits: the fastest that was found.
    best, took = clocked.at_time(trial, made[6], 0.1, lambda share: made[2], 2)
    assert best == made[2]
    assert took == pytest.approx(0.36)
