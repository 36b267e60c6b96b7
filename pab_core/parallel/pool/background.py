"""Starts and ends the pool in the background."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from ...errors import PabError
from ...video_io import NO_WINDOW
from .door import ask, read_address, workers_folder
from .member import ROOT, python_command, tail

_SECONDS = 60.0
_DETACHED = 0x00000008  # Windows: DETACHED_PROCESS


def start_in_background(
    devices: str = "auto",
    *,
    method: str = "auto",
    ranks: int | None = None,
    model: str | None = None,
    idle: float | None = None,
    ray: str | None = None,
) -> dict[str, Any]:
    """Starts the pool as a process of its own, and waits until it answers -> its status.

    PabError: one runs already, or it cannot be started; the message says why.
    """
    try:
        logs = workers_folder() / "logs"
        logs.mkdir(exist_ok=True)
    except OSError as error:
        raise PabError(
            f"The folder of the pool of workers cannot be made ({error}): name another with PAB_WORKERS."
        ) from None
    if model is not None and os.path.exists(model):
        model = os.path.abspath(model)
    options = {
        "devices": devices,
        "method": method,
        "ranks": ranks,
        "model": model,
        "idle": idle,
        "ray": ray,
        "logs": logs,
    }
    arguments = [text for name, value in options.items() if value is not None for text in (f"--{name}", str(value))]
    log = logs / "pool.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*python_command("pab_core.parallel.pool.service"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=ROOT,
            start_new_session=True,
            creationflags=NO_WINDOW | (_DETACHED if sys.platform == "win32" else 0),
        )
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        code = process.poll()
        if code is not None:
            said = tail(log).rpartition("Error: ")[2]
            raise PabError(
                said or f"The pool of workers ended as soon as it was started (exit code {code}); see {log}."
            )
        address = read_address()
        if address is not None and address.pid == process.pid:
            try:
                return ask("status")
            except PabError:
                pass  # in a moment
        time.sleep(0.05)
    process.kill()
    maybe = "" if ray is None else f" Maybe what answers at '{ray}' is no cluster of Ray: check host and port."
    raise PabError(f"The pool of workers did not start within {_SECONDS:.0f} s; its log is {log}.{maybe}")


def stop_in_background() -> None:
    """Ends the pool, and waits until it has. PabError where none runs, or it does not end."""
    address = read_address()
    ask("stop")
    until = time.monotonic() + _SECONDS
    while address is not None and read_address() == address:  # another may start at once
        if time.monotonic() > until:
            raise PabError(
                f"The pool of workers did not end within {_SECONDS:.0f} s; see its log in {workers_folder()}."
            )
        time.sleep(0.05)
