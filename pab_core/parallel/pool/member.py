"""One worker process as its pool sees it: started, spoken to, watched, ended."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...video_io import NO_WINDOW
from .protocol import BrokenOff, Message, read_message

WORKER = "pab_core.parallel.pool.worker"
ROOT = Path(__file__).resolve().parent.parent.parent.parent  # the folder that holds pab_core
_TAIL = 2000  # bytes of a log that are shown
LARGE_LOG = 2**20  # bytes, after which the next worker begins a new one
_LAST = 10.0  # seconds until a process that was killed counts as gone, even if it is not


@dataclass(frozen=True)
class Place:
    """Where a worker computes. `node`: of Ray's cluster; "" on this machine."""

    device: str
    index: int  # in the pool
    team: int = 0
    node: str = ""


class Member(ABC):
    """A worker, wherever it runs. What it sends goes to `receive`, and None, once, when it has gone."""

    def __init__(self, place: Place, receive: Callable[[Member, Message | None], None]) -> None:
        self.place = place
        self.ready: Mapping[str, Any] | None = None  # what it told of its device
        self.gone = False
        self.cause = ""  # why it was killed, where the pool did it
        self.heard = time.monotonic()
        self.warnings: list[str] = []
        self._receive = receive
        self._once = threading.Lock()

    @abstractmethod
    def send(self, message: Message) -> None:
        """Does not wait, and does not fail: that a worker has gone is told by `receive`."""

    @abstractmethod
    def kill(self, cause: str = "", after: float = 0.0) -> None:
        """Ends it, at once or after so many seconds; `cause` is what is told of it. Does not wait."""

    @abstractmethod
    def end(self) -> str:
        """How it ended, in a few words: "was killed (signal 9)"."""

    @abstractmethod
    def log_tail(self) -> str:
        """The last lines that it printed."""

    @abstractmethod
    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most so long."""

    @property
    def pid(self) -> int | None:
        return None

    def heard_of(self, message: Message | None) -> None:
        """For the threads that read."""
        self.heard = time.monotonic()
        self._receive(self, message)

    def has_gone(self) -> None:
        """From any thread, and as often as it is noticed: the first time, it is told."""
        with self._once:
            if self.gone:
                return
            self.gone = True
        self.heard_of(None)


def make_room(log: Path) -> None:
    """Puts a large log aside, in the place of the one that was put aside before."""
    with suppress(OSError):  # not there yet; or, on Windows, still written to
        if log.stat().st_size > LARGE_LOG:
            log.replace(log.with_name(f"{log.name}.old"))


class LocalMember(Member):
    """A process on this machine. To be made in a thread that lives as long as it should: on Linux it dies with that."""

    def __init__(
        self,
        place: Place,
        receive: Callable[[Member, Message | None], None],
        log: Path,
        *,
        threads: int = 0,
        module: str = WORKER,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(place, receive)
        self.log = log
        self._last: threading.Timer | None = None
        arguments = ["--device", place.device, "--parent", str(os.getpid()), "--threads", str(threads)]
        # Appended to: what a worker that was replaced wrote stays readable.
        make_room(log)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [*python_command(module), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                creationflags=NO_WINDOW,
                start_new_session=True,  # a Ctrl-C in the terminal is for the host, which then tells the workers
            )
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for work in (self._read, self._write):
            threading.Thread(target=work, name=f"pab-{place.device}", daemon=True).start()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, message: Message) -> None:
        self._outbox.put(message.to_bytes())

    def kill(self, cause: str = "", after: float = 0.0) -> None:
        self.cause = self.cause or cause
        if after:  # what was sent is still to have its effect
            timer = threading.Timer(after, self.kill)
            timer.daemon = True
            timer.start()
            return
        self._outbox.put(None)
        if self._process.poll() is None:
            self._process.kill()
            if self._last is None:
                # One that waits inside a GPU's driver dies when that returns, maybe never: nobody waits for it.
                self._last = threading.Timer(_LAST, self.has_gone)
                self._last.daemon = True
                self._last.start()

    def wait(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> str:
        if self.cause:
            return self.cause
        code = self._process.poll()
        if code is None:
            return "stopped answering"
        if code < 0:
            meaning = ": often a sign that the machine's memory was full" if code == -9 else ""
            return f"was killed (signal {-code}{meaning})"
        return f"ended by itself (exit code {code})"

    def log_tail(self) -> str:
        return tail(self.log)

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        cause = ""
        try:
            while (message := read_message(stream.read)) is not None:
                self.heard_of(message)
        except BrokenOff:
            pass
        except Exception as error:  # such as no memory for a message
            cause = f"sent what cannot be read ({str(error) or type(error).__name__}), and was ended"
        if not self.wait(2):  # it closed its pipe, but lives on
            self.kill(cause)
            self._process.wait()
        self._outbox.put(None)
        stream.close()
        self.has_gone()

    def _write(self) -> None:
        """A thread of its own: a worker that is stopped reads nothing, and whoever wrote to it would stop as well."""
        stream = self._process.stdin
        assert stream is not None
        try:
            while (data := self._outbox.get()) is not None:
                stream.write(data)
                stream.flush()
        except (OSError, ValueError):
            pass
        with suppress(OSError):
            stream.close()


def python_command(module: str) -> list[str]:
    """Runs a module of ours with this Python, also where that ignores the folder it is started in (ComfyUI's portable
    one for Windows, whose ._pth file alone says where to look)."""
    isolated = bool(sys.flags.isolated or sys.flags.ignore_environment or getattr(sys.flags, "safe_path", False))
    if not isolated and not any(Path(sys.executable).parent.glob("python*._pth")):
        return [sys.executable, "-m", module]
    boot = f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-c", boot]


def tail(log: Path, size: int = _TAIL) -> str:
    """The end of a file, from the beginning of a line."""
    try:
        with log.open("rb") as stream:
            length = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, length - size))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return (text.partition("\n")[2] if length > size else text).strip()
