"""What one rank does: it loads the model that a job names, if it is not there yet, and makes the rank's part of it.

Messages to a rank:

    group   generation, rank, size, backend, store, seconds: join the others
    job     id, job (job.Job), method, alone (without the others); tensors
    cancel  id: end that job at the next step, together
    abort   id: another rank has failed, do not wait for it
    stop    end

and from it, beside those of its process (worker.py):

    grouped   generation, error ("" if it went well)
    progress  id, stage, done, total; a tensor "preview" from rank 0
    done      id, and from rank 0 about (the result's description) and its tensors
    failed    id, kind, text, trace, intact (whether the group can be used again)

A failure's kind: "user" (PabError), "memory", "cancelled", "peer" (another rank has gone) or "bug".
"""

from __future__ import annotations

import gc
import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import PabError
from ...pipeline import Pipeline
from ...results import Progress
from .group import Group, is_peer_failure
from .job import DTYPES, Job, ModelSource
from .making import TASKS
from .measuring import measure_link, measure_step, shape_of
from .protocol import Message, pack
from .shared_text import SharedTextEncoder

Send = Callable[[Message], None]
_TRACE = 3000  # characters of a bug's trace, its end
_PREVIEW_APART = 0.3  # seconds between two previews at least
# Torch's words for it, on a GPU, on Windows and elsewhere; only the first has an exception of its own.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


class Cancelled(Exception):
    """The job ends at its user's wish; `agreed`: at the same step on all ranks."""

    def __init__(self, agreed: bool) -> None:
        super().__init__()
        self.agreed = agreed


@dataclass
class _Running:
    id: str
    cancelled: bool = False


