"""What a pool makes of things that go wrong at a bad moment: while it starts, ends, or listens."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pab_core.errors import PabError
from pab_core.parallel.pool import client, door, folder, member, worker
from pab_core.parallel.pool.client import SharedPool
from pab_core.parallel.pool.door import listen
from pab_core.parallel.pool.failures import WorkerError
from pab_core.parallel.pool.job import Job, ModelSource
from pab_core.parallel.pool.member import LocalMember, Member, Place
from pab_core.parallel.pool.pool import BasePool
from pab_core.parallel.pool.protocol import Message
from pab_core.parallel.pool.record import Record
from pab_core.parallel.pool.service import Service
from pab_core.parallel.pool.team import Terms
from pab_core.parallel.pool.watching import Patience

JOB = Job(model=ModelSource(model="demo"), prompt="a ball")


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# the pool


def pool_without_workers(start: Any, places: int = 1) -> BasePool:
    terms = Terms(start, lambda *_: {}, Patience(), "none", None)
    return BasePool([[Place("cpu", 0)]] * places, terms)


def test_a_job_that_ends_while_the_pool_is_stopped_is_no_obstacle():
    class Team:
        """Its job has ended when it is looked at for the second time."""

        def __init__(self) -> None:
            self.jobs = [Record("1", {}, b"")]
            self.did: list[str] = []

        @property
        def running(self) -> Record | None:
            return self.jobs.pop() if self.jobs else None

        def close(self) -> None:
            self.did.append("close")

        def join(self) -> None:
            self.did.append("join")

    pool, team = pool_without_workers(None, places=0), Team()
    (record,) = team.jobs
    pool._teams = [team]  # pyright: ignore[reportAttributeAccessIssue]
    pool.stop()
    assert team.did == ["close", "join"]
    assert record.cancelled.is_set()


def test_a_bug_between_jobs_does_not_end_the_thread_that_takes_them():
    def start(*_: Any) -> Member:
        raise RuntimeError("no cluster")

    with pool_without_workers(start) as pool:
        pool.start()
        until(lambda: pool.status()["trouble"])
        assert pool.status()["trouble"] == ["The workers could not be started: no cluster."]
        with pytest.raises(RuntimeError, match="no cluster"):
            pool.submit(JOB).result(10)


# a worker's process


@pytest.fixture
def process(tmp_path: Path) -> Callable[[str], tuple[LocalMember, list[Message | None]]]:
    """A worker that does what a script says, and what was heard of it."""

    def make(script: str) -> tuple[LocalMember, list[Message | None]]:
        (tmp_path / "pretended_worker.py").write_text(script)
        heard: list[Message | None] = []
        made = LocalMember(
            Place("cpu", 0),
            lambda _, message: heard.append(message),
            tmp_path / "log",
            module="pretended_worker",
            environment={"PYTHONPATH": str(tmp_path)},
        )
        return made, heard

    return make


def test_a_process_that_cannot_be_killed_is_not_waited_for(process: Any, monkeypatch: pytest.MonkeyPatch):
    """As one that waits inside the driver of a GPU that hangs."""
    monkeypatch.setattr(member, "_LAST", 0.2)
    made, heard = process("import time; time.sleep(600)")
    kill = made._process.kill
    monkeypatch.setattr(made._process, "kill", lambda: None)
    made.kill("did not answer")
    until(lambda: heard)
    assert made.gone
    assert made.end() == "did not answer"
    kill()
    assert made.wait(10)
    until(lambda: not any(thread.name == "pab-cpu" for thread in threading.enumerate()))
    assert heard == [None]  # told once


def test_a_process_that_sends_something_else_is_ended_and_named(process: Any):
    made, heard = process("import sys, time; sys.stdout.write('x' * 100); sys.stdout.close(); time.sleep(600)")
    until(lambda: heard)
    assert heard == [None]
    assert made.end() == "sent what cannot be read (this is no message, or one that is too large), and was ended"


def test_a_process_that_ends_within_a_message_is_told_by_its_end(process: Any):
    start = repr(Message("progress", {"stage": "denoise"}).to_bytes()[:30])
    made, heard = process(f"import os, time; os.write(1, {start}); os.close(1); time.sleep(0.3); os._exit(3)")
    until(lambda: heard)
    assert made.end() == "ended by itself (exit code 3)"


class _Exit(BaseException):
    """In place of the end of a process."""


@pytest.mark.parametrize(("error", "code"), [(MemoryError(), 1), (KeyError("type"), 1), (OSError(), 0), (None, 0)])
def test_a_worker_that_hears_nothing_more_ends(monkeypatch: pytest.MonkeyPatch, error: Any, code: int):
    def exit_with(code: int) -> None:
        raise _Exit(code)

    def read(size: int) -> bytes:
        if error is not None:
            raise error
        return b""

    monkeypatch.setattr(os, "_exit", exit_with)
    with pytest.raises(_Exit) as caught:
        worker.listen(read, lambda _: None)
    assert caught.value.args == (code,)


# its folder


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no file that is open")
def test_a_folder_that_is_swept_before_it_is_held_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hold, swept = folder.hold, []

    def hold_late(lock: Any) -> bool:
        if not swept:
            swept.append(lock.name)
            folder.sweep()  # as another process would in this moment
        return hold(lock)

    monkeypatch.setattr(folder, "hold", hold_late)
    made = folder.PrivateFolder()
    assert [made.path] == list(tmp_path.iterdir())
    assert Path(swept[0]).parent != made.path
    folder.sweep()
    assert made.path.is_dir()
    made.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_a_disk_without_locks_is_no_obstacle_and_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setenv("PAB_WORKERS", str(tmp_path / "workers"))
    made = folder.PrivateFolder()
    folder.sweep()
    assert made.path.is_dir()
    made.remove()
    server, address = listen()
    assert door.read_address() == address
    server.close()


# the pool in the background


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAB_WORKERS", str(tmp_path / "workers"))
    return tmp_path / "workers"


@pytest.mark.usefixtures("place")
def test_of_two_pools_that_start_together_one_gives_way(monkeypatch: pytest.MonkeyPatch):
    """The second starts when the first has seen that there is none, and has told nothing yet."""
    connect, second = door.connect, []
    monkeypatch.setattr(door, "_STARTING", 0.2)

    def seen_together() -> Any:
        monkeypatch.setattr(door, "connect", connect)
        try:
            return connect()
        finally:
            with pytest.raises(PabError, match="runs already"):
                second.append(listen())

    monkeypatch.setattr(door, "connect", seen_together)
    server, address = listen()
    assert second == []
    assert door.read_address() == address
    server.close()


class IdlePool:
    def __init__(self) -> None:
        self.stopped = False

    def status(self) -> dict[str, Any]:
        return {"workers": []}

    def stop(self) -> None:
        self.stopped = True


class FlakyDoor:
    """A socket that cannot let the first ones in."""

    def __init__(self, server: socket.socket, errors: list[OSError]) -> None:
        self.server, self.errors = server, errors

    def accept(self) -> Any:
        if self.errors:
            raise self.errors.pop()
        return self.server.accept()

    def close(self) -> None:
        self.server.close()


@pytest.mark.usefixtures("place")
def test_a_door_that_failed_is_opened_again():
    server, address = listen()
    errors = [OSError(errno.EMFILE, "Too many open files"), ConnectionAbortedError()]
    pool: Any = IdlePool()
    flaky: Any = FlakyDoor(server, errors)
    service = Service(pool, flaky, address)
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    until(lambda: not errors)
    assert SharedPool().status() == {"workers": [], "pid": os.getpid()}
    SharedPool().stop()
    thread.join(10)
    assert pool.stopped
    assert door.read_address() is None


@pytest.mark.usefixtures("place")
def test_a_signal_in_the_very_wait_for_the_end_ends_it():
    server, address = listen()
    pool: Any = IdlePool()
    service = Service(pool, server, address)

    def interrupted_in_the_wait() -> None:
        # What the thread holds that a signal interrupts.
        with service._stopping._cond:  # pyright: ignore[reportAttributeAccessIssue]
            service.interrupt()

    thread = threading.Thread(target=interrupted_in_the_wait, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    service.run()
    assert pool.stopped
    assert door.read_address() is None


class PretendedConnection:
    """Gives these answers; sends only where `sends`."""

    def __init__(self, sends: bool, answers: list[Message]) -> None:
        self.sends, self.answers, self.closed = sends, answers, False

    def send(self, message: Message) -> None:
        if not self.sends:
            raise BrokenPipeError

    def read(self) -> Message | None:
        return self.answers.pop(0) if self.answers else None

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> PretendedConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_a_job_that_cannot_be_handed_in_leaves_no_connection(monkeypatch: pytest.MonkeyPatch):
    connection, shared = PretendedConnection(False, []), SharedPool()
    monkeypatch.setattr(client, "connect", lambda: connection)
    with pytest.raises(PabError, match="has ended"):
        shared.submit(JOB)
    assert connection.closed
    assert shared._connections == {}


@pytest.mark.parametrize(
    "answer",
    [Message("done", {"about": {}}), Message("done", {"about": {"seconds": {}}}, b"no tensors"), Message("failed")],
)
def test_an_answer_that_cannot_be_read_ends_the_wait(monkeypatch: pytest.MonkeyPatch, answer: Message):
    """As that of a pool which another version of this program has started."""
    connection, shared = PretendedConnection(True, [Message("accepted", {"id": "1"}), answer]), SharedPool()
    monkeypatch.setattr(client, "connect", lambda: connection)
    with pytest.raises(WorkerError, match="cannot be read"):
        shared.submit(JOB).result(10)
    until(lambda: connection.closed and not shared._connections)
