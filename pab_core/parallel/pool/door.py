"""The way to the pool that `pab workers start` runs in the background: where it listens, and who may come in.

It listens on the loopback interface. A file that only its user can read has the port and a secret; both sides prove
that they know the secret without sending it, so that neither another user's client comes in nor another user's server,
on a port that has become free, is believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import PabError
from .folder import hold
from .protocol import Message, ProtocolError, read_message

_NAME = "pool.json"
_LOCK = "starting"
_HOST = "127.0.0.1"
_GREETING = 4096  # bytes of a header, before who sends it has been believed
_SECONDS = 10.0
_STARTING = 20.0  # seconds that another may take to see whether a pool runs, and to tell of its own


@dataclass(frozen=True)
class Address:
    port: int
    secret: str
    pid: int


class Connection:
    """Messages over a socket, from both sides."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._stream: BinaryIO = sock.makefile("rb")

    def send(self, message: Message) -> None:
        """OSError where the other side has gone."""
        self._socket.sendall(message.to_bytes())

    def read(self, **limits: int) -> Message | None:
        """None where the other side has gone, or sends what is no message."""
        try:
            return read_message(self._stream.read, **limits)
        except (OSError, ValueError, ProtocolError):
            return None

    def greet(self) -> Message | None:
        """The next message of who is not believed yet."""
        return self.read(most_header=_GREETING, most_tensors=0)

    def patient(self) -> None:
        """From here on no wait is bounded."""
        self._socket.settimeout(None)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError, ValueError):
            self._stream.close()
        self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def workers_folder() -> Path:
    """$PAB_WORKERS, else a folder of the user's cache; made for the user alone."""
    folder = Path(os.environ.get("PAB_WORKERS") or Path.home() / ".cache" / "pab" / "workers")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    return folder


# --- the pool's side --------------------------------------------------------------------------------------------------


def listen() -> tuple[socket.socket, Address]:
    """A socket on a free port, which is told in the folder. PabError where a pool runs already, or is just starting."""
    with _one_at_a_time():
        try:
            connect().close()
        except PabError:
            pass
        else:
            raise PabError(_RUNS)
        (workers_folder() / _NAME).unlink(missing_ok=True)  # nobody answers there
        server = socket.create_server((_HOST, 0))
        address = Address(server.getsockname()[1], secrets.token_hex(32), os.getpid())
        try:
            handle = os.open(workers_folder() / _NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            server.close()
            raise PabError(_RUNS) from None
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(address), file)
        return server, address


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Of two that start together, none takes away what the other has told. PabError where another does not end."""
    with (workers_folder() / _LOCK).open("ab") as lock:
        until = time.monotonic() + _STARTING
        with contextlib.suppress(OSError):  # of a file system that knows no locks
            while not hold(lock):
                if time.monotonic() > until:
                    raise PabError(_RUNS)
                time.sleep(0.05)
        yield


def forget(address: Address) -> None:
    """Takes away what `listen` told, if it is still ours."""
    if read_address() == address:
        (workers_folder() / _NAME).unlink(missing_ok=True)


def let_in(sock: socket.socket, address: Address) -> Connection | None:
    """The connection of a client that knows the secret; None and closed for any other."""
    sock.settimeout(_SECONDS)
    connection = Connection(sock)
    hello = connection.greet()
    theirs = hello.get("nonce") if hello is not None and hello.type == "hello" else None
    if isinstance(theirs, str):
        ours = secrets.token_hex(16)
        with contextlib.suppress(OSError):
            connection.send(Message("proof", {"nonce": ours, "mac": _mac(address, "pool", theirs, ours)}))
            answer = connection.greet()
            if answer is not None and _equal(answer.get("mac"), _mac(address, "client", theirs, ours)):
                connection.send(Message("welcome"))
                connection.patient()
                return connection
    connection.close()
    return None


# --- the clients' side ------------------------------------------------------------------------------------------------


def connect() -> Connection:
    """A connection to the pool in the background. PabError where there is none."""
    address = read_address()
    if address is None:
        raise PabError(_NONE)
    try:
        connection = Connection(socket.create_connection((_HOST, address.port), _SECONDS))
    except OSError:
        raise PabError(_NONE) from None
    ours = secrets.token_hex(16)
    with contextlib.suppress(OSError):
        connection.send(Message("hello", {"nonce": ours}))
        proof = connection.greet()
        theirs = proof.get("nonce") if proof is not None else None
        if (
            proof is not None
            and isinstance(theirs, str)
            and _equal(proof.get("mac"), _mac(address, "pool", ours, theirs))
        ):
            connection.send(Message("proof", {"mac": _mac(address, "client", ours, theirs)}))
            welcome = connection.greet()
            if welcome is not None and welcome.type == "welcome":
                connection.patient()
                return connection
    connection.close()
    raise PabError(_NONE)


def ask(question: str) -> dict[str, Any]:
    """ "status", "release" or "stop" -> the pool's answer. PabError where there is no pool."""
    with connect() as connection:
        connection.send(Message(question))
        answer = connection.read()
    if answer is None:
        raise PabError("The pool of workers ended before it answered; start it again with `pab workers start`.")
    return dict(answer.about)


def read_address() -> Address | None:
    try:
        return Address(**json.loads((workers_folder() / _NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


_NONE = "No pool of workers runs in the background: start one with `pab workers start`."
_RUNS = "A pool of workers runs already: use it, or end it with `pab workers stop`."


def _mac(address: Address, side: str, *nonces: str) -> str:
    return hmac.new(bytes.fromhex(address.secret), "|".join([side, *nonces]).encode(), hashlib.sha256).hexdigest()


def _equal(found: Any, expected: str) -> bool:
    return isinstance(found, str) and hmac.compare_digest(found.encode(), expected.encode())
