"""Waiting, and finding the processes that a pool started."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def until(condition: Callable[[], Any], seconds: float = 60, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain {what}"
        time.sleep(0.01)


def marked(mark: str) -> list[int]:
    """The processes that live and carry a mark, with all that they have started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PAB_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return [pid for pid in found if pid != os.getpid()]
