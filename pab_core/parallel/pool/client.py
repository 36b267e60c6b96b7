"""The pool in the background, from another program, with the methods of WorkerPool."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import PabError
from .door import Connection, ask, connect
from .failures import JobCancelled, WorkerError
from .job import Job
from .pool import Handle
from .protocol import Message, pack
from .record import OnProgress, Record


class SharedPool:
    """PabError, from each call, where no pool runs in the background."""

    def __init__(self) -> None:
        self._connections: dict[str, Connection] = {}

    def submit(
        self, job: Job, tensors: Mapping[str, Tensor] | None = None, progress: OnProgress | None = None
    ) -> Handle:
        """As WorkerPool.submit. The job ends with this program, should that die before it has its result."""
        connection = connect()
        record = Record(secrets.token_hex(8), job.model_dump(mode="json"), pack(tensors or {}), progress)
        self._connections[record.id] = connection
        try:
            connection.send(Message("submit", {"job": record.job}, record.tensors))
        except OSError:
            connection.close()
            del self._connections[record.id]
            raise PabError(_ENDED) from None
        threading.Thread(target=self._follow, args=(connection, record), name="pab-job", daemon=True).start()
        return Handle(self, record)

    def status(self) -> dict[str, Any]:
        return ask("status")

    def release(self) -> None:
        ask("release")

    def stop(self) -> None:
        """For all that use it."""
        ask("stop")

    def cancel(self, record: Record) -> None:
        record.cancelled.set()
        connection = self._connections.get(record.id)
        if connection is not None and not record.ended:
            with contextlib.suppress(OSError):
                connection.send(Message("cancel"))

    def _follow(self, connection: Connection, record: Record) -> None:
        try:
            with connection:
                while not record.ended:
                    self._hear(connection.read(), record)
        except Exception as error:  # such as a result of another version's, or one for which there is no memory
            record.fail(WorkerError(f"What the pool of workers answered cannot be read ({error!r}); start it again."))
        finally:
            self._connections.pop(record.id, None)

    def _hear(self, message: Message | None, record: Record) -> None:
        if message is None:
            record.fail(WorkerError(_ENDED, retry=True))
        elif message.type == "accepted":
            record.state = "running"  # or waiting there, which makes no difference here
        elif message.type == "progress":
            was = record.cancelled.is_set()
            record.progressed(message)
            if record.cancelled.is_set() and not was:
                self.cancel(record)
        elif message.type == "done":
            record.finish(message, [])
        elif message.type == "failed":
            record.fail(error_from(message))


_ENDED = (
    "The pool of workers in the background has ended, and with it this job; start it again with `pab workers start`."
)


def error_from(message: Message) -> Exception:
    kind, text = message["kind"], message["text"]
    if kind == "cancelled":
        return JobCancelled()
    if kind == "user":
        return PabError(text)
    return WorkerError(text, message.get("rank"), message.get("log", ""), message.get("retry", False))
