"""The pool that a user's options ask for: one of these devices for the while, or the one in the background."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...errors import PabError

if TYPE_CHECKING:
    from .generating import Pool


@contextmanager
def chosen_pool(devices: str | None, method: str, on_workers: bool, **others: str | None) -> Iterator[Pool]:
    """The pool that options ask for. `others`: options that go with a single device, which are refused.

    PabError: options that do not go together, devices that do not exist, or no pool in the background.
    """
    if devices is not None and on_workers:
        raise PabError("--workers takes the devices of the pool that is running: leave --devices out.")
    for name, value in others.items():
        if value is not None:
            raise PabError(f"--{name} is for a single device: leave it out, or --devices and --workers.")
    if on_workers:
        if method != "auto":
            raise PabError("--method is chosen when the pool is started: give it to `pab workers start`.")
        from .client import SharedPool

        shared = SharedPool()
        shared.status()
        yield shared
        return
    from .pool import WorkerPool

    with WorkerPool("auto" if devices is None else devices, method=method) as pool:
        yield pool
