"""A pool whose workers are actors of Ray, on all machines of a cluster. The extra `ray` brings what it needs.

    pool = RayPool("auto", ranks=2)   # teams of two: each video over two GPUs, wherever they are

A job is begun once more, on what is left, where a worker or a whole node is lost in the middle of it.
"""

from __future__ import annotations

import itertools
import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ...errors import PabError
from ..methods import find_method
from .failures import WorkerError
from .job import ModelSource
from .member import ROOT, Member, Place
from .pool import BasePool
from .protocol import Message
from .ray_actor import RankActor, message_of
from .team import Terms
from .watching import Patience

_POLL = 0.5  # seconds that a worker's answer may take when it has nothing to say
_CONNECT = 10.0
_RESERVE = 20.0
_CALLS = 8  # of an actor at a time: the poll, and messages that wait for nothing
_HEAD_PORT = 6379


class RayMember(Member):
    """An actor. Ray tells that it has gone, or the pool decides so."""

    def __init__(self, place: Place, receive: Callable[[Member, Message | None], None], actor: Any) -> None:
        super().__init__(place, receive)
        self.actor = actor
        self._numbers = itertools.count()
        self._ended = threading.Event()
        threading.Thread(target=self._listen, name="pab-ray", daemon=True).start()

    def send(self, message: Message) -> None:
        with suppress(Exception):
            self.actor.post.remote(next(self._numbers), message.to_bytes())

    def kill(self, cause: str = "", after: float = 0.0) -> None:
        import ray

        self.cause = self.cause or cause
        # A node that is out of reach may not confirm it for long; nobody waits for that.
        threading.Thread(target=lambda: ray.kill(self.actor), daemon=True).start()
        self._end()

    def end(self) -> str:
        return self.cause or "was lost (its process or its node has ended; Ray's logs tell more)"

    def log_tail(self) -> str:
        return ""

    def wait(self, seconds: float) -> bool:
        return self._ended.wait(seconds)

    def _listen(self) -> None:
        import ray
        from ray.exceptions import GetTimeoutError

        waited: Any = None
        while not self._ended.is_set():
            try:
                waited = waited or self.actor.poll.remote(_POLL)
                found = ray.get(waited, timeout=4 * _POLL)
            except GetTimeoutError:
                continue  # it starts, or is out of reach: who watches decides
            except Exception:
                break
            waited = None
            for data in found:
                self.heard_of(message_of(data))
            if not found:
                self.heard_of(Message("beat"))
        self._end()

    def _end(self) -> None:
        self._ended.set()
        self.has_gone()


