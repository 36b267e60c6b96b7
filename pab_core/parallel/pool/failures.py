"""What goes wrong in a pool, as the user is told it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import PabError


class WorkerError(PabError):
    """A worker failed; the message says which, why, and what its log says last.

    rank: of the worker in its team. retried: whether another attempt may go better (it died; not out of memory).
    """

    def __init__(self, text: str, rank: int | None = None, log: str = "", retry: bool = False) -> None:
        super().__init__(text)
        self.rank = rank
        self.log = log
        self.retry = retry


class JobCancelled(Exception):
    """The job ended at its user's wish."""

    def __str__(self) -> str:
        return "The job was cancelled."


@dataclass(frozen=True)
class Failure:
    """How one rank ended a job. kind: as in rank.py, or "gone", of a process that ended."""

    rank: int
    device: str
    kind: str
    text: str
    log: str = ""


# The first of these that any rank has is the cause, the others its consequences.
_CAUSES = ("gone", "memory", "user", "bug", "cancelled", "peer")
_REMEDIES = (
    (("no space left on device", "/dev/shm", "shared memory"), "shared memory is used up: make /dev/shm larger (in a "
     "container, --shm-size=1g), or set NCCL_SHM_DISABLE=1"),
    (("address already in use", "cannot assign requested address"), "no free port was left: wait a minute, or end "
     "other programs that hold many connections"),
    (("too many open files",), "too many files are open: raise the limit (ulimit -n)"),
)  # fmt: skip


def cause_of(failures: Sequence[Failure]) -> Failure:
    return min(failures, key=lambda failure: (_CAUSES.index(failure.kind), failure.rank))


def error_of(failure: Failure, doing: str) -> Exception:
    """What the job's `result` raises."""
    where = f"rank {failure.rank} ({failure.device})"
    if failure.kind == "cancelled":
        return JobCancelled()
    if failure.kind == "user":
        return PabError(failure.text)
    if failure.kind == "memory":
        return WorkerError(
            f"There is not enough memory for this clip on {where}: choose a smaller size or fewer frames, or more "
            "devices. Other jobs are not affected.",
            failure.rank,
            failure.text,
        )
    log = f" Its log ends:\n{failure.log}" if failure.log else ""
    if failure.kind == "gone":
        return WorkerError(
            f"The worker of {where} {failure.text} {doing}; the job is lost. The pool starts it anew: try again.{log}",
            failure.rank,
            failure.log,
            retry=True,
        )
    if failure.kind == "peer":
        said = failure.text.split(". This is typically")[0]
        return WorkerError(
            f"The connection between the workers broke at {where} {doing} ({said}). {remedy(failure.text)}{log}",
            failure.rank,
            failure.log,
            retry=True,
        )
    return WorkerError(f"Something in the program failed on {where} {doing}: {failure.text}.{log}", failure.rank,
                       failure.log)  # fmt: skip


def remedy(text: str) -> str:
    """What to do about an error of the machine's, if it is one that is known."""
    low = text.lower()
    for signs, advice in _REMEDIES:
        if any(sign in low for sign in signs):
            return f"Perhaps {advice}."
    return "Try again; if it stays, use one device."
