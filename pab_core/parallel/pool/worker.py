"""The process of one worker: `python -m pab_core.parallel.pool.worker`, started by a pool and never by hand.

Messages come on stdin and go to what was stdout; whatever else is printed goes to stderr, which is the worker's log.
Beside rank.py's messages it sends "ready" (or "unready" with an error), and "beat" as long as its threads run.

It ends with its host however that dies: the pipe closes, which a thread waits for; on Linux the kernel also kills it,
should that thread not get to run.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import BinaryIO

from .protocol import Message, ProtocolError, Read, read_message

BEAT_SECONDS = 0.5
_SIGKILL = 9
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Linux: the kernel kills this process when the thread that started it ends. Elsewhere nothing."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    except (OSError, AttributeError):
        return  # another libc; the pipe remains
    if os.getppid() != parent:  # it died before this took effect
        os._exit(1)


class Outlet:
    """Writes messages one at a time, from any thread; where nobody reads any more, the process ends."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        data = message.to_bytes()
        with self._lock:
            try:
                self._stream.write(data)
                self._stream.flush()
            except (OSError, ValueError):
                os._exit(0)


def take_pipes() -> tuple[BinaryIO, Outlet]:
    """Stdin and stdout for messages; from here on prints, also those of libraries in C, go to stderr."""
    inlet = os.fdopen(os.dup(0), "rb")
    outlet = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return inlet, Outlet(outlet)


def listen(read: Read, take: Callable[[Message], None]) -> None:
    """Takes what the host sends until that has gone, and ends the process."""
    try:
        while (message := read_message(read)) is not None:
            if message.type == "traces":
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
            else:
                take(message)
    except (ProtocolError, OSError):
        pass  # as if it had closed the pipe
    except BaseException:  # such as no memory for a message: a process that hears nothing more must not seem alive
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="pab_core.parallel.pool.worker")
    parser.add_argument("--device", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    inlet, outlet = take_pipes()
    faulthandler.enable(sys.stderr)

    pending: list[Message] = []
    receive = [pending.append]  # until the rank is there; then its own
    handing_over = threading.Lock()

    def take(message: Message) -> None:
        with handing_over:
            receive[0](message)

    def beat() -> None:
        while True:
            outlet.send(Message("beat"))
            time.sleep(BEAT_SECONDS)

    threading.Thread(target=listen, args=(inlet.read, take), name="host", daemon=True).start()
    threading.Thread(target=beat, name="beat", daemon=True).start()

    try:
        import torch

        from .machine import describe_device
        from .rank import Rank

        if options.threads:
            torch.set_num_threads(options.threads)
        about = describe_device(options.device)
        rank = Rank(options.device, outlet.send)
    except Exception as error:
        traceback.print_exc()
        outlet.send(Message("unready", {"error": f"{type(error).__name__}: {error}"}))
        os._exit(1)
    with handing_over:
        for message in pending:
            rank.post(message)
        receive[0] = rank.post
    outlet.send(Message("ready", about))
    rank.run()
    sys.stderr.flush()
    os._exit(0)  # at once: a GPU's libraries may take their time to tear down, or hang


if __name__ == "__main__":
    main()
