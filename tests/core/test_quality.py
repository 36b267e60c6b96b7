"""Policies compared over prompts and seeds: pairs, rivals of equal time, and results that survive an interruption."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import write_tiny_plan
from torch import Tensor

from pab_core.broadcast.teacache import TeaCache
from pab_core.errors import PabError
from pab_core.evaluate import quality
from pab_core.evaluate.costs import by_difference
from pab_core.evaluate.generation import Clip, make_latents, make_videos
from pab_core.evaluate.lpips import Lpips
from pab_core.evaluate.quality import fewer_steps, measure_quality
from pab_core.evaluate.quality_report import QualityReport, draw_quality
from pab_core.pipeline import Pipeline

CLIPS = [Clip(prompt, seed) for prompt in ("a red ball rolls left", "a blue cube spins") for seed in (1, 2)]


def random_lpips() -> Lpips:
    torch.manual_seed(0)
    made = Lpips()
    for weight in made.weights:
        weight.uniform_()
    return made


def measured(pipe: Pipeline, path: Path, **more: Any) -> QualityReport:
    given: dict[str, Any] = {"lpips": None, "batch": 3, "repeat": 1} | more
    return measure_quality(pipe, ["pab246", "steps8"], CLIPS, path, **given)


def test_clips_made_together_are_those_made_alone(pipe: Pipeline):
    table = pipe.schedule("pab246")
    together, _ = make_latents(pipe, CLIPS, table)
    for i, clip in enumerate(CLIPS):
        torch.testing.assert_close(together[i], make_latents(pipe, [clip], table)[0][0], rtol=1e-3, atol=1e-4)


def test_a_run_that_decides_itself_decides_of_each_clip(pipe: Pipeline):
    videos, reused = make_videos(pipe, CLIPS[:2], pipe.schedule(TeaCache(50, (1e-9, 0.0))))
    assert len(videos) == 2
    assert reused == pytest.approx([0.8, 0.8])


def test_a_report(pipe: Pipeline, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    report = measured(
        pipe,
        tmp_path / "a.jsonl",
        lpips=random_lpips(),
        judge=lambda videos, prompts: [0.5] * len(videos),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    names = [row.policy for row in report.rows]
    assert names[:3] == ["off", "pab246", "steps8"]
    assert seen[-1] == (len(names) * len(CLIPS), len(names) * len(CLIPS))
    off, pab = report.row("off"), report.row("pab246")
    assert list(off.values) == ["adherence"]
    assert list(pab.values) == ["psnr", "ssim", "lpips", "adherence"]
    assert len(pab.values["lpips"]) == len(CLIPS)
    assert pab.reused == pytest.approx(pipe.schedule("pab246").reused_share())
    assert report.row("steps8").reused == 0
    told = json.loads(json.dumps(report.to_json()))
    assert [row["policy"] for row in told["policies"]] == names
    markdown = report.to_markdown()
    assert markdown.count("\n") == 4 + len(names)
    assert "clips; device cpu, processor" in markdown
    assert "| pab246 |" in markdown
    draw_quality(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_the_rival_has_the_same_clips(pipe: Pipeline, tmp_path: Path):
    report = measured(pipe, tmp_path / "a.jsonl")
    for row in report.rows:
        against = report.against_rival(row, "psnr")
        if row.rival is None:
            assert against is None
            continue
        assert against is not None
        theirs = report.row(row.rival).values["psnr"]
        expected = [a - b for a, b in zip(row.values["psnr"], theirs, strict=True)]
        assert against.mean == pytest.approx(sum(expected) / len(expected))


@pytest.mark.parametrize(
    ("share", "steps", "name"), [(0.5, 30, "steps15"), (0.51, 30, "steps16"), (0.99, 30, None), (1.2, 30, None)]
)
def test_the_rival_takes_at_least_as_long(share: float, steps: int, name: str | None):
    assert fewer_steps(share, steps) == name


def test_an_interrupted_measurement_goes_on(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.jsonl"

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 6:
            raise Stop

    with pytest.raises(Stop):
        measured(pipe, path, on_progress=stop)
    before = path.read_text(encoding="utf-8")
    path.write_text(before + '{"policy": "pab246", "pro', encoding="utf-8")  # cut off while it was written

    made: list[str] = []
    real = quality.make_videos

    def counted(pipe: Pipeline, clips: Any, table: Any, **more: Any) -> Any:
        made.append(table.policy)
        return real(pipe, clips, table, **more)

    monkeypatch.setattr(quality, "make_videos", counted)
    report = measured(pipe, path)
    assert path.read_text(encoding="utf-8").startswith(before)
    first = len(made)
    assert 0 < first < 2 * len(report.rows)
    again = measured(pipe, path)
    assert len(made) == first
    assert again == report


def test_results_of_other_settings_are_not_mixed(pipe: Pipeline, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"header": {"model": "other"}}\n', encoding="utf-8")
    with pytest.raises(PabError, match="holds results of other settings"):
        measured(pipe, path)


def test_latents_that_are_not_numbers_are_reported(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = quality.make_videos

    def broken(pipe: Pipeline, clips: Any, table: Any, **more: Any) -> tuple[list[Tensor | None], list[float]]:
        videos, reused = real(pipe, clips, table, **more)
        if table.policy == "pab246":
            videos[0] = None
        return videos, reused

    monkeypatch.setattr(quality, "make_videos", broken)
    report = measured(pipe, tmp_path / "a.jsonl")
    row = report.row("pab246")
    assert math.isnan(row.summary("psnr").mean)
    assert "NaN in 2 of 4" in report.to_markdown()


def test_make_videos_tells_latents_that_are_not_numbers(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Pipeline, "denoise", nan_denoise(Pipeline.denoise))
    videos, _ = make_videos(pipe, CLIPS[:2], pipe.schedule("off"))
    assert videos[0] is None
    assert videos[1] is not None


def nan_denoise(real: Any) -> Any:
    def denoise(self: Pipeline, *args: Any, **more: Any) -> Tensor:
        latents = real(self, *args, **more)
        latents[0, 0, 0, 0, 0] = math.nan
        return latents

    return denoise


def test_a_sampler_that_makes_no_short_runs_and_more_calls_than_steps(tmp_path: Path):
    pipe = Pipeline.load(write_tiny_plan(tmp_path / "plan"), device="cpu")
    report = measure_quality(pipe, ["pab246"], CLIPS[:1], tmp_path / "a.jsonl", lpips=None, repeat=1)
    assert [row.policy for row in report.rows][:2] == ["off", "pab246"]
    calls = {steps: 0 if steps < 4 else steps + 9 for steps in range(1, 31)}
    assert fewer_steps(0.7, 30, calls.__getitem__) == "steps19"
    assert fewer_steps(0.01, 30, calls.__getitem__) == "steps4"
    assert set(by_difference(pipe, CLIPS[:1]).branches) == set(pipe.schedule("off").branches)


def test_what_decides_in_the_run_is_timed_by_what_it_reuses(pipe: Pipeline, tmp_path: Path):
    policy = TeaCache(50, (1e-9, 0.0))
    report = measure_quality(pipe, [policy], CLIPS[:2], tmp_path / "a.jsonl", lpips=None, repeat=1)
    line = json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert line["reused"]["teacache"] == pytest.approx(0.8)
    assert report.row("teacache").seconds == pytest.approx(line["seconds"]["teacache"])
