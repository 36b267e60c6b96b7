"""The studio's own measurement of speed against quality, its warm-up, and the prompts that it offers."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_families import WRITERS

from pab_core.app import measuring, service
from pab_core.app.comparing import compare_frames
from pab_core.app.ideas import measured_prompts, new_idea
from pab_core.app.jobs import View
from pab_core.app.measuring import CLIPS, folder_of, most_videos
from pab_core.app.reports import find_quality
from pab_core.app.request import ClipRequest
from pab_core.app.service import Studio
from pab_core.app.settings import StudioSettings
from pab_core.app.stage import describe_stage
from pab_core.broadcast.calibrated import own_path
from pab_core.demo.captions import COLOURS, NOUNS
from pab_core.errors import PabError
from pab_core.models.registry import MODELS
from pab_core.pipeline import Pipeline


def open_studio(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Studio:
    monkeypatch.setenv("PAB_MODELS", str(data / "none"))
    return Studio(StudioSettings(data, (str(folder),), **{"device": "cpu", **settings}))


@pytest.fixture
def studio(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    made = open_studio(folder, tmp_path, monkeypatch)
    yield made
    made.close()


def wait(
    studio: Studio, job: str, true: Callable[[View], bool] = lambda view: view.ended, seconds: float = 240
) -> View:
    end = time.monotonic() + seconds
    while not true(view := studio.queue.view(job, "")):
        assert not view.ended, view
        assert time.monotonic() < end, view
        time.sleep(0.005)
    return view


@pytest.mark.parametrize("devices", [None, "cpu"])
def test_a_measurement_becomes_the_chart(
    folder: Path, pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: str | None
):
    studio = open_studio(folder, tmp_path, monkeypatch, device=None if devices else "cpu", devices=devices)
    try:
        told: set[str] = set()
        job = studio.measure("tiny", "", "visitor")
        view = wait(studio, job, lambda view: told.add(describe_stage(view, "en")) or view.ended)
        assert view.error == ""
        assert view.state == "done"
        found = find_quality([tmp_path / "bench"], "tiny")
        assert found is not None
        assert found.clips == CLIPS
        assert found.machine["device"] == "cpu"
        names = [point.policy for point in found.points]
        assert names[:3] == ["pab246", "pab357", "pab579"]
        assert all(name.startswith("steps") for name in names[3:])
        assert all(point.speedup > 0 and point.distance > 0 for point in found.points)
        for point in found.points[3:]:
            assert point.speedup == pytest.approx(pipe.spec.steps / int(point.policy.removeprefix("steps")), rel=1e-3)
        prompts = enumerate(measured_prompts(pipe.spec, CLIPS), start=1)
        alone = [
            [pipe.generate(prompt, policy=policy, seed=seed).frames for policy in ("pab246", "off")]
            for seed, prompt in prompts
        ]
        distances = [compare_frames(*frames)[found.metric] for frames in alone]
        assert found.points[0].distance == pytest.approx(statistics.fmean(distances), rel=0.01)
        assert view.clips == CLIPS * (1 + len(names))
        assert any(words.startswith("Video 2 of ") for words in told)
        # How long the others take is not known yet, and that of the first alone would be taken for that of all.
        assert not any(words.startswith("Video 1 of ") and " left" in words for words in told)
        assert studio.history.count("") == 0  # it is no video to keep
        assert not list(studio.settings.videos.iterdir())
    finally:
        studio.close()


def test_what_was_calibrated_is_measured_with_the_published_policies(
    folder: Path, pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = pipe.spec
    monkeypatch.setenv("PAB_SCHEDULES", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    for name, every in (("", 2), ("fast", 3)):
        rule = {"kinds": ["spatial"], "source": [step - step % every for step in range(spec.steps)]}
        about = {"family": spec.family, "depth": spec.depth}
        schedule = {"pab_schedule": 1, "name": f"calibrated-{name}" if name else "calibrated", "model": about}
        written = json.dumps({**schedule, "rules": [rule], "run_steps": spec.steps})
        own_path(spec.family, spec.depth, name).write_text(written, encoding="utf-8")
    monkeypatch.setattr(measuring, "CLIPS", 1)
    monkeypatch.setattr(service, "CLIPS", 1)
    studio = open_studio(folder, tmp_path, monkeypatch)
    try:
        most = most_videos(studio.offered["tiny"])
        view = wait(studio, studio.measure("tiny", "", ""))
        assert view.error == ""
        found = find_quality([tmp_path / "bench"], "tiny")
        assert found is not None
        assert found.clips == 1
        names = [point.policy for point in found.points]
        assert names[:5] == ["pab246", "pab357", "pab579", "calibrated", "calibrated-fast"]
        assert view.clips == 1 + len(names) <= most == 11
    finally:
        studio.close()


def test_a_measurement_waits_its_turn_is_done_once_and_can_be_cancelled(studio: Studio):
    job = studio.measure("tiny", "", "a")
    with pytest.raises(PabError, match="being measured already"):
        studio.measure("tiny", "", "b")
    video = studio.submit(ClipRequest(prompt="a red ball", model="tiny", steps=2), "", "b")
    assert studio.queue.view(video, "").state == "queued"
    wait(studio, job, lambda view: view.clip == 1)
    studio.queue.cancel(job, "")
    assert wait(studio, job, seconds=10).state == "cancelled"
    assert wait(studio, video).state == "done"
    assert not folder_of(studio.settings, "tiny").exists()
    studio.queue.cancel(studio.measure("tiny", "", "b"), "")


def test_a_full_disk_is_told_at_the_end_of_a_measurement(studio: Studio, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(measuring, "write_report", full)
    monkeypatch.setattr(measuring, "fewer_steps", lambda *_: None)
    view = wait(studio, studio.measure("tiny", "", ""))
    assert view.state == "failed"
    assert "The measurement could not be kept: No space left on device" in view.error


def test_what_is_not_here_is_not_measured(studio: Studio):
    with pytest.raises(PabError, match="no model named '/etc'"):
        studio.measure("/etc", "", "")


@pytest.mark.parametrize("family", WRITERS)
def test_every_family_is_warmed_up_before_a_comparison(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Some samplers make no run as short as a warm-up could be."""
    name = f"tiny-{family}"
    made = open_studio(WRITERS[family](tmp_path / name), tmp_path / "data", monkeypatch)
    try:
        model = next(iter(made.offered))
        stages: set[str] = set()
        job = made.submit(ClipRequest(prompt="a red ball", model=model, policy="fast"), "", "", against="off")
        view = wait(made, job, lambda view: stages.add(view.stage) or view.ended)
        assert view.error == ""
        assert "warm-up" in stages
        assert len(view.results) == 2
    finally:
        made.close()


@pytest.mark.parametrize("model", ["demo", "demo-plan", "open-sora"])
def test_ideas_are_what_the_model_can_make(model: str):
    spec = MODELS[model]
    ideas = [new_idea(spec)]
    while len(ideas) < 30:
        ideas.append(new_idea(spec, ideas[-1]))
        assert ideas[-1] != ideas[-2]
    nouns = {noun for kind in NOUNS.values() for noun in kind}
    known = [any(c in idea for c in COLOURS) and any(n in idea for n in nouns) for idea in ideas]
    assert all(known) == (model != "open-sora")
    assert measured_prompts(spec, CLIPS) == measured_prompts(spec, CLIPS)
    assert len(set(measured_prompts(spec, CLIPS))) == CLIPS
