"""The real ComfyUI as a subprocess of a test, spoken to as its page does: HTTP and one websocket."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import websocket
from provision import Host

START_TIMEOUT = 300.0  # seconds; it takes about 6 on an idle machine
PREVIEW_IMAGE, TEXT, PREVIEW_IMAGE_WITH_METADATA = 1, 3, 4  # kinds of binary message of the host's websocket

# The proxy of the surrounding shell, if any, must not be asked for 127.0.0.1.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(RuntimeError):
    """The server did not start, did not answer in time, or refused a request."""


@dataclass(frozen=True)
class Event:
    """One message of the server. `data`: its JSON, or a preview's metadata. `picture`: a preview's JPEG or PNG."""

    kind: str
    data: dict[str, Any]
    picture: bytes = b""
    at: float = 0.0


class ComfyServer:
    """ComfyUI with one plugin, over a base folder of its own (custom_nodes/, models/, input/, output/, user/).

    A context manager: it is ready inside the `with`, and stopped after it.
    """

    def __init__(
        self,
        host: Host,
        base: Path,
        plugin: Path | None = None,
        arguments: tuple[str, ...] = ("--cpu",),
        environment: dict[str, str] | None = None,
    ):
        self.host, self.base, self.arguments, self.environment = host, base, arguments, environment or {}
        self.client_id = uuid.uuid4().hex
        self.events: list[Event] = []
        self.news = threading.Condition()
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        for folder in ("custom_nodes", "models", "input", "output", "user/default"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (base / "user/default/comfy.settings.json").write_text('{"Comfy.TutorialCompleted": true}')
        if plugin:
            shutil.copytree(plugin, base / "custom_nodes" / plugin.name)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        file = self.base / "server.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.splitlines()[-lines:])

    # --- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> ComfyServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # What this test process imports from must not leak into the host: its own `nodes`, `server`, ... are top-level.
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment |= self.environment
        command = [str(self.host.python), "main.py", *self.host.arguments, *self.arguments,
                   "--listen", "127.0.0.1", "--port", str(self.port),
                   "--base-directory", str(self.base), "--disable-auto-launch",
                   "--database-url", f"sqlite:///{(self.base / 'user/comfyui.db').as_posix()}"]  # fmt: skip
        with (self.base / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.host.comfyui, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            if self.process.poll() is not None:
                raise ServerError(f"ComfyUI ended with {self.process.returncode} while starting:\n{self.log_tail()}")
            try:
                self.get("/system_stats", timeout=5)
                break
            except (OSError, ServerError):
                if time.monotonic() > deadline:
                    raise ServerError(f"not ready after {START_TIMEOUT:.0f} s:\n{self.log_tail()}") from None
                time.sleep(0.1)
        self.connection = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/ws?clientId={self.client_id}", http_no_proxy=["127.0.0.1"]
        )
        # As the page does: without it previews come in an older form that does not name their node.
        features = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
        self.connection.send(json.dumps(features))
        threading.Thread(target=self.listen, daemon=True).start()

    def stop(self) -> None:
        if not self.process:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def get(self, path: str, timeout: float = 30) -> Any:
        return json.loads(self.request(path, timeout=timeout))

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        return self.request(path, json.dumps(body).encode())

    def request(self, path: str, body: bytes | None = None, timeout: float = 30) -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"} if body else {})
        try:
            with HTTP.open(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise ServerError(f"{path}: HTTP {error.code}: {error.read().decode(errors='replace')}") from None

    def object_info(self, node: str = "") -> dict[str, Any]:
        return self.get("/object_info" + (f"/{node}" if node else ""))

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queues a graph in API form and returns its id; a graph that does not validate raises ServerError."""
        return json.loads(self.post("/prompt", {"prompt": prompt, "client_id": self.client_id}))["prompt_id"]

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def history(self, prompt_id: str) -> dict[str, Any]:
        return self.get(f"/history/{prompt_id}").get(prompt_id, {})

    def output(self, file: dict[str, str]) -> bytes:
        """One output file, as the history names it: {"filename", "subfolder", "type"}."""
        query = urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
        return self.request(f"/view?{query}")

    # --- events -------------------------------------------------------------------------------------------------------

    def listen(self) -> None:
        while True:
            try:
                message = self.connection.recv()
            except (OSError, websocket.WebSocketException):
                message = ""
            if not message:
                return
            event = read_event(message)
            with self.news:
                self.events.append(event)
                self.news.notify_all()

    def of(self, prompt_id: str, kind: str = "") -> list[Event]:
        """The events of one run so far, of one kind or of all."""
        with self.news:
            return [e for e in self.events if e.data.get("prompt_id") == prompt_id and kind in ("", e.kind)]

    def wait_for(self, wanted: Callable[[Event], bool], timeout: float = 120) -> Event:
        """The first event, past or to come, for which `wanted` holds."""
        deadline = time.monotonic() + timeout
        with self.news:
            seen = 0
            while True:
                for event in self.events[seen:]:
                    if wanted(event):
                        return event
                seen = len(self.events)
                if not self.news.wait(min(1.0, deadline - time.monotonic())) and time.monotonic() > deadline:
                    raise ServerError(f"No such event in {timeout:.0f} s; the server's last words:\n{self.log_tail()}")

    def wait(self, prompt_id: str, timeout: float = 300) -> Event:
        """Waits for the end of a run: `execution_success`, `execution_error` or `execution_interrupted`."""
        ends = ("execution_success", "execution_error", "execution_interrupted")
        end = self.wait_for(lambda e: e.kind in ends and e.data["prompt_id"] == prompt_id, timeout)
        # Only this later message tells that the history has the run.
        idle = {"node": None, "prompt_id": prompt_id}
        self.wait_for(lambda e: e.kind == "executing" and idle.items() <= e.data.items(), 30)
        return end

    def run(self, prompt: dict[str, Any], timeout: float = 300) -> tuple[str, dict[str, Any]]:
        """Queues a graph and waits for it: its id and its outputs by node. Raises ServerError unless it succeeds."""
        prompt_id = self.queue(prompt)
        end = self.wait(prompt_id, timeout)
        if end.kind != "execution_success":
            raise ServerError(f"{end.kind}: {json.dumps(end.data)[:2000]}\n{self.log_tail()}")
        return prompt_id, self.history(prompt_id)["outputs"]

    def executed(self, prompt_id: str) -> set[str]:
        """The nodes that a run really ran; the others came from the cache."""
        return {event.data["node"] for event in self.of(prompt_id, "executing") if event.data["node"]}


def read_event(message: str | bytes) -> Event:
    now = time.monotonic()
    if isinstance(message, str):
        parsed = json.loads(message)
        return Event(parsed["type"], parsed.get("data") or {}, at=now)
    (kind,) = struct.unpack(">I", message[:4])
    if kind in (PREVIEW_IMAGE_WITH_METADATA, TEXT):
        (length,) = struct.unpack(">I", message[4:8])
        head, rest = message[8 : 8 + length], message[8 + length :]
        if kind == TEXT:
            return Event("text", {"node_id": head.decode(), "text": rest.decode()}, at=now)
        return Event("preview", json.loads(head), rest, now)
    if kind == PREVIEW_IMAGE:
        return Event("preview", {}, message[8:], now)
    return Event(f"binary {kind}", {}, message[4:], now)
