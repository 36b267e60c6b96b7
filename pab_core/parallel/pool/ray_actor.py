"""A worker as an actor of Ray: the same rank as a local worker's, spoken to by calls in place of pipes."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from typing import Any

from .protocol import Message, read_message


class RankActor:
    """Its calls run in threads beside each other, so that each message to it carries its place in the order."""

    def __init__(self, device: str) -> None:
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._early: dict[int, Message] = {}
        self._next = 0
        self._rank: Any = None
        name_interfaces()
        threading.Thread(target=self._run, args=(device,), name="rank", daemon=True).start()

    def address(self) -> tuple[str, int]:
        """This node, and a port that is free there, for the ranks to meet."""
        from ray.util import get_node_ip_address

        with socket.socket() as probe:
            probe.bind(("", 0))
            return get_node_ip_address(), probe.getsockname()[1]

    def post(self, number: int, data: bytes) -> None:
        """The message of that number, from 0 on."""
        message = message_of(data)
        with self._lock:
            self._early[number] = message
            self._deliver()

    def poll(self, seconds: float) -> list[bytes]:
        """What it has to say, after at most so long."""
        found = []
        try:
            found.append(self._outbox.get(timeout=seconds))
            while True:
                found.append(self._outbox.get_nowait())
        except queue.Empty:
            return found

    def _deliver(self) -> None:
        while self._rank is not None and self._next in self._early:
            self._rank.post(self._early.pop(self._next))
            self._next += 1

    def _run(self, device: str) -> None:
        try:
            from .machine import describe_device
            from .rank import Rank

            about = describe_device(device)
            rank = Rank(device, self._send)
        except Exception as error:
            self._send(Message("unready", {"error": f"{type(error).__name__}: {error}"}))
            time.sleep(5)  # to be heard
            os._exit(1)
        self._send(Message("ready", about))
        with self._lock:
            self._rank = rank
            self._deliver()
        rank.run()
        os._exit(0)

    def _send(self, message: Message) -> None:
        self._outbox.put(message.to_bytes())


def message_of(data: bytes) -> Message:
    import io

    found = read_message(io.BytesIO(data).read)
    assert found is not None
    return found


def name_interfaces() -> None:
    """Has gloo and NCCL talk over the network that Ray talks over: a machine's own name may lead to its loopback."""
    import psutil
    from ray.util import get_node_ip_address

    own = get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
