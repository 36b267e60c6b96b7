"""A job in its pool: where it stands, and what those who wait for it are told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ...broadcast import ScheduleTable
from ...results import Generation
from .failures import JobCancelled, WorkerError
from .job import table_from_plain
from .protocol import Message, unpack

State = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class PoolProgress:
    """One event of a job, from rank 0. `preview`: uint8 [T, h, w, 3], with jobs that ask for it, now and then."""

    stage: str  # "load", "denoise" or "decode"
    done: int
    total: int
    preview: Tensor | None = None


OnProgress = Callable[[PoolProgress], None]


@dataclass(frozen=True)
class Made:
    """What came of a job: `generation` of a "video", `frames` uint8 [T, H, W, 3] also of a "decode", `latents` of a
    "denoise"."""

    seconds: Mapping[str, float]
    generation: Generation | None = None
    frames: Tensor | None = None
    latents: Tensor | None = None
    table: ScheduleTable | None = None
    warnings: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)  # all that rank 0 told, as plain data


@dataclass(eq=False)
class Record:
    """Filled in by its team's thread. `job`: as plain data, `tensors`: as safetensors."""

    id: str
    job: Mapping[str, Any]
    tensors: bytes
    progress: OnProgress | None = None
    state: State = "queued"
    place: PoolProgress | None = None  # where it stands
    cancelled: threading.Event = field(default_factory=threading.Event)
    retries: int = 0  # how often it may begin again where a worker is lost
    lost: str = ""  # why it has to
    _ended: threading.Event = field(default_factory=threading.Event)
    _made: Made | None = None
    _error: Exception | None = None

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    @property
    def error(self) -> Exception | None:
        return self._error

    def progressed(self, message: Message) -> None:
        preview = unpack(message.tensors).get("preview")
        self.stands(PoolProgress(message["stage"], message["done"], message["total"], preview))

    def stands(self, place: PoolProgress) -> None:
        """What the callback raises cancels the job and comes out of `result`."""
        self.place = place
        if self.progress is None or self.cancelled.is_set():
            return
        try:
            self.progress(self.place)
        except Exception as error:
            self._error = error
            self.cancelled.set()

    def finish(self, message: Message, warnings: list[str]) -> None:
        if self.ended:
            return
        if self.cancelled.is_set():  # it came too late to save anything, but who cancelled wants no video
            self.fail(JobCancelled())
            return
        self._made = made_of(message, warnings)
        self.state = "done"
        self._ended.set()

    def fail(self, error: Exception) -> None:
        """Of several failures the first counts."""
        if self.ended or self.lost:
            return
        if self.retries and isinstance(error, WorkerError) and error.retry and not self.cancelled.is_set():
            self.retries -= 1
            self.lost = str(error)
            return
        self.state = "cancelled" if isinstance(error, JobCancelled) else "failed"
        self._error = self._error or error
        self._ended.set()

    def wait(self, timeout: float | None) -> bool:
        return self._ended.wait(timeout)

    def result(self) -> Made:
        assert self.ended
        if self._error is not None:
            raise self._error
        assert self._made is not None
        return self._made


def made_of(message: Message, more: list[str]) -> Made:
    """The answer of rank 0 -> the result."""
    about, tensors = message["about"], unpack(message.tensors)
    warnings = (*about.get("warnings", ()), *more)
    table = table_from_plain(about["table"]) if "table" in about else None
    frames = tensors.get("frames")
    generation = None
    if "metadata" in about:
        assert frames is not None
        assert table is not None
        generation = Generation(frames, about["fps"], table, about["seconds"], about["metadata"], warnings)
    return Made(about["seconds"], generation, frames, tensors.get("latents"), table, warnings, about)
