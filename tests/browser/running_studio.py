"""A studio in a process of its own, which a test may end and start again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parent.parent.parent
SERVE = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from pab_core.app.launch import serve
from pab_core.app.settings import StudioSettings
devices = sys.argv[3] or None
device = None if devices else "cpu"
serve(StudioSettings(Path(sys.argv[1]), device=device, devices=devices, port=int(sys.argv[2]))).wait()
"""


class RunningStudio:
    """`pab app` on a free port with the demo models. `devices`: on a pool; `variables`: more for its environment."""

    def __init__(self, data: Path, devices: str = "", variables: dict[str, str] | None = None):
        self.data = data
        self.devices = devices
        self.variables = variables or {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        # As on a machine on which nothing was downloaded or calibrated.
        nothing = {name: str(self.data / "none") for name in ("PAB_MODELS", "PAB_SCHEDULES")}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **nothing, **self.variables}
        with (self.data / "log.txt").open("ab") as log:
            command = [sys.executable, "-c", SERVE, str(self.data), str(self.port), self.devices]
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


def open_studio(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("#pab-schedule svg")
