"""The pool: a queue of jobs, the teams of workers that do them, and handles for those who wait."""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ...errors import PabError
from ...models.registry import ModelSpec
from ...settings import clip_size
from ..methods import Sizes, check_sizes, find_method
from .devices import parse_devices
from .failures import JobCancelled
from .folder import PrivateFolder
from .job import Job, ModelSource
from .member import WORKER, LocalMember, Member, Place
from .protocol import Message, pack
from .record import Made, OnProgress, PoolProgress, Record, State
from .team import Team, Terms
from .watching import Patience

if TYPE_CHECKING:
    from typing_extensions import Self


class Cancels(Protocol):
    """A pool, here or elsewhere."""

    def cancel(self, record: Record) -> None: ...


class Handle:
    """A job that was handed in."""

    def __init__(self, pool: Cancels, record: Record) -> None:
        self._pool = pool
        self._record = record

    @property
    def id(self) -> str:
        return self._record.id

    @property
    def state(self) -> State:
        return self._record.state

    @property
    def ended(self) -> bool:
        return self._record.ended

    @property
    def place(self) -> PoolProgress | None:
        """The last that was heard of it."""
        return self._record.place

    @property
    def error(self) -> Exception | None:
        """What `result` raises, if it has failed."""
        return self._record.error

    def cancel(self) -> None:
        """A job that waits ends at once, one that runs after the step it is in; one that has ended stays as it is."""
        self._pool.cancel(self._record)

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it has ended, after at most so many seconds."""
        return self._record.wait(timeout)

    def result(self, timeout: float | None = None) -> Made:
        """Waits for it.

        Raises:
            PabError: the job asked for something that cannot be; WorkerError, one of them: a worker failed.
            JobCancelled: it was cancelled.
            TimeoutError: it has not ended in so many seconds; it goes on.
        """
        if not self._record.wait(timeout):
            raise TimeoutError(f"The job has not ended in {timeout} s; it goes on.")
        return self._record.result()


class BasePool:
    """What pools on this machine and on a cluster have in common: the queue, and teams that take jobs from it.

    A pool that its program forgets to stop is stopped when that ends.
    """

    def __init__(self, teams: Sequence[Sequence[Place]], terms: Terms, *, retries: int = 0) -> None:
        idle = terms.idle_seconds
        if idle is not None and not idle > 0:
            raise PabError(
                f"The seconds without a job until all memory is given back are a number above 0, not {idle:g}."
            )
        self.method = terms.method
        self._retries = retries
        self._lock = threading.Lock()
        self._waiting: deque[Record] = deque()
        self._closed = False
        self._loading: list[Handle] = []  # of `load`, until there is another job
        self._teams = [Team(index, places, terms, self._take) for index, places in enumerate(teams)]
        reference = weakref.ref(self)
        self._stop_at_exit: Any = lambda: (pool := reference()) is not None and pool.stop()
        atexit.register(self._stop_at_exit)

    def load(self, model: ModelSource | str | None) -> None:
        """Has every team load a model, before there is a job for it; where that fails, `status` tells of it."""
        if model is not None:
            source = model if isinstance(model, ModelSource) else ModelSource.of(model)
            self._loading = [self.submit(Job(model=source, task="load")) for _ in self._teams]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _check(self, job: Job) -> None:
        """PabError where it is known already that a job cannot be."""

    def _trouble(self) -> list[str]:
        """Why there are no workers, or no model where one was to be loaded without a job that would tell of it."""
        found = {team.roster.trouble for team in self._teams if team.roster.trouble}
        return sorted(found or {str(handle.error) for handle in self._loading if handle.state == "failed"})

    def _close(self) -> None:
        """What is left to do when all teams have ended."""

    def _where_logs_are(self) -> str:
        return ""

    # ----------------------------------------------------------------------------------------------------- for users

    def submit(
        self, job: Job, tensors: Mapping[str, Tensor] | None = None, progress: OnProgress | None = None
    ) -> Handle:
        """Hands a job in; it begins when those before it have ended.

        Args:
            tensors: that go beside the job, see job.py.
            progress: called in a thread of the pool's; what it raises ends the job and comes out of `result`.
        """
        self._check(job)
        if job.seed is None:
            job = job.model_copy(update={"seed": secrets.randbelow(2**32)})  # the same on all ranks
        plain = job.model_dump(mode="json")
        record = Record(secrets.token_hex(8), plain, pack(tensors or {}), progress, retries=self._retries)
        self._hand_in(record)
        self._loading = []  # what there is to say of the model, this job will
        return Handle(self, record)

    def start(self) -> None:
        """Starts the processes now; the first job would do it otherwise."""
        for team in self._teams:
            team.start()

    def status(self) -> dict[str, Any]:
        """Plain data: "workers" (state, pid, device), "waiting", "running", "warnings", "trouble"."""
        with self._lock:
            waiting = [record.id for record in self._waiting]
        rows = [row for team in self._teams for row in team.status()]
        running = []
        for team in self._teams:
            record = team.running
            if record is not None:
                place = record.place
                about = {"stage": place.stage, "done": place.done, "total": place.total} if place else {}
                running.append({"id": record.id, "team": team.index, **about})
        return {
            "devices": [row["device"] for row in rows],
            "method": self.method,
            "workers": rows,
            "waiting": waiting,
            "running": running,
            "warnings": sorted({warning for team in self._teams for warning in team.roster.warnings}),
            "trouble": self._trouble(),
            "logs": self._where_logs_are(),
        }

    def release(self) -> None:
        """Gives all memory back as soon as no job waits: the processes end, and the next job starts them again."""
        for team in self._teams:
            team.release()

    def stop(self) -> None:
        """Cancels all jobs and ends all processes; may be called more than once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
        for record in left:
            record.fail(JobCancelled())
        for team in self._teams:
            record = team.running  # looked at once: it may end this moment
            if record is not None:
                record.cancelled.set()
            team.close()
        for team in self._teams:
            team.join()
        self._close()
        atexit.unregister(self._stop_at_exit)

    # ---------------------------------------------------------------------------------------------------- for the rest

    def cancel(self, record: Record) -> None:
        record.cancelled.set()
        with self._lock:
            waiting = record in self._waiting
            if waiting:
                self._waiting.remove(record)
        if waiting:
            record.fail(JobCancelled())
        for team in self._teams:
            team.wake()

    def _hand_in(self, record: Record) -> None:
        with self._lock:
            if self._closed:
                raise PabError("The pool of workers has been stopped: make a new one.")
            self._waiting.append(record)
        for team in self._teams:
            team.wake()

    def _take(self) -> Record | None:
        with self._lock:
            if self._closed or not self._waiting:
                return None
            record = self._waiting.popleft()
            record.state = "running"
            return record


