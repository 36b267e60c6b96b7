"""The studio on a pool of workers: the same videos, progress, cancelling, and workers that die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pab_core.app.explore_page import show_machine
from pab_core.app.jobs import View
from pab_core.app.rendering import InProcess, OnPool, make_renderer
from pab_core.app.request import ClipRequest
from pab_core.app.service import Studio
from pab_core.app.settings import StudioSettings
from pab_core.cli import app as pab
from pab_core.errors import PabError
from pab_core.parallel.pool.background import start_in_background, stop_in_background
from pab_core.pipeline import Pipeline
from pab_core.video_io import read_metadata, read_mp4, write_mp4

LONG = {"steps": 250, "frames": "34"}


@pytest.fixture(scope="module")
def studio(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """On two workers that make each video together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAB_MODELS", str(tmp_path_factory.mktemp("none")))
        made = Studio(StudioSettings(tmp_path_factory.mktemp("studio"), (str(folder),), devices="cpu*2", method="dsp"))
    yield made
    made.close()


def submit(studio: Studio, against: str | None = None, **fields: Any) -> str:
    request = ClipRequest(**{"prompt": "a red ball", "model": "tiny", "seed": "3", **fields})
    return studio.submit(request, "", "visitor", against=against)


def wait(
    studio: Studio, job: str, true: Callable[[View], bool] = lambda view: view.ended, seconds: float = 120
) -> View:
    end = time.monotonic() + seconds
    while not true(view := studio.queue.view(job, "")):
        assert not view.ended, view
        assert time.monotonic() < end, view
        time.sleep(0.01)
    return view


def test_a_video_of_two_workers_is_that_of_the_library(studio: Studio, pipe: Pipeline, tmp_path: Path):
    view = wait(studio, submit(studio, policy="fast"))
    assert view.error == ""
    (entry,) = studio.entries(view, "")
    alone = pipe.generate("a red ball", policy="pab579", seed=3)
    assert read_metadata(entry.video) == alone.metadata
    path = write_mp4(tmp_path / "alone.mp4", alone.frames, alone.fps, alone.metadata)
    ours, theirs = (torch.from_numpy(read_mp4(file)[0]).int() for file in (entry.video, path))
    assert (ours - theirs).abs().float().mean() < 1  # rounding before the encoder


def test_progress_comes_with_previews_and_a_cancel_takes_effect(studio: Studio):
    kept = set(studio.settings.videos.iterdir())
    job = submit(studio, **LONG)
    view = wait(studio, job, lambda view: view.done >= 2 and view.preview is not None and view.seconds_left is not None)
    assert (view.stage, view.total) == ("denoise", 250)
    assert view.preview is not None
    assert view.preview[8:12] == b"WEBP"
    studio.queue.cancel(job, "")
    assert wait(studio, job, seconds=10).state == "cancelled"
    assert view.done < 200
    assert set(studio.settings.videos.iterdir()) == kept


def test_a_killed_worker_ends_its_job_in_words_and_the_next_one_runs(studio: Studio, capfd: pytest.CaptureFixture[str]):
    job, waiting = submit(studio, **LONG), submit(studio, steps=2)
    wait(studio, job, lambda view: view.stage == "denoise" and view.done >= 2)
    pids = [row["pid"] for row in studio.renderer.status()["workers"]]
    os.kill(pids[1], signal.SIGKILL)
    view = wait(studio, job, seconds=30)
    assert view.state == "failed"
    assert "The worker of rank 1 (cpu)" in view.error
    assert "try again" in view.error
    assert "log" not in view.error
    assert view.preview is None
    assert wait(studio, waiting).state == "done"
    assert "The worker of rank 1 (cpu)" in capfd.readouterr().err


def test_a_comparison_is_warmed_up_and_measured_on_the_pool(studio: Studio):
    stages = set()
    job = submit(studio, against="off", policy="fast", steps=6)
    view = wait(studio, job, lambda view: stages.add(view.stage) or view.ended)
    assert view.error == ""
    assert view.state == "done"
    assert "warm-up" in stages
    assert len(view.results) == 2
    assert view.measured["speedup"] > 0


def test_explore_shows_each_worker(studio: Studio):
    shown = show_machine(studio, "en")
    assert shown.count("cpu") >= 2
    assert "dsp" in shown
    assert "并行方法" in show_machine(studio, "zh")


def test_the_pool_in_the_background_is_used_and_its_end_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PAB_WORKERS", str(tmp_path / "workers"))
    monkeypatch.setenv("PAB_MODELS", str(tmp_path / "none"))
    settings = StudioSettings(tmp_path / "data", (str(folder),), workers=True)
    with pytest.raises(PabError, match="pab workers start"):
        Studio(settings)
    start_in_background("cpu*2", ranks=1)
    made = Studio(settings)
    try:
        # A worker each, side by side.
        first, second = (submit(made, **LONG) for _ in range(2))
        for job in (first, second):
            wait(made, job, lambda view: view.done >= 1)
        for job in (first, second):
            made.queue.cancel(job, "")
        assert wait(made, submit(made, steps=2)).state == "done"
        assert "Jobs of the pool" in show_machine(made, "en")
        stop_in_background()
        view = wait(made, submit(made, steps=2))
        assert view.state == "failed"
        assert "pab workers start" in view.error
        assert "pab workers start" in show_machine(made, "en")
    finally:
        made.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"devices": "cpu*x"}, "is no device"),
        ({"devices": "cpu*2", "method": "magic"}, "magic"),
        ({"devices": "cpu*2", "device": "cpu"}, "--device is for a single device"),
        ({"devices": "auto", "device": "cpu"}, "--device is for a single device"),
        ({"workers": True, "devices": "cpu"}, "leave --devices out"),
        ({"workers": True, "method": "dsp"}, "--method is chosen when the pool is started"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, settings: dict[str, Any], words: str):
    with pytest.raises(PabError, match=words):
        make_renderer(StudioSettings(tmp_path, **settings))


def test_an_unknown_speed_is_refused_at_the_start(tmp_path: Path):
    with pytest.raises(PabError, match="no speed named 'warp'"):
        Studio(StudioSettings(tmp_path, device="cpu", speed="warp"))


def test_one_device_is_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pab_core.app.rendering as rendering

    assert isinstance(make_renderer(StudioSettings(tmp_path, device="cpu")), InProcess)
    with monkeypatch.context() as patch:
        patch.setattr(rendering, "parse_devices", lambda text: ("cpu",))
        assert isinstance(make_renderer(StudioSettings(tmp_path, devices="auto")), InProcess)
    pool = make_renderer(StudioSettings(tmp_path, devices="cpu"))
    assert isinstance(pool, OnPool)
    pool.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--devices", "cpu*x"], "is no device"),
        (["--devices", "cpu*2", "--method", "magic"], "magic"),
        (["--speed", "warp"], "no speed named 'warp'"),
    ],
)
def test_the_command_line_refuses_in_words(tmp_path: Path, options: list[str], words: str):
    result = CliRunner().invoke(pab, ["app", "--no-browser", "--port", "0", "--output", str(tmp_path), *options])
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output
