"""Worker Pool (PAB): one process a device, to which the sampler and the decoder hand their work"""

import json
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pab_core import PabError
from pab_core.parallel.methods import METHODS

from . import host
from .host import io
from .types import LoadedModel, WorkersType, one_of

if TYPE_CHECKING:
    from pab_core.parallel.pool.record import Made, PoolProgress

POOLS = ("own", "background")
CHOICES = ("auto", *METHODS)
_LOOK = 0.05  # seconds between two looks at whether the user has cancelled
_RELEASE = 10.0  # seconds that the host waits for its memory at most
_DOING = {
    "load": "The workers load the model ...",
    "measure": "The workers time a few steps, to choose how to share the video ...",
}
_DONE = {"load": "The workers have the model.", "measure": "The workers have chosen how to share the video."}


class Workers:
    """A pool of this host's, or the one that `pab workers start` has made; what PAB_WORKERS carries.

    The processes start with the first job. They end when they have been idle, when the host wants its memory back,
    when no result of a node holds this any more, and with the host.
    """

    def __init__(self, devices: str, method: str, idle_seconds: float | None, background: bool) -> None:
        # Not at the top: it brings pydantic, and most graphs have no such node.
        from pab_core.parallel.pool.client import SharedPool
        from pab_core.parallel.pool.pool import WorkerPool

        if background:
            self._pool: Any = SharedPool()
            self._pool.status()  # that there is none is told at this node
        else:
            self._pool = WorkerPool(devices, method=method, idle_seconds=idle_seconds)
            weakref.finalize(self, self._pool.stop)
        self._handle: Any = None  # by which the host knows that it can have memory back
        self._model = ""  # that was handed in last

    def run(
        self,
        model: LoadedModel,
        entries: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        show: Callable[["PoolProgress"], None],
        node_id: str,
        working: int = 0,
    ) -> "Made":
        """Has the pool do a job, once more where a worker is lost, and waits; cancelling ends it within a step.

        Args:
            entries: of the job beside its model, see pab_core.parallel.pool.job.
            working: bytes that it takes on one device beside the weights, as far as that is known.

        Raises:
            PabError: what the job asks for cannot be, or the pool is lost. The host's own exception when cancelled.
        """
        from pab_core.parallel.pool.failures import JobCancelled, WorkerError
        from pab_core.parallel.pool.job import Job, ModelSource

        source = ModelSource.of(**model.source)
        job = Job.read({"model": source, **entries})
        self._make_room(source.model_dump_json(), model, working)
        try:
            try:
                made = self._wait(job, tensors, show, node_id)
            except WorkerError as error:
                if not error.retry:
                    raise
                host.say("A worker was lost: the pool starts it anew, and this begins again.", node_id)
                made = self._wait(job, tensors, show, node_id)
        except JobCancelled:  # by nobody here
            raise PabError("The pool of workers was stopped while it made this: run the graph again.") from None
        if made.warnings:
            host.say(" ".join(made.warnings), node_id)
        return made

    def _wait(
        self, job: Any, tensors: Mapping[str, Tensor], show: Callable[["PoolProgress"], None], node_id: str
    ) -> "Made":
        # The host knows the running node by the thread it runs in: what the pool's thread tells is told on in this one.
        events: SimpleQueue[PoolProgress] = SimpleQueue()
        stage = ""
        handle = self._pool.submit(job, tensors, events.put)
        try:
            while not handle.ended or not events.empty():
                host.check_cancelled()
                with suppress(Empty):
                    event = events.get(timeout=_LOOK)
                    if event.stage != stage and (said := _DOING.get(event.stage) or _DONE.get(stage)):
                        host.say(said, node_id)
                    stage = event.stage
                    if stage not in _DOING:
                        show(event)
            return handle.result()
        except BaseException:
            handle.cancel()
            raise

    # ----------------------------------------------------------------------------------------------- the host's memory

    def _make_room(self, source: str, model: LoadedModel, working: int) -> None:
        """Before a model comes to the workers, the host frees what it holds on the same GPU, and learns of this one."""
        status = self._pool.status()
        if source == self._model and any(row["state"] in ("ready", "working") for row in status["workers"]):
            return
        weights = sum(parameter.nbytes for parameter in model.pipeline.transformer.parameters())
        shared = str(host.compute_device()) in status["devices"]
        self._handle = host.kept_elsewhere(weights + working if shared else 0, _releasing(self._pool))
        host.bring(self._handle)
        self._model = source


def _releasing(pool: Any) -> Callable[[], None]:
    """What ends the processes of a pool, and waits for it; it keeps no Workers alive."""

    def release() -> None:
        with suppress(PabError):  # a pool in the background that has ended holds nothing
            pool.release()
            until = time.monotonic() + _RELEASE
            while time.monotonic() < until and any(row["state"] != "off" for row in pool.status()["workers"]):
                time.sleep(0.02)

    return release


# By their settings: two nodes that ask for the same share one, for a GPU has no room for two.
_open: "weakref.WeakValueDictionary[str, Workers]" = weakref.WeakValueDictionary()
_opening = threading.Lock()


def open_workers(devices: str, method: str, idle_seconds: float | None, background: bool) -> Workers:
    settings = (None, None, None, True) if background else (devices, method, idle_seconds, False)
    key = json.dumps(settings)
    with _opening:
        found = _open.get(key)
        if found is None:
            found = _open[key] = Workers(devices, method, idle_seconds, background)
        return found


class WorkerPoolNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="PABWorkers",
            display_name="Worker Pool (PAB)",
            description=(
                "Several GPUs for one video: a process on each, which keeps the model loaded and makes its part of "
                "every step. Connect it to Video Sampler (PAB), and to Video Decode (PAB) if you like."
            ),
            search_aliases=["multi gpu", "parallel", "distributed", "dsp", "ulysses", "sequence parallel", "pab"],
            inputs=[
                io.String.Input(
                    "devices",
                    default="auto",
                    tooltip="auto: all GPUs, else the CPU; 0,1: these GPUs; cpu*2: two processes on the CPU, to try "
                    "it out.",
                ),
                host.choice(
                    "method",
                    CHOICES,
                    tooltip="How the devices share a video. auto: times a few steps and takes the fastest, be it one "
                    "device alone. dsp: PAB's own; ulysses and megatron: others to compare with; cfg: one half of the "
                    "guidance each, and cfg+... both.",
                ),
                io.Float.Input(
                    "idle",
                    default=10.0,
                    min=0.0,
                    max=1440.0,
                    step=1.0,
                    tooltip="Minutes without work after which the processes end and free all memory; the next run "
                    "starts them again. 0: never.",
                ),
                host.choice(
                    "pool",
                    POOLS,
                    optional=True,
                    tooltip="own: processes of this ComfyUI, which end with it. background: those that `pab workers "
                    "start` has started, on this machine or a Ray cluster; they have their devices, method and idle "
                    "time already.",
                ),
            ],
            outputs=[WorkersType.Output(display_name="workers", tooltip="For Video Sampler and Video Decode (PAB).")],
        )

    @classmethod
    def execute(cls, devices: str, method: str, idle: float, pool: str = "own"):
        one_of("method", method, CHOICES)
        one_of("pool", pool, POOLS)
        return io.NodeOutput(open_workers(devices, method, idle * 60 or None, pool == "background"))
