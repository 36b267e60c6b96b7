"""Recording how updates change, fitting TeaCache to it, and the search for a schedule."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from pab_core.broadcast import ScheduleTable, find_policy, resolve
from pab_core.broadcast.schedule_file import load_schedule, save_schedule, stretched
from pab_core.broadcast.teacache import polynomial
from pab_core.errors import PabError
from pab_core.evaluate import calibrate
from pab_core.evaluate.calibrate import Trial, calibrated_file, first_prices, make_units, remove, shift
from pab_core.evaluate.candidates import Candidate, digest
from pab_core.evaluate.costs import Costs, by_difference, find_costs, measure_costs
from pab_core.evaluate.flops import count_call
from pab_core.evaluate.generation import Clip, make_latents
from pab_core.evaluate.recording import (
    Recording,
    draw_recording,
    fit_polynomial,
    record,
    save_recording,
    stable_window,
)
from pab_core.models.layers import Branch
from pab_core.models.registry import model_spec
from pab_core.models.stdit3 import STDiT3Config, stdit3_branches
from pab_core.pipeline import Pipeline

CLIPS = [Clip("a red ball rolls left", 1), Clip("a blue cube spins around", 2)]


# Recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Recording:
    return record(Pipeline.load(folder, device="cpu"), CLIPS, tmp_path_factory.mktemp("record") / "a.jsonl")


def test_a_recording_holds_every_change(pipe: Pipeline, recording: Recording, tmp_path: Path):
    table = pipe.schedule("off")
    assert set(recording.relative) == set(recording.squared) == set(table.branches)
    assert all(len(row) == table.steps - 1 and min(row) > 0 for row in recording.relative.values())
    assert len(recording.signal) == len(recording.whole) == len(CLIPS)
    assert len(recording.of_kind("cross")) == table.steps - 1
    start, stop = stable_window(recording)
    assert 1 <= start < stop <= table.steps
    draw_recording(recording, tmp_path / "u.png")
    assert (tmp_path / "u.png").stat().st_size > 5000
    assert '"spatial/spatial/1"' in save_recording(recording, tmp_path / "u.json").read_text(encoding="utf-8")


def test_a_recording_changes_no_bit_of_the_video_and_goes_on(pipe: Pipeline, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    path = tmp_path / "a.jsonl"
    first = record(pipe, CLIPS[:1], path, lambda done, total: seen.append((done, total)))
    before = path.read_text(encoding="utf-8")
    both = record(pipe, CLIPS, path)
    assert path.read_text(encoding="utf-8").startswith(before)
    assert both.signal[0] == first.signal[0]
    assert seen == [(0, 1), (1, 1)]
    with pytest.raises(PabError, match="other settings"):
        record(pipe, CLIPS, broken_header(path))


def broken_header(path: Path) -> Path:
    path.write_text('{"header": {}}\n', encoding="utf-8")
    return path


def test_the_polynomial_of_teacache_is_found_again():
    wanted = (3.0, -2.0, 0.5, 1.5, 0.25)
    signal = tuple(0.05 * i for i in range(1, 21))
    whole = tuple(polynomial(wanted, x) for x in signal)
    made = Recording("m", times(21), {}, {}, (signal, signal), (whole, whole))
    assert fit_polynomial(made) == pytest.approx(wanted, rel=1e-3)


def test_the_window_is_the_floor_of_the_u():
    branch = Branch("spatial", "spatial", 0)
    values = (1.0, 0.5, 0.1, 0.1, 0.2, 0.1, 0.9)
    made = Recording("m", times(8), {branch: values}, {branch: values}, (), ())
    assert stable_window(made) == (3, 7)


def test_calls_at_the_same_time_are_not_the_calmest():
    """PNDM's first calls come in pairs half a step apart."""
    branch = Branch("spatial", "spatial", 0)
    values = (0.3, 0.001, 0.05, 0.0, 0.04, 0.1, 0.1, 0.12, 0.5)
    when = (10.0, 9.5, 9.5, 9.0, 9.0, 8.5, 7.5, 6.5, 5.5, 4.5)
    made = Recording("m", when, {branch: values}, {branch: values}, (), ())
    # For whole steps: 0.6, -, 0.1, -, 0.08, 0.1, 0.1, 0.12, 0.5
    assert stable_window(made) == (3, 9)


