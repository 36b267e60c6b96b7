"""The pool in the background: `python -m pab_core.parallel.pool.service`, started by `pab workers start`.

Each connection asks one thing: "status", "release" or "stop", or "submit", which stays open until the job has ended and
cancels it when it closes.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import PabError
from .door import Address, Connection, forget, let_in, listen
from .failures import JobCancelled, WorkerError
from .job import Job
from .pool import BasePool, Handle, WorkerPool
from .protocol import Message, pack
from .record import Made, PoolProgress

_POLL = 0.05  # seconds between two looks at a job
_AGAIN = 0.1  # seconds until a door that failed is opened again


class Service:
    def __init__(self, pool: BasePool, server: socket.socket, address: Address) -> None:
        self._pool = pool
        self._server = server
        self._address = address
        self._stopping = threading.Event()
        self._interrupted = False

    def run(self) -> None:
        """Until somebody asks it to stop."""
        threading.Thread(target=self._accept, name="pab-door", daemon=True).start()
        # A wait with a bound: without one, Windows would not hear of signals.
        while not (self._interrupted or self._stopping.wait(0.5)):
            pass
        self._stopping.set()
        self._server.close()
        try:
            self._pool.stop()
        finally:
            forget(self._address)

    def stop(self) -> None:
        self._stopping.set()

    def interrupt(self, *_: object) -> None:
        """As `stop`, from a signal: those interrupt the very wait for the event, whose lock may not be taken twice."""
        self._interrupted = True

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._server.accept()
            except OSError:
                # A client that went again, or too many open files: the next one may come in.
                self._stopping.wait(_AGAIN)
                continue
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        connection = let_in(sock, self._address)
        if connection is None:
            return
        with connection, contextlib.suppress(OSError):
            asked = connection.read()
            if asked is None:
                return
            if asked.type == "submit":
                self._work(connection, asked)
                return
            if asked.type == "release":
                self._pool.release()
            connection.send(Message("answer", {**self._pool.status(), "pid": self._address.pid}))
            if asked.type == "stop":
                self.stop()

    def _work(self, connection: Connection, asked: Message) -> None:
        previews: deque[Tensor] = deque(maxlen=1)  # the last that has not been sent

        def keep(place: PoolProgress) -> None:
            if place.preview is not None:
                previews.append(place.preview)

        try:
            handle = self._pool.submit(Job.read(asked["job"]), asked.unpack(), keep)
        except Exception as error:
            connection.send(failure_message(error))
            return
        threading.Thread(target=self._listen, args=(connection, handle), daemon=True).start()
        try:
            told: PoolProgress | None = None
            connection.send(Message("accepted", {"id": handle.id}))
            # Looked at from here, not told from the team's thread: a client that reads slowly holds up nobody.
            while not handle.wait(_POLL):
                if handle.place is not None and handle.place is not told:
                    told = handle.place
                    about = {"stage": told.stage, "done": told.done, "total": told.total}
                    preview = {"preview": previews.popleft()} if previews else {}
                    connection.send(Message("progress", about, pack(preview)))
            try:
                made = handle.result(0)
            except Exception as error:
                connection.send(failure_message(error))
            else:
                connection.send(result_message(made))
        except OSError:
            handle.cancel()

    def _listen(self, connection: Connection, handle: Handle) -> None:
        """ "cancel", or the end of the client."""
        connection.read()
        handle.cancel()


def result_message(made: Made) -> Message:
    tensors = {name: tensor for name in ("frames", "latents") if (tensor := getattr(made, name)) is not None}
    return Message("done", {"about": {**made.about, "warnings": list(made.warnings)}}, pack(tensors))


def failure_message(error: Exception) -> Message:
    kind = "bug"
    if isinstance(error, JobCancelled):
        kind = "cancelled"
    elif isinstance(error, WorkerError):
        kind = "worker"
    elif isinstance(error, PabError):
        kind = "user"
    about: dict[str, Any] = {"kind": kind, "text": str(error) or type(error).__name__}
    if isinstance(error, WorkerError):
        about |= {"rank": error.rank, "log": error.log, "retry": error.retry}
    return Message("failed", about)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="pab_core.parallel.pool.service")
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--model")
    parser.add_argument("--idle", type=float)
    parser.add_argument("--ray")
    parser.add_argument("--logs", type=Path)
    options = parser.parse_args(arguments)
    try:
        server, address = listen()
    except PabError as error:
        sys.exit(f"Error: {error}")
    try:
        pool = _pool(options)
    except BaseException as error:
        forget(address)
        sys.exit(f"Error: {error}" if isinstance(error, PabError) else repr(error))
    service = Service(pool, server, address)
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), service.interrupt)
    service.run()


def _pool(options: argparse.Namespace) -> BasePool:
    common = {
        "method": options.method,
        "ranks": options.ranks,
        "model": options.model,
        "idle_seconds": options.idle,
    }
    if options.ray is None:
        return WorkerPool(options.devices, logs=options.logs, **common)
    if options.devices != "auto":
        raise PabError("A pool of Ray takes the devices of its cluster: leave --devices out.")
    from .ray_pool import RayPool

    return RayPool(options.ray, **common)


if __name__ == "__main__":
    main()
