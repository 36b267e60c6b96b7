"""A real browser and a studio in a process of its own, which a test may end and start again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent.parent
SERVE = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from pab_core.app.launch import serve
from pab_core.app.settings import StudioSettings
serve(StudioSettings(Path(sys.argv[1]), device="cpu", port=int(sys.argv[2]))).wait()
"""


class RunningStudio:
    """`pab app` on a free port with the demo model."""

    def __init__(self, data: Path):
        self.data = data
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PAB_MODELS": str(self.data / "none")}
        with (self.data / "log.txt").open("ab") as log:
            command = [sys.executable, "-c", SERVE, str(self.data), str(self.port)]
            self.process = subprocess.Popen(command, cwd=self.data, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + 120
        while True:
            assert self.process.poll() is None, (self.data / "log.txt").read_text(errors="replace")
            assert time.monotonic() < end
            try:
                httpx.get(self.url, timeout=2)
                return
            except httpx.HTTPError:
                time.sleep(0.2)

    def stop(self) -> None:
        self.process.kill()  # as a power cut would
        self.process.wait()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of the system (CHROMIUM, or on the path)."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "these tests need Chromium: install it, or name it with CHROMIUM"
    expect.set_options(timeout=90_000)  # a video takes seconds, and more on a busy machine
    with sync_playwright() as playwright:
        # Tests run as root in containers, where Chromium's own sandbox cannot start.
        made = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    made = RunningStudio(tmp_path_factory.mktemp("studio"))
    yield made
    made.stop()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1280, "height": 940}, locale="en-US")
    made.set_default_timeout(90_000)
    yield made
    made.close()


@pytest.fixture
def page(studio: RunningStudio, context: BrowserContext) -> Iterator[Page]:
    """The page, opened. That nothing but the studio was asked and no script failed is held at the end."""
    foreign: list[str] = []
    failed: list[str] = []
    page = context.new_page()
    page.on("request", lambda r: None if r.url.startswith((studio.url, "data:", "blob:")) else foreign.append(r.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    open_studio(page, studio.url)
    yield page
    assert not foreign
    assert not failed


def open_studio(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("#pab-schedule svg")
