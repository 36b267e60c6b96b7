"""The ranks of `pab bench scaling` as the process that started them sees them: asked together, heard together."""

from __future__ import annotations

import os
import queue
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..parallel.pool.member import LocalMember, Member, Place
from ..parallel.pool.protocol import Message

RANKS = "pab_core.evaluate.scaling_ranks"
_PATIENCE = 180.0  # seconds that ranks wait for each other
_GRACE = 3.0  # seconds in which a rank's end is heard of


class RankLost(Exception):
    """The ranks cannot go on; the text is a sentence that says why, `log` the last lines of the rank at fault."""

    def __init__(self, text: str, log: str = ""):
        super().__init__(text)
        self.log = log


class AllFailed(RankLost):
    """All ranks at work failed at what was asked of them, as it will be with what none of them can do: they go on.

    lacking: for want of memory.
    """

    def __init__(self, text: str, log: str = "", lacking: bool = False):
        super().__init__(text, log)
        self.lacking = lacking


class World:
    """One process a rank, from `with` to its end. PabError is not raised here: a rank that dies is no mistake of the
    user's."""

    def __init__(self, ranks: int, device: str):
        """device: cuda, of which each rank has its own, or cpu."""
        self.ranks = ranks
        self._heard: queue.SimpleQueue[tuple[Member, Message | None]] = queue.SimpleQueue()
        self._folder = tempfile.TemporaryDirectory(prefix="pab-scaling-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        # All of the caller's environment holds; NVLink's multicast is of no use to an all-to-all, and some hosts do not
        # stand it. As many threads as cores in each rank would stand in each other's way.
        usual = {"NCCL_NVLS_ENABLE": "0", "OMP_NUM_THREADS": "1"}
        environment = {name: os.environ.get(name, value) for name, value in usual.items()}
        self.members: list[LocalMember] = []
        for rank in range(ranks):
            place = Place(f"cuda:{rank}" if device == "cuda" else "cpu", rank)
            log = folder / f"rank-{rank}.log"
            self.members.append(LocalMember(place, self._hear, log, module=RANKS, environment=environment))

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.kill()
        for member in self.members:
            member.wait(10)
        self._folder.cleanup()

    def meet(self, devices: list[int], seconds: float) -> list[Mapping[str, Any]]:
        about = {"ranks": self.ranks, "store": str(Path(self._folder.name) / "meeting"), "devices": devices}
        about |= {"seconds": _PATIENCE, "folder": str(Path.cwd())}
        messages = [Message("meet", {**about, "rank": rank}) for rank in range(self.ranks)]
        return self._ask(messages, seconds, self.ranks)

    def ask(
        self, kind: str, about: Mapping[str, Any], seconds: float, working: int | None = None
    ) -> list[Mapping[str, Any]]:
        """-> the answers, by rank.

        Args:
            working: so many of the first ranks have something to do; None: all.

        Raises:
            AllFailed: see there.
            RankLost: a rank died or failed, or they took longer than so many seconds.
        """
        return self._ask([Message(kind, about)] * self.ranks, seconds, self.ranks if working is None else working)

    def _ask(self, messages: list[Message], seconds: float, working: int) -> list[Mapping[str, Any]]:
        for member, message in zip(self.members, messages, strict=True):
            member.send(message)
        answers: dict[int, Message] = {}
        failed: list[Member] = []
        deadline = time.monotonic() + seconds
        while len(answers) < self.ranks:
            try:
                member, answer = self._heard.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                if failed:
                    break
                late = next(member for member in self.members if member.place.index not in answers)
                raise RankLost(f"{_name(late)} did not answer within {seconds:.0f} s.", late.log_tail()) from None
            if answer is None:
                raise RankLost(f"{_name(member)} {member.end()}.", member.log_tail())
            answers[member.place.index] = answer
            if answer.type == "failed":
                failed.append(member)
                # A rank that dies makes others fail, who may say so sooner; and one that fails alone is waited for.
                deadline = min(deadline, time.monotonic() + _GRACE)
        if failed:
            first = failed[0]
            why = answers[first.place.index]
            text, log = f"{_name(first)} failed: {why['error']}", first.log_tail()
            if len(failed) == working and len(answers) == self.ranks:
                raise AllFailed(text, log, why["lacking"])
            raise RankLost(text, log)
        return [answers[rank].about for rank in range(self.ranks)]

    def _hear(self, member: Member, message: Message | None) -> None:
        self._heard.put((member, message))


def _name(member: Member) -> str:
    return f"Rank {member.place.index} ({member.place.device})"