def times(count: int) -> tuple[float, ...]:
    return tuple(1000.0 - i for i in range(count))


# Candidates


def test_units_are_kinds_streams_and_parts_of_the_depth():
    branches = stdit3_branches(5)
    assert len(make_units(branches, 1)) == 6
    units = make_units(branches, 2)
    assert [{b.block for b in unit} for unit in units[:6]] == [{0, 1, 2}] * 6
    assert sorted(b.block for unit in make_units(branches, 5) for b in unit) == sorted(b.block for b in branches)
    with pytest.raises(PabError, match="1 to 5 groups, not 6"):
        make_units(branches, 6)


def off_table(steps: int = 6) -> ScheduleTable:
    return resolve(find_policy("off", "stdit3", 1), [900.0 - i for i in range(steps)], stdit3_branches(1))


def test_a_candidate_is_a_table():
    units = make_units(stdit3_branches(1), 1)
    made = Candidate(units, 6).with_reused([(0, 1), (0, 2), (0, 4), (3, 5)])
    table = made.table(off_table())
    assert table.source[units[0][0]] == (0, 0, 0, 3, 3, 5)
    assert table.source[units[3][0]] == (0, 1, 2, 3, 4, 4)
    assert table.source[units[1][0]] == tuple(range(6))
    assert made.with_computed([(0, 2)]).reused == {(0, 1), (0, 4), (3, 5)}
    same = Candidate(make_units(stdit3_branches(1), 1, "block"), 6).with_reused([(0, 1)])
    each = Candidate(units, 6).with_reused((unit, 1) for unit in range(6))
    assert digest(same.table(off_table())) == digest(each.table(off_table())) != digest(made.table(off_table()))
    assert digest(same.table(off_table(), predictor="linear")) != digest(same.table(off_table()))


def test_the_share_of_the_time():
    units = make_units(stdit3_branches(1), 1)
    costs = Costs(dict.fromkeys(stdit3_branches(1), 1.0), 4.0)  # ten seconds a step
    assert costs.share(Candidate(units, 6)) == 1
    assert costs.share(Candidate(units, 6).with_reused([(0, 1), (1, 1), (5, 3)])) == pytest.approx(1 - 3 / 60)


def test_measured_costs_add_up_to_the_model(pipe: Pipeline):
    costs = measure_costs(pipe, CLIPS[0])
    assert set(costs.branches) == set(pipe.schedule("off").branches)
    assert min(costs.branches.values()) > 0
    assert costs.rest >= 0


def test_costs_by_what_a_run_saves(pipe: Pipeline):
    costs = by_difference(pipe, CLIPS)
    assert set(costs.branches) == set(pipe.schedule("off").branches)
    assert min(costs.branches.values()) > 0
    assert costs.rest >= 0


def test_costs_of_reuse_that_is_merged_and_predicted(pipe: Pipeline):
    costs = by_difference(pipe, CLIPS, "linear", merge=True)
    assert set(costs.branches) == set(pipe.schedule("off").branches)
    assert min(costs.branches.values()) > 0


def test_costs_of_the_released_model_for_one_of_its_kind(pipe: Pipeline):
    own, released = (find_costs(pipe, by, CLIPS) for by in ("flops", "open-sora"))
    call = count_call(model_spec("open-sora"), STDiT3Config(), 12)
    for costs in (own, released):
        assert costs.whole == pytest.approx(1)
        assert set(costs.branches) == set(pipe.schedule("off").branches)
    mlp = sum(flops.total for branch, flops in call.branches.items() if branch.kind == "mlp")
    found = sum(cost for branch, cost in released.branches.items() if branch.kind == "mlp")
    assert found == pytest.approx(mlp / call.total, rel=0.01)
    again = Costs.from_json(released.to_json(), list(released.branches))
    assert again.branches == pytest.approx(released.branches)
    assert released.share(pipe.schedule("off")) == 1
    assert released.share(pipe.schedule("pab246")) < 1


