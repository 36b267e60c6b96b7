"""Uploaded pictures do not pile up: what nothing was made from is deleted a day after its last use."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pab_core.app.service import Studio
from pab_core.app.settings import StudioSettings
from pab_core.errors import PabError

DAY = 24 * 3600


@pytest.fixture
def studio(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    monkeypatch.setenv("PAB_MODELS", str(tmp_path / "none"))
    made = Studio(StudioSettings(tmp_path / "data", (str(folder),), "cpu"))
    yield made
    made.close()


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def age(studio: Studio, name: str, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(studio.settings.uploads / f"{name}.png", (moment, moment))


def names(studio: Studio) -> set[str]:
    return {path.stem for path in studio.settings.uploads.iterdir()}


def add_video(studio: Studio, video_id: str, **request: str) -> None:
    for path in studio.history.files_of(video_id):
        path.write_bytes(b"x")
    studio.history.add(video_id, "ann", {"prompt": "a ball", **request}, {"prompt": "a ball"})


def test_an_upload_sweeps_what_nobody_used_for_a_day(studio: Studio, upload: Path):
    old, used, young = (studio.keep_picture(upload) for _ in range(3))
    age(studio, old, DAY + 60)
    age(studio, used, DAY + 60)
    age(studio, young, DAY - 60)
    studio.find_picture(used)
    new = studio.keep_picture(upload)
    assert names(studio) == {used, young, new}
    with pytest.raises(PabError, match="send it again"):
        studio.find_picture(old)


def test_the_pictures_of_a_video_go_after_the_video(studio: Studio, upload: Path):
    first, last, shared = (studio.keep_picture(upload) for _ in range(3))
    add_video(studio, "a", picture=first, last_picture=last)
    add_video(studio, "b", picture=shared)
    add_video(studio, "c", picture="", last_picture=shared)
    for name in (first, last, shared):
        age(studio, name, 400 * DAY)
    studio.sweep_pictures()
    assert names(studio) == {first, last, shared}
    studio.delete("a", "ann")
    studio.delete("b", "ann")
    assert names(studio) == {shared}
    with pytest.raises(PabError, match="no such video"):
        studio.delete("c", "bob")
    assert names(studio) == {shared}


def test_a_start_sweeps_too_and_leaves_what_is_no_picture_of_ours(studio: Studio, upload: Path):
    name = studio.keep_picture(upload)
    age(studio, name, 2 * DAY)
    other = studio.settings.uploads / "note.txt"
    other.write_text("mine")
    os.utime(other, (0, 0))
    Studio(studio.settings).close()
    assert names(studio) == {"note"}