class RayPool(BasePool):
    """Workers all over a cluster of Ray.

    Args:
        address: of the cluster's head, "host:6379"; "auto": the cluster that this machine belongs to.
        workers: how many; None: one on every GPU of the cluster, or without any GPU one on every node.
        ranks: workers that make a video together; None: all. 1: every worker makes videos of its own.
        method, model, idle_seconds, patience: as WorkerPool; the model lies at the same path on every node.

    Raises:
        PabError: Ray is not installed, the cluster does not answer, or has too few devices.
    """

    def __init__(
        self,
        address: str = "auto",
        *,
        workers: int | None = None,
        ranks: int | None = None,
        method: str = "auto",
        model: ModelSource | str | None = None,
        idle_seconds: float | None = 600.0,
        patience: Patience | None = None,
    ) -> None:
        if method != "auto":
            find_method(method)
        connect(address)
        self._kind, there = capacity()
        if workers is None:
            workers = there if self._kind == "GPU" else count_nodes()
        if not 1 <= workers <= there:
            raise PabError(
                f"{workers} workers were asked for, and the cluster has {there} {self._kind}s: choose 1 to {there}, or "
                "add nodes with `ray start --address=...`."
            )
        ranks = workers if ranks is None else ranks
        if ranks < 1 or workers % ranks:
            raise PabError(
                f"{workers} workers cannot be divided into teams of {ranks}: choose a number that divides them."
            )
        self._groups: dict[int, Any] = {}  # by team, with its placement group
        teams = [self._places(team, ranks) for team in range(workers // ranks)]
        terms = Terms(self._start, self._store, patience or Patience(), method, idle_seconds, self._fit)
        super().__init__(teams, terms, retries=1)
        self.load(model)

    def _places(self, team: int, count: int) -> list[Place]:
        # Ray shows each worker the one GPU that is its own.
        return [Place("cuda:0" if self._kind == "GPU" else "cpu", rank, team) for rank in range(count)]

    def _where_logs_are(self) -> str:
        return "Ray's own (ray logs, or its dashboard)"

    def _fit(self, team: int, wanted: int) -> Sequence[Place]:
        """Reserves as many places as are wanted and there are; those of before are given up."""
        from ray.exceptions import RayError
        from ray.util import placement_group, remove_placement_group

        if team in self._groups:
            with suppress(Exception):
                remove_placement_group(self._groups.pop(team))
        try:
            for count in range(min(wanted, capacity()[1]), 0, -1):
                group = placement_group([{self._kind: 1}] * count, strategy="PACK")
                if group.wait(_RESERVE if count == wanted else _RESERVE / 4):
                    self._groups[team] = group
                    return self._places(team, count)
                remove_placement_group(group)
        except (RayError, ConnectionError) as error:
            raise WorkerError(f"The cluster of Ray does not answer any more ({error}): start it again.") from None
        raise WorkerError(f"The cluster has no free {self._kind} at present: others use them all. Wait, or add nodes.")

    def _start(self, place: Place, receive: Callable[[Member, Message | None], None]) -> Member:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self._groups[place.team], placement_group_bundle_index=place.index)
        remote: Any = ray.remote(RankActor)
        actor = remote.options(
            **({"num_gpus": 1, "num_cpus": 0} if self._kind == "GPU" else {"num_cpus": 1}),
            scheduling_strategy=strategy,
            max_concurrency=_CALLS,
            max_restarts=0,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        ).remote(place.device)
        return RayMember(place, receive, actor)

    def _store(self, team: int, generation: int, members: Sequence[Member]) -> Mapping[str, Any]:
        import ray

        first = members[0]
        assert isinstance(first, RayMember)
        try:
            host, port = ray.get(first.actor.address.remote(), timeout=_CONNECT)
        except Exception as error:
            raise WorkerError(f"The first worker does not tell where to meet it ({error}).", 0, retry=True) from None
        return {"host": host, "port": port}

    def _close(self) -> None:
        from ray.util import remove_placement_group

        for group in self._groups.values():
            with suppress(Exception):
                remove_placement_group(group)


def connect(address: str) -> None:
    """Joins a cluster as its driver, unless this process has. PabError where none answers, after a bounded wait."""
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise PabError(
            "Ray is not installed: add it with `pip install pyramid-attention-broadcast[ray]`, on every node."
        ) from None
    if ray.is_initialized():
        return
    missing = PabError(
        f"No cluster of Ray answers at '{address}': start one with `ray start --head` on one machine, `ray start "
        "--address=HOST:6379` on the others, and give that address."
    )
    if address not in ("auto", "local"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not port.isdecimal():
            host, port = address, str(_HEAD_PORT)
        try:
            socket.create_connection((host, int(port)), _CONNECT).close()
        except (OSError, OverflowError):
            raise missing from None
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError, RayError):
        raise missing from None


def capacity() -> tuple[str, int]:
    """What the living nodes have: "GPU" and how many, or "CPU" where there is no GPU."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(one.get("GPU", 0)) for one in resources)
    return ("GPU", gpus) if gpus else ("CPU", sum(int(one.get("CPU", 0)) for one in resources))


def count_nodes() -> int:
    import ray

    return sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())
