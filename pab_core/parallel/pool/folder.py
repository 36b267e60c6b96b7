"""A pool's private folder: where its ranks meet, and its logs. What a killed host leaves, the next pool removes."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

_PREFIX = "pab-pool-"
_LOCK = "host"


class PrivateFolder:
    """Made for this user alone. Its lock is held as long as the process lives: nobody takes it for left over."""

    def __init__(self) -> None:
        sweep()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))  # with access for its owner only
            self._lock: Any = (self.path / _LOCK).open("wb")
            try:
                # Before it was held, another process's sweep may have taken the folder for left over.
                if hold(self._lock) and (self.path / _LOCK).exists():
                    return
            except OSError:
                return  # no locks here: nobody sweeps, either
            self.remove()

    def remove(self) -> None:
        self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)


def sweep() -> None:
    """Removes the folders of this user's pools whose host has died."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if sys.platform != "win32" and folder.stat().st_uid != os.getuid():
                continue
            if not (folder / _LOCK).exists():
                continue  # is being made or removed this moment
            with (folder / _LOCK).open("r+b") as lock:
                if not hold(lock):
                    continue
                # While it is held: whose it is then learns of it. Windows leaves the open file, and its folder.
                shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def hold(lock: Any) -> bool:
    """Whether the lock could be had; it is given back when the file is closed, also by the death of the process.

    OSError on a file system that knows no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
