"""What the tests of the studio do on its page.

PAB_SCREENSHOTS=folder keeps a picture of every page.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Page
from running_studio import RunningStudio

from pab_core.app.history import History
from pab_core.app.making import write_thumbnail
from pab_core.video_io import write_mp4

PROMPT = "a blue cube slides right over a wooden floor"


def shoot(page: Page, name: str) -> None:
    """Keeps a screenshot where the tests are asked to."""
    folder = os.environ.get("PAB_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def fill_in(page: Page, seed: int, steps: int | None = None) -> None:
    page.get_by_role("textbox", name="Prompt", exact=True).fill(PROMPT)
    page.locator("#pab-seed").locator("input, textarea").fill(str(seed))
    if steps is not None:
        page.locator("#pab-steps input").fill(str(steps))


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def fill_history(studio: RunningStudio, count: int, **asked: Any) -> None:
    """Videos of a former run, as far as the page needs them; `asked`: of the request, beside prompt and seed."""
    history = History(studio.data / "history.sqlite", studio.data / "videos")
    about = {"model": "demo", "policy": "off", "steps": 30, "guidance": 4.0, "fps": 16, "seconds": {"denoise": 1.0}}
    about |= {"width": 192, "height": 128, "num_frames": 34}
    for seed in range(count):
        video, thumbnail = history.files_of(secrets.token_hex(16))
        frames = torch.full((2, 128, 192, 3), 25 * seed, dtype=torch.uint8)
        write_mp4(video, frames, 16, {})
        write_thumbnail(frames, thumbnail)
        request = {"prompt": PROMPT, "seed": str(seed), **asked}
        history.add(video.stem.removeprefix("pab-"), "", request, {**about, **request, "seed": seed})