class Rank:
    """`run` is the process's main thread; `post` may be called from any."""

    def __init__(self, device: str, send: Send) -> None:
        self.device = torch.device(device)
        self._send = send
        self._inbox: queue.Queue[Message] = queue.Queue()
        self._group = Group()
        self._acting = self._group  # the group of the running job
        self._pipe: Pipeline | None = None
        self._source: ModelSource | None = None
        self._running: _Running | None = None
        self._cancelled: set[str] = set()  # jobs that were cancelled before they began
        self._lock = threading.Lock()
        self._last_preview = 0.0
        self._pace: Any = None

    def post(self, message: Message) -> None:
        """Takes a message; what concerns the running job takes effect at once."""
        if message.type not in ("cancel", "abort"):
            self._inbox.put(message)
            return
        with self._lock:
            running = self._running
            if message.type == "cancel":
                if running is not None and running.id == message["id"]:
                    running.cancelled = True
                else:
                    self._cancelled.add(message["id"])
        if message.type == "abort" and running is not None and running.id == message["id"]:
            self._group.abort()

    def run(self) -> None:
        """Until "stop"."""
        while True:
            message = self._inbox.get()
            if message.type == "stop":
                return
            if message.type == "group":
                self._join(message)
            elif message.type == "job":
                self._do(message)

    # ----------------------------------------------------------------------------------------------------- the group

    def _join(self, message: Message) -> None:
        self._group.leave()
        error = ""
        try:
            self._group = Group.join(
                message["rank"], message["size"], message["backend"], message["store"], message["seconds"]
            )
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
            self._group.leave()
        self._send(Message("grouped", {"generation": message["generation"], "error": error}))

    # ------------------------------------------------------------------------------------------------------- the job

    def _do(self, message: Message) -> None:
        name = message["id"]
        with self._lock:
            self._running = _Running(name, name in self._cancelled)
            self._cancelled.clear()
        self._pace, self._last_preview = None, 0.0
        failure: dict[str, Any] | None = None
        try:
            answer = self._make(message)
        except Exception as error:
            failure = _told(error)
        with self._lock:
            self._running = None
        if failure is None:
            self._send(answer)  # pyright: ignore[reportPossiblyUnboundVariable]
            return
        # Told before anything is tidied up, which may take its time: the others are waiting.
        self._send(Message("failed", {"id": name, **failure}))
        # What the run held went with its frames, which the exception kept: only now is memory free, and only now can
        # the group's connections close.
        if failure["kind"] != "cancelled":
            gc.collect()
        if not failure["intact"] and self._acting is self._group:
            self._group.leave()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _make(self, message: Message) -> Message:
        self._acting = Group() if message["alone"] else self._group
        job = Job.read(message["job"])
        tensors = message.unpack()
        self._together(lambda: self._load(job.model))
        if job.task == "load":
            return Message("done", {"id": message["id"], "about": {"seconds": {}}})
        pipe = self._attached(job, message["method"])
        if job.task == "measure":
            about, made = self._measure(pipe, job), {}
        else:
            about, made = TASKS[job.task](pipe, job, tensors, self._follow(pipe, job))
        if self._acting.rank:
            return Message("done", {"id": message["id"]})
        return Message("done", {"id": message["id"], "about": about}, pack(made))

    def _together(self, work: Callable[[], None]) -> None:
        """Work that needs nobody else; if it fails anywhere, all end here, with the group as good as before."""
        failure: Exception | None = None
        try:
            work()
        except Exception as error:
            failure = error
        failed = self._acting.any(failure is not None)
        if failure is not None:
            raise _Agreed from failure
        if failed:
            raise _Agreed
        self._check_cancelled()

    def _check_cancelled(self) -> None:
        assert self._running is not None
        if self._acting.any(self._running.cancelled):
            raise Cancelled(agreed=True)

    def _load(self, source: ModelSource) -> None:
        if source == self._source:
            return
        self._tell("load", 0, 0)
        self._pipe = self._source = None  # its memory is free before the next is read
        self._group.attached.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        from ...checkpoints import find_model

        parts = source.model_dump(exclude={"model", "dtype", "storage", "speed"})
        found = find_model(source.model, **parts)
        dtype = None if source.dtype is None else DTYPES[source.dtype]
        self._pipe = Pipeline.from_checkpoint(
            found, device=self.device, dtype=dtype, storage=source.storage, speed=source.speed
        )
        self._source = source

    def _attached(self, job: Job, method: str) -> Pipeline:
        """The loaded model, taken part in by all ranks, with the job's sampler."""
        assert self._pipe is not None
        group = self._acting
        if group.size == 1:
            pipe = self._pipe
        else:
            if method not in group.attached:
                from .. import attach, split_decode

                encoder = self._pipe.text_encoder
                shared = None if encoder is None else SharedTextEncoder(encoder, group)
                group.attached[method] = split_decode(attach(replace(self._pipe, text_encoder=shared), method))
            pipe = group.attached[method]
        if job.sampler is None:
            return pipe
        from ...noise_sampling import NoiseSampler

        if not isinstance(pipe.sampler, NoiseSampler):
            raise PabError(f"{pipe.spec.title} follows a rectified flow; other samplers do not fit it.")
        return replace(pipe, sampler=pipe.sampler.named(job.sampler))

    def _measure(self, pipe: Pipeline, job: Job) -> dict[str, Any]:
        """For the choice of a method. Where a step does not fit on one device, there is no time of it."""
        self._tell("measure", 0, 0)
        step = None
        try:
            step = measure_step(pipe, job)
        except Exception as error:
            if self._acting.size > 1 or not is_out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        link = measure_link(self._acting, self.device) if self._acting.size > 1 else None
        return {"seconds": {}, "step": step, "shape": shape_of(pipe, job), "link": link}

    # -------------------------------------------------------------------------------------------------- in the run

    def _follow(self, pipe: Pipeline, job: Job) -> Callable[[Progress], None]:
        """Called on every rank after every step: tells of it, and ends the run if it is cancelled."""

        def on_progress(event: Progress) -> None:
            if event.stage == "denoise":
                self._keep_pace()
                self._check_cancelled()
            elif self._running is not None and self._running.cancelled:
                # Ranks decode parts of their own, at their own pace: nobody to agree with.
                raise Cancelled(agreed=self._acting.size == 1)
            preview: dict[str, Tensor] = {}
            now = time.monotonic()
            wanted = job.previews and self._acting.rank == 0 and event.latents is not None
            if wanted and now - self._last_preview >= _PREVIEW_APART:
                assert event.latents is not None
                self._last_preview = now
                preview = {"preview": pipe.preview(event.latents)}
            self._tell(event.stage, event.done, event.total, preview)

        return on_progress

    def _keep_pace(self) -> None:
        """Lets the host be one step ahead of the GPU, not more: what is told would not be true, and a cancel late."""
        if self.device.type != "cuda":
            return
        before, self._pace = self._pace, torch.cuda.Event()
        self._pace.record()
        if before is not None:
            before.synchronize()

    def _tell(self, stage: str, done: int, total: int, preview: dict[str, Tensor] | None = None) -> None:
        assert self._running is not None
        about = {"id": self._running.id, "stage": stage, "done": done, "total": total}
        self._send(Message("progress", about, pack(preview or {})))


class _Agreed(Exception):
    """Raised on all ranks together; the cause is known to those that failed."""


def is_out_of_memory(error: BaseException) -> bool:
    words = str(error).lower()
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in words for sign in _OUT_OF_MEMORY)
    )


def _told(error: BaseException) -> dict[str, Any]:
    """An exception as a message tells it."""
    intact = isinstance(error, _Agreed) or (isinstance(error, Cancelled) and error.agreed)
    cause = error.__cause__ if isinstance(error, _Agreed) else error
    if isinstance(cause, Cancelled):
        kind = "cancelled"
    elif cause is not None and is_out_of_memory(cause):
        kind = "memory"
    elif cause is None or is_peer_failure(cause):
        kind = "peer"
    else:
        kind = "user" if isinstance(cause, PabError) else "bug"
    trace = "".join(traceback.format_exception(cause)) if kind == "bug" and cause is not None else ""
    text = "" if cause is None else str(cause) or type(cause).__name__
    return {"kind": kind, "text": text, "trace": trace[-_TRACE:], "intact": intact}
