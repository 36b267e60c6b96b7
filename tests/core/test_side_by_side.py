"""Many schedules in one run: each gives what it gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_acceleration import CONFIGS, tiny

from pab_core.broadcast import ScheduleTable
from pab_core.broadcast.teacache import TeaCache
from pab_core.evaluate.calibrate import Candidate, Trial, make_units
from pab_core.evaluate.generation import Clip, make_latents
from pab_core.evaluate.quality import measure_quality
from pab_core.evaluate.side_by_side import can_run_beside, make_beside
from pab_core.pipeline import Pipeline

CLIPS = [Clip("a red ball rolls left", 1), Clip("a blue cube", 2), Clip("a cone spins in the sunset", 3)]


def made_alone(pipe: Pipeline, table: ScheduleTable) -> torch.Tensor:
    if table.decide is None:
        return make_latents(pipe, CLIPS, table)[0]
    return torch.cat([make_latents(pipe, [clip], table)[0] for clip in CLIPS])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def check(pipe: Pipeline, names: list[Any]) -> None:
    tables = [pipe.schedule(name) for name in names]
    off = pipe.schedule("off")
    assert all(can_run_beside(table, off) for table in tables)
    plain = made_alone(pipe, off)
    for table, (latents, runs) in zip(tables, make_beside(pipe, CLIPS, tables), strict=True):
        alone = made_alone(pipe, table)
        assert distance(latents, alone) < 1e-5, table.policy
        # It is another video than without reuse, by more than that.
        if table.policy != "off":
            assert distance(latents, plain) > 1e-4, table.policy
        assert len(runs) == (len(CLIPS) if table.decide is not None else 1)
        assert all(run.taken.reused_share() > 0 for run in runs) == (table.policy != "off")
        if table.decide is None and table.predictor != "gate":
            assert all(run.kept_bytes == 0 for run in runs)


def test_each_is_as_alone(pipe: Pipeline):
    check(pipe, ["off", "pab246", "pab246+linear", "pab357+taylor", "pab246+gate", "delta-dit", TeaCache(0.3, (1, 0))])


@pytest.mark.parametrize("family", CONFIGS)
def test_of_every_family(family: str):
    pipe = tiny(family)
    given = torch.Generator().manual_seed(0)
    tokens = {clip.prompt: torch.randn(2, 1, 5, 16, generator=given) for clip in CLIPS}

    class Encoder:
        def encode_batch(self, prompts: list[str], negative: str | None) -> Any:
            from pab_core.text import TextEmbedding

            rows = torch.cat([tokens[prompt] for prompt in prompts], dim=1)
            return TextEmbedding(rows[0], torch.ones(rows.shape[1:3], dtype=torch.bool), negative=rows[1])

    pipe.text_encoder = type("Text", (), {"encoder": Encoder()})()  # pyright: ignore[reportAttributeAccessIssue]
    check(pipe, ["off", "pab234", "pab234+gate", TeaCache(0.3, (1, 0))])


def test_what_makes_other_steps_or_reuses_scores_runs_alone(pipe: Pipeline):
    off = pipe.schedule("off")
    assert not any(can_run_beside(pipe.schedule(name), off) for name in ("steps9", "scores246"))


def test_a_trial_judges_many_at_once(pipe: Pipeline, tmp_path: Path):
    units = make_units(pipe.spec.branches, 1)
    asked = [Candidate(units, pipe.spec.steps).with_reused([(unit, 9)]) for unit in range(len(units))]
    alone = Trial(pipe, CLIPS, tmp_path / "a.jsonl", batch=2, predictor="linear")
    beside = Trial(pipe, CLIPS, tmp_path / "b.jsonl", batch=2, predictor="linear", beside=4)
    assert beside.errors([*asked, asked[0]]) == pytest.approx(alone.errors([*asked, asked[0]]), rel=0.01)
    assert alone.judged == beside.judged == len(asked)
    assert len(set(alone.known.values())) == len(asked)


def test_quality_is_the_same(pipe: Pipeline, tmp_path: Path):
    policies = ["pab246", "pab357", "steps7", TeaCache(0.3, (1, 0))]
    reports = [
        measure_quality(pipe, policies, CLIPS, tmp_path / f"{n}.jsonl", lpips=None, batch=2, beside=n, repeat=1)
        for n in (1, 3)
    ]
    for name in ("pab246", "pab357", "steps7", "teacache"):
        one, other = (report.row(name) for report in reports)
        assert other.values["psnr"] == pytest.approx(one.values["psnr"], abs=0.2), name
        assert other.reused == pytest.approx(one.reused)
    assert len(set(reports[0].row("pab246").values["psnr"])) == len(CLIPS)