# Searching


class Additive:
    """A trial whose error is the root of a sum over cells, but for one step at which all units together err less."""

    def __init__(self, steps: int, together: int | None = None):
        self.off = off_table(steps)
        self.units = make_units(stdit3_branches(1), 1)
        self.together = together
        self.asked = 0

    def knows(self, candidate: Candidate) -> bool:
        return False

    def error(self, candidate: Candidate) -> float:
        self.asked += 1
        total = 0.0
        for step in range(1, candidate.steps):
            reused = [unit for unit in range(len(self.units)) if (unit, step) in candidate.reused]
            if step == self.together and len(reused) == len(self.units):
                total += 0.01
            else:
                total += sum((1 + unit) * (candidate.steps - step) for unit in reused)
        return total**0.5


def test_the_cheapest_is_removed_first():
    trial: Any = Additive(6)
    costs = Costs(dict.fromkeys(stdit3_branches(1), 1.0), 4.0)
    found = remove(trial, costs, trial.units, share=1 - 3 / 60)
    # Prices by hand: (1 + unit) * (6 - step); of those, 1, 2 and 2 are the lowest.
    assert found.reused == {(0, 5), (1, 5), (0, 4)}
    told: list[tuple[float, float]] = []
    found = remove(trial, costs, trial.units, error=3.0, on_progress=lambda share, error: told.append((share, error)))
    assert trial.error(found) <= 3.0
    assert [round(error**2) for _, error in told] == [1, 3, 5, 8]
    assert all(a > b for (a, _), (b, _) in pairwise(told))


def test_what_is_good_only_together_is_found():
    trial: Any = Additive(6, together=2)
    costs = Costs(dict.fromkeys(stdit3_branches(1), 1.0), 4.0)
    found = remove(trial, costs, trial.units, share=1 - 6 / 60)
    assert found.reused == {(unit, 2) for unit in range(6)}


def test_a_search_has_one_aim_that_can_be_reached():
    trial: Any = Additive(6)
    costs = Costs(dict.fromkeys(stdit3_branches(1), 1.0), 4.0)
    with pytest.raises(PabError, match="either the wanted share"):
        remove(trial, costs, trial.units)
    with pytest.raises(PabError, match="No schedule of this model takes 10%"):
        remove(trial, costs, trial.units, share=0.1)


def test_shifting_lowers_the_error_at_the_same_cost():
    trial: Any = Additive(6)
    costs = Costs(dict.fromkeys(stdit3_branches(1), 1.0), 4.0)
    start = Candidate(trial.units, 6).with_reused([(0, 1)])
    found = shift(trial, costs, start, rounds=5)
    assert found.reused == {(0, 5)}
    assert costs.share(found) == costs.share(start)


def test_few_removals_are_judged_before_the_search_begins():
    class Smooth(Additive):
        """Prices that are smooth in the step, and everything together cheaper than any unit."""

        def error(self, candidate: Candidate) -> float:
            self.asked += 1
            units = len(self.units)
            every = [[unit for unit in range(units) if (unit, step) in candidate.reused] for step in range(30)]
            return (
                sum(
                    (1 + abs(step - 18)) * (1 if len(found) == units else sum(2 + unit for unit in found))
                    for step, found in enumerate(every)
                )
                ** 0.5
            )

    trial: Any = Smooth(30)
    costs = Costs(dict.fromkeys(stdit3_branches(1), 1.0), 4.0)
    prices = first_prices(trial, costs, trial.units)
    units = len(trial.units)
    assert len(prices) == 29 * (units + 1)
    assert trial.asked == 29 + units * 7  # everything at every step; each unit at steps 1, 6, 11, 16, 21, 26 and 29
    for (unit, step), price in ((move[0], price) for move, price in prices.items() if len(move) == 1):
        real = (1 + abs(step - 18)) * (2 + unit) * 300
        assert 0.3 * real < price <= 1.001 * real
    # None of the units is ever the best, so none is judged again.
    found = remove(trial, costs, trial.units, share=0.8)
    reused = {step for _, step in found.reused}
    assert set(range(14, 23)) < reused < set(range(13, 24))
    assert found.reused == {(unit, step) for unit in range(units) for step in reused}


