"""The ranks that make one video together, and the thread that has them do one job after the other.

Every rank's process may die, stop or run out of memory at any moment. What then holds:

- The first rank that fails names the cause; the others are told not to wait, end the job too, and keep their model.
- Processes that have gone are started anew, and all join a new process group before the next job.
- A process that does not end its part in time is killed: whatever happens, the team comes to rest in bounded time.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from .choice import Costs, Plan, Shape, check, choose
from .failures import Failure, JobCancelled, WorkerError, cause_of, error_of
from .member import Member, Place
from .protocol import Message
from .record import PoolProgress, Record
from .roster import TICK, Fit, Roster, Start, Store
from .watching import Patience, Watch

# What a link is taken for until it is measured: seconds a call, bytes a second.
_USUAL = {"cuda": (3e-5, 1e11), "cpu": (2e-4, 1e9)}


@dataclass(frozen=True)
class Terms:
    """What a team is told of its pool. method: of `parallel.METHODS`, or "auto"."""

    start: Start
    store: Store
    patience: Patience
    method: str
    idle_seconds: float | None
    fit: Fit | None = None


class Team:
    """`take` gives the next job of the queue, or None."""

    def __init__(self, index: int, places: Sequence[Place], terms: Terms, take: Callable[[], Record | None]) -> None:
        self.index = index
        self.roster = Roster(index, places, terms.start, terms.store, terms.patience, terms.fit)
        self.running: Record | None = None
        self._terms = terms
        self._take = take
        self._chosen: dict[str, Plan] = {}
        self._wanted = False  # whether processes are to be there
        self._release = False
        self._closing = False
        self._ranks = len(self.roster.places)  # that the last job took
        self._idle_since = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=f"pab-team-{index}", daemon=True)
        self._thread.start()

    # --------------------------------------------------------------------------------------------- for other threads

    def wake(self) -> None:
        """There may be something to do."""
        self.roster.poke()

    def start(self) -> None:
        """Has the processes started before there is a job."""
        self._wanted, self._idle_since = True, time.monotonic()
        self.wake()

    def release(self) -> None:
        """Ends the processes as soon as no job is waiting; the next one starts them again."""
        self._release = True
        self.wake()

    def close(self) -> None:
        """Ends the team, soon; what runs is given a moment to be cancelled."""
        self._closing = True
        self.wake()

    def join(self) -> None:
        """Waits until it has ended."""
        self._thread.join(self._terms.patience.settle + 10)

    def status(self) -> list[dict[str, Any]]:
        """One entry a rank."""
        members = dict(self.roster.members)
        rows = []
        for rank, place in enumerate(self.roster.places):
            member = members.get(rank)
            about = (member.ready if member else None) or {}
            state = "off" if member is None else "starting" if member.ready is None else "ready"
            if state == "ready" and self.running is not None:
                state = "working"
            rows.append(
                {"team": self.index, "rank": rank, "device": place.device, "node": place.node, "state": state}
                | {"pid": member.pid if member else None, "name": about.get("name"), "memory": about.get("memory")}
            )
        return rows

    # ---------------------------------------------------------------------------------------------------- the thread

    def _work(self) -> None:
        while not self._closing:
            record = self._take()
            if record is not None:
                self.running, self._wanted = record, True
                self._perform(record)
                self.running, self._idle_since = None, time.monotonic()
            else:
                self._tend()
                self.roster.next_event(TICK if self.roster.members else 5.0)
        self.roster.stop()

    def _perform(self, record: Record) -> None:
        """One job; whatever happens, it ends here."""
        told = ""
        while not record.ended:
            try:
                plan = self._plan(record)
                if record.lost:
                    why, record.lost = record.lost.split(" Its log ends:")[0], ""
                    told = f"{why} It was made again, on {plan.ranks} of the devices that were left."
                self._run(record, replace(plan, why=" ".join(filter(None, [told, plan.why]))))
            except (WorkerError, JobCancelled) as error:
                self._wanted = bool(self.roster.members)
                record.lost = ""
                record.fail(error)
            except Exception as error:  # also a bug of the pool's own must not leave a job that never ends
                record.lost, record.retries = "", 0
                record.fail(error)

    def _tend(self) -> None:
        """What there is to do between jobs."""
        idle = self._terms.idle_seconds
        over = idle is not None and time.monotonic() - self._idle_since > idle
        if self._release or over:
            self._wanted = False
            self.roster.stop()
        self._release = False
        if not self._wanted:
            return
        self.roster.kill_silent()
        if not self.roster.complete or self.roster.joined != min(self._ranks, len(self.roster.places)) > 1:
            try:
                self.roster.make_ready(self._ranks, self._check_open)
            except (WorkerError, JobCancelled):
                self._wanted = False  # why is kept in `trouble`; the next job tries again
            except Exception as error:  # also a bug of the pool's own must not end the thread that takes the jobs
                self._wanted = False
                self.roster.trouble = f"The workers could not be started: {error or type(error).__name__}."

    def _check_open(self) -> None:
        if self._closing or self._release:
            raise JobCancelled

    # ------------------------------------------------------------------------------------------------------ the choice

    def _plan(self, record: Record) -> Plan:
        """How a job is shared out."""
        self.roster.make_ready(1, lambda: self._check_wanted(record))  # how many there are is known only then
        ranks, method = len(self.roster.places), self._terms.method
        if ranks == 1:
            return Plan("none", 1)
        task = record.job["task"]
        if task == "load":
            return Plan("none", ranks)
        if method != "auto":
            return Plan(method, ranks if method != "none" else 1)
        if task == "decode":
            return Plan("dsp", ranks)
        asked = ("model", "num_frames", "height", "width", "guidance")
        key = json.dumps([ranks, *(record.job[name] for name in asked)])
        if key not in self._chosen:
            self._chosen[key] = self._choose(record, ranks)
        return self._chosen[key]

    def _choose(self, record: Record, ranks: int) -> Plan:
        """By the cost model, once the model's figures are measured; see choice.py."""
        first = self._measure(record, Plan("none", 1))
        shape = Shape.from_plain(first["shape"])
        device = self.roster.places[0].device.split(":")[0]
        costs = Costs(first["step"], *_USUAL.get(device, _USUAL["cpu"]))
        plan, measured = choose(ranks, shape, costs), None
        for _ in range(2):  # the link, once measured, may suggest another method
            if plan.ranks == 1:
                break
            found = self._measure(record, plan)
            measured = found["step"]
            costs = Costs(costs.alone, found["link"]["latency"], found["link"]["bandwidth"])
            better = choose(ranks, shape, costs)
            if better == plan:
                break
            plan, measured = better, None
        return check(plan, ranks, shape, costs, measured)

    def _measure(self, record: Record, plan: Plan) -> Mapping[str, Any]:
        def tell(event: PoolProgress) -> None:
            record.stands(event)

        job = {**record.job, "task": "measure", "previews": False, "policy": "off"}
        trial = Record(f"{record.id}-measure", job, b"", tell, cancelled=record.cancelled)
        self._run(trial, plan)
        return trial.result().about

    # ---------------------------------------------------------------------------------------------------------- a job

    def _check_wanted(self, record: Record) -> None:
        if self._closing or record.cancelled.is_set():
            raise JobCancelled

    def _run(self, record: Record, plan: Plan) -> None:
        """Until all ranks have ended it, or are killed."""
        roster, patience = self.roster, self._terms.patience
        roster.make_ready(plan.ranks, lambda: self._check_wanted(record))
        if len(roster.places) < plan.ranks:
            raise WorkerError(f"Only {len(roster.places)} of {plan.ranks} devices are left.", retry=True)
        self._ranks = plan.ranks
        about = {"id": record.id, "job": record.job, "method": plan.method, "alone": plan.ranks == 1}
        running = {rank: roster.members[rank] for rank in range(plan.ranks)}
        for member in running.values():
            member.send(Message("job", about, record.tensors))
        roster.paused = 0.0
        watches = {rank: Watch(patience, time.monotonic()) for rank in running}
        failures: list[Failure] = []
        answer: Message | None = None
        deadline, told, aborted = 0.0, False, False
        while running:
            event = roster.next_event()
            now = time.monotonic()
            for watch in watches.values():
                watch.postpone(roster.paused)
            roster.paused = 0.0
            if (record.cancelled.is_set() or self._closing) and not told:
                told = True
                for other in running.values():
                    other.send(Message("cancel", {"id": record.id}))
            if event is not None and running.get(event.rank) is event.member:
                rank, member, message = event.rank, event.member, event.message
                if message is None:
                    del running[rank]
                    failures.append(Failure(rank, member.place.device, "gone", member.end(), member.log_tail()))
                    # Whoever waits is told now; the team has yet to come to rest.
                    record.fail(error_of(failures[-1], watches[rank].place))
                elif message.get("id") == record.id:
                    if message.type == "progress":
                        watches[rank].progress(message["stage"], message["done"], message["total"], now)
                        if rank == 0:
                            record.progressed(message)
                    elif message.type == "done":
                        del running[rank]
                        answer = message if rank == 0 else answer
                    elif message.type == "failed":
                        del running[rank]
                        roster.joined = roster.joined if message["intact"] or plan.ranks == 1 else 0
                        log = message["trace"] or (member.log_tail() if message["kind"] == "bug" else "")
                        failures.append(Failure(rank, member.place.device, message["kind"], message["text"], log))
            if (failures or self._closing) and not deadline:
                deadline = now + patience.settle
            if failures and not roster.joined and not aborted:  # else all end at the same place, by agreement
                aborted = True
                for other in running.values():
                    other.send(Message("abort", {"id": record.id}))
            if deadline and now > deadline:
                deadline = float("inf")
                if not failures:  # the pool is stopped, and they do not hear of it
                    record.fail(JobCancelled())
                for other in running.values():
                    other.kill("did not end its part in time, and was ended")
            self._look_after(running, watches)
        if failures:
            worst = cause_of(failures)
            record.fail(error_of(worst, watches[worst.rank].place))
        elif answer is not None:
            record.finish(answer, [*roster.warnings, *filter(None, [plan.why])])
        else:
            record.fail(WorkerError("The workers ended without a result; this is a bug of the pool."))

    def _look_after(self, running: Mapping[int, Member], watches: Mapping[int, Watch]) -> None:
        """Kills those that have stopped: one whose process is silent, else all that make no progress."""
        if self.roster.kill_silent():
            return
        now = time.monotonic()
        for rank, member in running.items():
            if watches[rank].overdue(now) and not member.cause:
                # They wait for each other: which one is to blame, only their logs may tell.
                member.send(Message("traces"))
                with suppress(OSError):
                    member.kill(f"made no progress for {watches[rank].bound:.0f} s", after=0.5)
