"""Who computes a clip: this process with one model loaded, or a pool of workers; called by the queue's threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..devices import check_device
from ..errors import PabError
from ..evaluate.machine import peak_gpu_memory
from ..parallel.pool.asked import chosen_pool
from ..parallel.pool.devices import parse_devices
from ..parallel.pool.failures import JobCancelled, WorkerError
from ..parallel.pool.generating import Pool, generate_on_pool
from ..parallel.pool.job import ModelSource
from ..parallel.pool.record import PoolProgress
from ..pipeline import WARM_UP_STEPS, Pipeline
from ..results import Generation, Progress
from ..tasks import Given
from .jobs import Cancelled
from .models import LoadedModel
from .request import Clip
from .settings import StudioSettings

_LOOK = 0.2  # seconds between two looks at whether a job is cancelled


@dataclass(frozen=True)
class Event:
    """How far a clip is. `picture` gives small frames uint8 [T, h, w, 3], where there are any; asked for or not."""

    stage: str  # "load", "tune", "denoise" or "decode"
    done: int = 0
    total: int = 0
    picture: Callable[[], Tensor] | None = None


OnEvent = Callable[[Event], None]


class Renderer(Protocol):
    """What `on_event` raises ends the clip and comes out. PabError, in the user's words: whatever else ends it."""

    def render(self, clip: Clip, cancelled: threading.Event, on_event: OnEvent) -> tuple[Generation, int | None]:
        """-> the video, and the peak of the GPU's memory in bytes where it is known."""
        ...

    def warm_up(self, clip: Clip, cancelled: threading.Event, on_event: OnEvent) -> None:
        """A few steps that are not measured: the first run of all would be slower than the second."""
        ...

    def status(self) -> dict[str, Any]:
        """As WorkerPool.status; "loaded": the model in memory, where it is known."""
        ...

    @property
    def at_once(self) -> int:
        """Clips that may be rendered side by side, each from a thread of its own."""
        ...

    def close(self) -> None: ...


class InProcess:
    """One model in this process, on one device."""

    def __init__(self, settings: StudioSettings):
        self._device = check_device(settings.device)
        self.loaded = LoadedModel(settings.device, settings.speed)
        self._working = False

    def render(self, clip: Clip, cancelled: threading.Event, on_event: OnEvent) -> tuple[Generation, int | None]:
        def tell(event: Progress) -> None:
            latents = event.latents
            picture = None if latents is None else lambda: pipe.preview(latents)
            on_event(Event(event.stage, event.done, event.total, picture))

        with self._at_work(clip, on_event) as pipe:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            made = pipe.generate(clip.prompt, progress=tell, **_settings_of(clip))
        return made, peak_gpu_memory()

    def warm_up(self, clip: Clip, cancelled: threading.Event, on_event: OnEvent) -> None:
        size: dict[str, Any] = {"num_frames": clip.num_frames, "height": clip.height, "width": clip.width}
        tell = lambda event: on_event(Event("warm-up"))  # noqa: E731
        with self._at_work(clip, on_event) as pipe:
            on_event(Event("warm-up"))
            text = pipe.encode_prompt(clip.prompt, clip.negative)
            table = pipe.schedule("off", steps=WARM_UP_STEPS, **size)
            noise = pipe.prepare_latents(clip.seed, **size)
            pipe.denoise(noise, text, table, steps=WARM_UP_STEPS, seed=clip.seed, progress=tell, **size)

    @contextmanager
    def _at_work(self, clip: Clip, on_event: OnEvent) -> Iterator[Pipeline]:
        """The clip's model, loaded if need be."""
        self._working = True
        try:
            if self.loaded.name != clip.offered.name:
                on_event(Event("load"))
            yield self.loaded.get(clip.offered)
        finally:
            self._working = False

    def status(self) -> dict[str, Any]:
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else None
        row = {"device": str(self._device), "name": name, "state": "working" if self._working else "ready"}
        return {"workers": [row], "loaded": self.loaded.name, "warnings": [], "trouble": []}

    @property
    def at_once(self) -> int:
        return 1

    def close(self) -> None:
        pass


class OnPool:
    """Workers of our own on several devices, or the pool that `pab workers` keeps in the background.

    PabError from the constructor: devices or a method that cannot be, or no pool in the background.
    """

    def __init__(self, settings: StudioSettings):
        self._speed = settings.speed
        self._stack = ExitStack()
        chosen = chosen_pool(settings.devices, settings.method, settings.workers, device=settings.device)
        self._pool: Any = self._stack.enter_context(chosen)

    def render(self, clip: Clip, cancelled: threading.Event, on_event: OnEvent) -> tuple[Generation, int | None]:
        source = ModelSource.of(clip.offered.source, speed=self._speed)

        def tell(event: PoolProgress) -> None:
            preview = event.preview
            stage = "tune" if event.stage == "measure" else event.stage
            on_event(Event(stage, event.done, event.total, None if preview is None else lambda: preview))

        heard = _Heard(self._pool, cancelled)
        try:
            made = generate_on_pool(heard, source, clip.prompt, previews=True, progress=tell, **_settings_of(clip))
        except JobCancelled:
            raise Cancelled from None
        except WorkerError as error:
            # The log is for who runs the studio; its users need not see what lies on the machine.
            print(error, file=sys.stderr)
            raise PabError(str(error).split(" Its log ends:\n")[0]) from None
        return made, None

    def warm_up(self, clip: Clip, cancelled: threading.Event, on_event: OnEvent) -> None:
        short = replace(clip, policy="off", steps=WARM_UP_STEPS)  # pyright: ignore[reportArgumentType] - by its name

        def tell(event: Event) -> None:
            on_event(event if event.stage in ("load", "tune") else Event("warm-up"))

        on_event(Event("warm-up"))
        self.render(short, cancelled, tell)

    def status(self) -> dict[str, Any]:
        return self._pool.status()

    @property
    def at_once(self) -> int:
        return max(1, len({row["team"] for row in self.status()["workers"]}))

    def close(self) -> None:
        self._stack.close()


@dataclass(frozen=True)
class _Heard:
    """A pool whose job hears that it is cancelled also where it tells of no progress: while it waits, or loads."""

    pool: Pool
    cancelled: threading.Event

    def submit(self, job: Any, tensors: Any = None, progress: Any = None) -> Any:
        handle = self.pool.submit(job, tensors, progress)

        def watch() -> None:
            while not handle.ended:
                if self.cancelled.wait(_LOOK):
                    handle.cancel()
                    return

        threading.Thread(target=watch, name="pab-cancel", daemon=True).start()
        return handle


def _settings_of(clip: Clip) -> dict[str, Any]:
    return {
        "negative": clip.negative,
        "policy": clip.policy,
        "seed": clip.seed,
        "steps": clip.steps,
        "guidance": clip.guidance,
        "num_frames": clip.num_frames,
        "height": clip.height,
        "width": clip.width,
        "given": Given(image=clip.picture, last_image=clip.last_picture),
    }


def make_renderer(settings: StudioSettings) -> Renderer:
    """As the settings say: in this process unless several devices, or the pool in the background, are asked for."""
    if settings.workers or (settings.devices is None and settings.method != "auto"):
        return OnPool(settings)
    if settings.devices is None:
        return InProcess(settings)
    if settings.devices.strip().lower() == "auto" and len(devices := parse_devices("auto")) == 1:
        if settings.device is not None:
            raise PabError("--device is for a single device: leave it out, or --devices and --workers.")
        return InProcess(replace(settings, device=devices[0], devices=None))
    return OnPool(settings)