def test_a_search_on_a_model_and_again_after_an_interruption(pipe: Pipeline, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    trial = Trial(pipe, CLIPS, path)
    costs = Costs(
        dict.fromkeys(trial.off.branches, 1.0), 0.0
    )  # whatever the machine: the tiny model is mostly the rest
    units = make_units(trial.off.branches, 1)
    found = remove(trial, costs, units, share=0.9)
    assert costs.share(found) <= 0.9
    assert trial.judged > 30
    # Better than as much reuse at the first steps.
    early = Candidate(units, trial.off.steps)
    for step in range(1, trial.off.steps):
        if costs.share(early) > costs.share(found):
            early = early.with_reused((unit, step) for unit in range(len(units)))
    assert trial.error(found) < 0.5 * trial.error(early)

    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-5]) + lines[-5][:10], encoding="utf-8")
    again = Trial(pipe, CLIPS, path)
    assert remove(again, costs, units, share=0.9) == found
    assert again.judged <= 6

    file = load_schedule(save_schedule(calibrated_file(pipe, found, "mine", "a test"), tmp_path / "mine.json"))
    table = pipe.schedule(file)
    assert dict(table.source) == dict(found.table(trial.off).source)
    latents, _ = make_latents(pipe, CLIPS, table)
    assert torch.isfinite(latents).all()
    assert pipe.schedule(file, steps=7).reused_share() > 0


def test_an_error_is_relative_to_the_video_without_reuse(pipe: Pipeline, tmp_path: Path):
    trial = Trial(pipe, CLIPS, tmp_path / "a.jsonl", batch=1)
    units = make_units(trial.off.branches, 1)
    plain = Candidate(units, trial.off.steps)
    assert trial.error(plain) == 0
    moved = plain.with_reused([(0, 5)])
    off, made = (make_latents(pipe, CLIPS, table)[0] for table in (trial.off, moved.table(trial.off)))
    shares = (made - off).flatten(1).norm(dim=1) / off.flatten(1).norm(dim=1)
    assert trial.error(moved) == pytest.approx(shares.square().mean().sqrt().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("steps", "row"),
    [
        (6, (0, 1, 1, 3, 3, 3)),
        (12, (0, 1, 2, 3, 3, 3, 6, 7, 7, 7, 7, 7)),
        (3, (0, 1, 1)),
        (2, (0, 1)),
    ],
)
def test_a_schedule_stretches_to_other_lengths(steps: int, row: tuple[int, ...]):
    assert stretched((0, 1, 1, 3, 3, 3), steps) == row


# Numbers that are none


def test_a_schedule_that_makes_no_numbers_is_the_worst(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.jsonl"
    trial = Trial(pipe, CLIPS[:1], path)
    candidate = Candidate(make_units(trial.off.branches, 1), trial.off.steps).with_reused([(0, 3)])
    real = calibrate.make_latents

    def broken(pipe: Pipeline, clips: Any, table: ScheduleTable, **more: Any) -> Any:
        latents, run = real(pipe, clips, table, **more)
        return (latents * math.nan if table.reused_share() else latents), run

    monkeypatch.setattr(calibrate, "make_latents", broken)
    assert trial.error(candidate) == math.inf
    assert "NaN" not in path.read_text(encoding="utf-8")
    assert Trial(pipe, CLIPS[:1], path).error(candidate) == math.inf


def test_a_model_that_makes_no_numbers_is_not_calibrated(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(calibrate, "make_latents", lambda *_, **__: (torch.full((1, 4), math.nan), None))
    trial = Trial(pipe, CLIPS[:1], tmp_path / "a.jsonl")
    with pytest.raises(PabError, match="are no numbers"):
        trial.error_of(pipe.schedule("pab246"))
    branch = Branch("spatial", "spatial", 0)
    values = (1.0, math.nan, 0.1)
    with pytest.raises(PabError, match="are not all numbers"):
        stable_window(Recording("m", times(4), {branch: values}, {branch: values}, (), ()))
