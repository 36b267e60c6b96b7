"""The queue: jobs of all users in the order in which they came, and the threads that do one after the other.

A job is found by its id, which nobody can guess, and by nobody but its owner where users log in. What a user sees of it
is a `View`, a copy: those threads alone change jobs, under the queue's lock.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import PabError
from .request import Clip
from .settings import Limits, not_kept

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
_REMEMBERED = 200  # ended jobs that can still be asked for


class Cancelled(Exception):
    """Ends a run between two steps, at its user's wish."""


@dataclass(frozen=True)
class View:
    """A job at one moment."""

    id: str
    state: State = "queued"
    position: int = 0  # jobs before it; 0 while it runs
    stage: str = ""  # "load", "denoise", "decode", "write"
    clip: int = 0  # of a comparison or a measurement, the one that is made now
    clips: int = 1
    measures: str = ""  # the model, of a measurement
    done: int = 0
    total: int = 0
    seconds_left: float | None = None  # of the denoising
    preview: bytes | None = None  # an animated WebP
    error: str = ""
    warnings: tuple[str, ...] = ()
    results: tuple[str, ...] = ()  # ids in the history
    measured: dict[str, Any] = field(default_factory=dict)  # of a comparison
    version: int = 0  # grows with every change

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass
class Job:
    owner: str  # whose history the videos go to: the user's name, "" where nobody logs in
    visitor: str  # whom the limits count: the user's name, else the open page
    clips: tuple[Clip, ...]
    view: View
    created: float = field(default_factory=time.time)
    cancelled: threading.Event = field(default_factory=threading.Event)


class Report:
    """How the work on a job tells what it does; every call is a place where it can be cancelled."""

    def __init__(self, queue: JobQueue, job: Job):
        self._queue = queue
        self.job = job

    def __call__(self, **changes: Any) -> None:
        if self.job.cancelled.is_set():
            raise Cancelled
        self._queue.change(self.job, **changes)


Work = Callable[[Job, Report], None]


class JobQueue:
    """Takes jobs and does them in threads of its own, `at_once` of them side by side."""

    def __init__(
        self, work: Work, limits: Limits, log: Callable[[BaseException], None] | None = None, at_once: int = 1
    ):
        self._work = work
        self._limits = limits
        self._log = log
        self._lock = threading.Condition()
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._closed = False
        self._threads = [threading.Thread(target=self._run, name="pab-studio", daemon=True) for _ in range(at_once)]
        for thread in self._threads:
            thread.start()

    # ---------------------------------------------------------------------------------------------------- for users

    def submit(self, owner: str, visitor: str, clips: Sequence[Clip], measures: str = "") -> str:
        """The id of the new job.

        PabError where the queue, or the visitor's part of it, is full, or what it `measures` is being measured already.
        """
        with self._lock:
            if measures and any(job.view.measures == measures and not job.view.ended for job in self._jobs.values()):
                raise PabError("This model is being measured already; its chart appears here when that has ended.")
            mine = [job for job in self._jobs.values() if job.visitor == visitor and not job.view.ended]
            if len(mine) >= self._limits.queued_each:
                raise PabError(
                    f"{len(mine)} of your videos are still being made or waiting; wait for one of them, or cancel it."
                )
            if len(self._waiting) >= self._limits.queued:
                raise PabError(f"The queue is full: {len(self._waiting)} videos are waiting. Try again in a while.")
            view = View(secrets.token_hex(16), clips=len(clips), measures=measures)
            job = Job(owner, visitor, tuple(clips), view)
            self._jobs[job.view.id] = job
            self._waiting.append(job)
            self._lock.notify_all()
            return job.view.id

    def view(self, job_id: str, owner: str) -> View:
        """PabError where the owner has no such job."""
        with self._lock:
            return self._placed(self._find(job_id, owner))

    def cancel(self, job_id: str, owner: str) -> View:
        """A job that waits ends at once, one that runs at its next step; one that has ended stays as it is."""
        with self._lock:
            job = self._find(job_id, owner)
            job.cancelled.set()
            if job in self._waiting:
                self._waiting.remove(job)
                self.change(job, state="cancelled")
            return self._placed(job)

    def counts(self) -> dict[str, int]:
        with self._lock:
            return {"waiting": len(self._waiting), "running": len(self._running)}

    def close(self) -> None:
        """Cancels everything and waits for the threads."""
        with self._lock:
            self._closed = True
            for job in [*self._waiting, *self._running]:
                self.cancel(job.view.id, job.owner)
            self._lock.notify_all()
        for thread in self._threads:
            thread.join(timeout=60)

    # --------------------------------------------------------------------------------------------------- for the work

    def change(self, job: Job, **changes: Any) -> None:
        with self._lock:
            job.view = replace(job.view, **changes, version=job.view.version + 1)

    def _find(self, job_id: str, owner: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner:
            raise PabError("There is no such job: it was asked for by somebody else, or before the studio started.")
        return job

    def _placed(self, job: Job) -> View:
        if job not in self._waiting:
            return job.view
        before = self._waiting.index(job) + len(self._running)
        return replace(job.view, position=before)

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._closed:
                    self._lock.wait()
                if self._closed:
                    return
                job = self._waiting.pop(0)
                self._running.append(job)
                self.change(job, state="running")
            self._do(job)
            with self._lock:
                self._running.remove(job)
                ended = [key for key, old in self._jobs.items() if old.view.ended]
                for key in ended[: max(0, len(ended) - _REMEMBERED)]:
                    del self._jobs[key]

    def _do(self, job: Job) -> None:
        """The work on one job; whatever it raises ends this job only."""
        try:
            self._work(job, Report(self, job))
        except Cancelled:
            self.change(job, state="cancelled", preview=None)
        except PabError as error:
            self.change(job, state="failed", error=str(error), preview=None)
        except BaseException as error:
            if self._log is not None:
                self._log(error)
            self.change(job, state="failed", error=describe_failure(error), preview=None)
        else:
            self.change(job, state="done", preview=None)


def describe_failure(error: BaseException) -> str:
    """What a user is told of an exception that is no PabError."""
    words = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in words or "not enough memory" in words:
        return "There is not enough memory for this clip; choose a smaller size or fewer frames."
    if isinstance(error, OSError) and error.strerror:
        return not_kept("The video", error)
    return f"Something in the program failed ({type(error).__name__}). The log of the studio tells more; others go on."