class WorkerPool(BasePool):
    """Workers on the devices of this machine, one process each; processes are started with the first job.

    Args:
        devices: "auto" (every GPU, else the CPU), "0,1", "cuda:0,cuda:1", "cpu*2"; or their names one by one.
        method: how the ranks of a team share a video, one of `parallel.METHODS`; "auto": what suits model and clip.
        ranks: devices a team; None: all devices make each video together. 1: every device makes videos of its own.
        model: what is loaded before the first job, if that is wanted.
        idle_seconds: after so long without a job the processes end, and with them all memory is free; None: never.
        logs: folder that keeps the workers' logs; None: a private one that goes with the pool.
        environment: more variables for the workers.

    Raises:
        PabError: devices that do not exist or cannot work together; a model that is not here.
    """

    def __init__(
        self,
        devices: str | Sequence[str] = "auto",
        *,
        method: str = "auto",
        ranks: int | None = None,
        model: ModelSource | str | None = None,
        idle_seconds: float | None = 600.0,
        patience: Patience | None = None,
        logs: Path | None = None,
        environment: Mapping[str, str] | None = None,
        module: str = WORKER,
    ) -> None:
        names = parse_devices(devices) if isinstance(devices, str) else parse_devices(",".join(devices))
        ranks = len(names) if ranks is None else ranks
        if ranks < 1 or len(names) % ranks:
            raise PabError(
                f"{len(names)} devices cannot be divided into teams of {ranks}: choose a number that divides them."
            )
        if method != "auto":
            find_method(method)
        if model is not None:
            model = model if isinstance(model, ModelSource) else ModelSource.of(model)
            _known(model.model_dump_json())
        self.devices = names
        self._folder = PrivateFolder()
        self._logs = self._folder.path if logs is None else logs
        self._logs.mkdir(parents=True, exist_ok=True)
        self._environment = dict(environment or {})
        self._module = module
        places = [Place(device, index, index // ranks) for index, device in enumerate(names)]
        teams = [places[start : start + ranks] for start in range(0, len(places), ranks)]
        super().__init__(teams, Terms(self._start_worker, self._store, patience or Patience(), method, idle_seconds))
        self.load(model)

    def _check(self, job: Job) -> None:
        ranks = len(self._teams[0].roster.places)
        if ranks == 1 or self.method in ("auto", "none") or job.task not in ("video", "denoise"):
            return
        spec, config = _known(job.model.model_dump_json())
        size = {"num_frames": job.num_frames, "height": job.height, "width": job.width}
        clip_size(spec, **size)
        check_sizes(self.method, ranks, Sizes.of_clip(spec, config, guidance=job.guidance, **size))

    def _close(self) -> None:
        self._folder.remove()

    def _where_logs_are(self) -> str:
        return str(self._logs)

    def _start_worker(self, place: Place, receive: Callable[[Member, Message | None], None]) -> Member:
        on_cpu = sum(device == "cpu" for device in self.devices)
        threads = 0
        if place.device == "cpu" and on_cpu > 1 and "OMP_NUM_THREADS" not in {**os.environ, **self._environment}:
            threads = max(1, (os.cpu_count() or 1) // on_cpu)
        return LocalMember(
            place,
            receive,
            self._logs / f"worker-{place.index}-{place.device.replace(':', '')}.log",
            threads=threads,
            module=self._module,
            environment=self._environment,
        )

    def _store(self, team: int, generation: int, members: Sequence[Member]) -> Mapping[str, Any]:
        for old in self._folder.path.glob(f"meet-{team}-*"):
            old.unlink(missing_ok=True)
        return {"file": str(self._folder.path / f"meet-{team}-{generation}-{secrets.token_hex(4)}")}


@functools.lru_cache(maxsize=16)
def _known(plain: str) -> tuple[ModelSpec, Any]:
    """A ModelSource as JSON -> what is known of it without its weights, and its transformer's config."""
    from ...checkpoints import find_model

    source = ModelSource.model_validate_json(plain)
    found = find_model(source.model, **source.model_dump(include={"vae", "text_encoder", "tokenizer"}))
    return found.spec, found.config
