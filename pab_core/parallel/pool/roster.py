"""The processes of a team: started, joined in a process group, listened to, replaced, ended.

All of it belongs to the team's one thread, but for what the members' own threads put into its queue of events.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .failures import WorkerError, remedy
from .member import Member, Place
from .protocol import Message
from .watching import Patience

TICK = 0.2  # seconds between two looks at the clock
_ATTEMPTS = 3  # to start and join before a job is given up
_GAP = 20  # ticks without one: this process itself was stopped

Start = Callable[[Place, Callable[[Member, Message | None], None]], Member]
Fit = Callable[[int, int], Sequence[Place]]  # (team, places wanted) -> those that there are
Store = Callable[[int, int, Sequence[Member]], Mapping[str, Any]]  # (team, generation, members), see Group.join


@dataclass(frozen=True)
class Event:
    """What came from a rank; message None: its process has gone, and is off the roster."""

    rank: int
    member: Member
    message: Message | None


@dataclass(frozen=True)
class _Reason:
    """Why a rank could not be started or joined."""

    rank: int
    text: str
    log: str = ""


class Roster:
    """`still_wanted` is called while there is a wait, and ends it by raising."""

    def __init__(
        self, team: int, places: Sequence[Place], start: Start, store: Store, patience: Patience, fit: Fit | None = None
    ) -> None:
        self.team = team
        self.places = tuple(places)
        self.members: dict[int, Member] = {}  # by rank
        self.joined = 0  # how many of them, from the first on, are in one process group
        self.warnings: list[str] = []
        self.paused = 0.0  # seconds that this process itself was stopped, as far as nobody has taken note of it
        self.trouble = ""  # why they could not be started last time
        self._start = start
        self._store = store
        self._patience = patience
        self._fit = fit
        self._wanted = len(places)
        self._events: queue.Queue[tuple[Member | None, Message | None]] = queue.Queue()
        self._generation = 0
        self._ticked = time.monotonic()

    @property
    def complete(self) -> bool:
        return len(self.members) == len(self.places)

    # ----------------------------------------------------------------------------------------------------- to be ready

    def make_ready(self, ranks: int, still_wanted: Callable[[], None]) -> None:
        """Every place has its process, and the first `ranks` are joined. WorkerError where that does not succeed."""
        reason = None
        for _ in range(_ATTEMPTS):
            reason = self._start_missing(still_wanted)
            if reason is None:
                reason = self._join(min(ranks, len(self.places)), still_wanted)
            if reason is None:
                self.trouble = ""
                return
        assert reason is not None
        where = f"rank {reason.rank} ({self.places[reason.rank].device})"
        self.trouble = f"The worker of {where} could not be started: {reason.text}. {remedy(reason.text)}"
        log = f" Its log ends:\n{reason.log}" if reason.log else ""
        raise WorkerError(self.trouble + log, reason.rank, reason.log)

    def _start_missing(self, still_wanted: Callable[[], None]) -> _Reason | None:
        if self._fit is not None and not self.complete:
            # Places elsewhere come and go together: those that are left start anew as well.
            self.clear("was started anew")
            self.places = tuple(self._fit(self.team, self._wanted))
        for rank, place in enumerate(self.places):
            if rank not in self.members:
                try:
                    self.members[rank] = self._start(place, self._arrived)
                except OSError as error:
                    return _Reason(rank, str(error))
        deadline = time.monotonic() + self._patience.start
        reason = None
        while any(member.ready is None for member in self.members.values()):
            still_wanted()
            event = self.next_event()
            if event is None:
                if time.monotonic() > deadline:
                    self.kill("was not ready in time", lambda member: member.ready is None)
            elif event.message is None:
                reason = reason or _Reason(event.rank, event.member.end(), event.member.log_tail())
            elif event.message.type == "unready":
                reason = reason or _Reason(event.rank, event.message["error"], event.member.log_tail())
        if reason is None and self.complete:
            self._note_devices()
            return None
        return reason or _Reason(0, "it ended as soon as it was started")

    def _join(self, ranks: int, still_wanted: Callable[[], None]) -> _Reason | None:
        if self.joined == ranks or ranks == 1:
            return None
        self.joined = 0
        self._generation += 1
        members = [self.members[rank] for rank in range(ranks)]
        about = {
            "generation": self._generation,
            "size": ranks,
            "backend": self._backend(),
            "store": dict(self._store(self.team, self._generation, members)),
            "seconds": self._patience.load,
        }
        for rank, member in enumerate(members):
            member.send(Message("group", {**about, "rank": rank}))
        missing = set(range(ranks))
        reason: _Reason | None = None
        deadline = time.monotonic() + self._patience.join
        while missing and reason is None:
            still_wanted()
            event = self.next_event()
            if event is None:
                if time.monotonic() > deadline:
                    reason = _Reason(min(missing), "it did not find the others in time")
            elif event.rank >= ranks:
                continue
            elif event.message is None:
                reason = _Reason(event.rank, event.member.end(), event.member.log_tail())
            elif event.message.type == "grouped" and event.message["generation"] == self._generation:
                missing.discard(event.rank)
                if event.message["error"]:
                    reason = _Reason(event.rank, event.message["error"], event.member.log_tail())
        if reason is None:
            self.joined = ranks
        else:
            # Those that wait for the one that failed would wait long: to start them anew is sooner done.
            self.clear("was started anew")
        return reason

    def _note_devices(self) -> None:
        """What is to be said of the devices once they are known."""
        ready = [self.members[rank].ready or {} for rank in range(len(self.places))]
        memory = [about["memory"] for about in ready if about.get("memory")]
        warnings = []
        if len({about.get("name") for about in ready}) > 1 or (memory and max(memory) > 1.1 * min(memory)):
            sizes = ", ".join(
                f"{place.device} {about.get('name')}"
                + (f" {about['memory'] / 2**30:.0f} GiB" if about.get("memory") else "")
                for place, about in zip(self.places, ready, strict=True)
            )
            warnings.append(f"The devices differ ({sizes}): the smallest decides what fits, and the slowest how fast.")
        if len(self.places) > 1 and self._backend() is None:
            kept, *others = self.places
            warnings.append(
                "This torch cannot connect the devices with each other (for GPUs it needs NCCL, which Windows has "
                f"not): every video is made on {kept.device} alone."
            )
            self.places = (kept,)
            for rank in range(1, 1 + len(others)):
                self.members.pop(rank).kill("is not needed")
        self.warnings = warnings

    def _backend(self) -> str | None:
        """How the ranks talk; None where they cannot."""
        ready = [self.members[rank].ready or {} for rank in range(len(self.places))]
        on_gpu = [place.device.startswith("cuda") for place in self.places]
        if all(on_gpu) and all(about.get("nccl") for about in ready):
            return "nccl"
        on_cpu = all(place.device == "cpu" for place in self.places)
        return "gloo" if on_cpu and all(about.get("gloo") for about in ready) else None

    # ---------------------------------------------------------------------------------------------------------- events

    def poke(self) -> None:
        """From any thread: ends the wait of `next_event`."""
        self._events.put((None, None))

    def next_event(self, seconds: float = TICK) -> Event | None:
        """None where nothing came in time. Of processes that were replaced nothing is told."""
        try:
            member, message = self._events.get(timeout=seconds)
        except queue.Empty:
            member, message = None, None
        now = time.monotonic()
        if now - self._ticked > _GAP * max(seconds, TICK):
            self.paused += now - self._ticked
            for other in self.members.values():
                other.heard = now
        self._ticked = now
        rank = next((rank for rank, known in self.members.items() if known is member), None)
        if member is None or rank is None:
            return None
        if message is None:
            del self.members[rank]
            if rank < self.joined:
                self.joined = 0
        elif message.type == "ready":
            member.ready = message.about
        return Event(rank, member, message)

    def _arrived(self, member: Member, message: Message | None) -> None:
        """From the members' threads."""
        if message is None or message.type != "beat":
            self._events.put((member, message))

    # ------------------------------------------------------------------------------------------------------ to an end

    def kill(self, cause: str, condition: Callable[[Member], bool] = lambda member: True) -> None:
        """That they have gone is told by an event, as ever."""
        for member in self.members.values():
            if condition(member):
                member.kill(cause)

    def kill_silent(self) -> bool:
        """Kills the processes of which no thread gives a sign of life."""
        now, bound = time.monotonic(), self._patience.beat
        silent = [m for m in self.members.values() if m.ready is not None and now - m.heard > bound and not m.cause]
        for member in silent:
            member.kill(f"did not answer for {bound:.0f} s")
        return bool(silent)

    def clear(self, cause: str) -> None:
        """Kills all; nothing more is told of them."""
        self.kill(cause)
        for member in self.members.values():
            member.wait(5)
        self.members.clear()
        self.joined = 0

    def stop(self) -> None:
        """Asks all to end, and kills those that do not."""
        members = list(self.members.values())
        for member in members:
            member.send(Message("stop"))
        until = time.monotonic() + 5
        for member in members:
            if not member.wait(max(0.0, until - time.monotonic())):
                member.kill("was stopped")
                member.wait(5)
        self.members.clear()
        self.joined = 0
