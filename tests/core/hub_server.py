"""A small Hub on this machine: the part of its API that huggingface_hub uses to list and fetch a repository's files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE = (".safetensors", ".bin", ".ckpt", ".pt")  # kept in large file storage, with a sha256


class Hub:
    """Repositories: name -> path of a file -> its bytes. What went over the wire is in `served` and `ranges`."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.address = ""
        self.served: dict[str, int] = {}  # path of a file -> bytes of it that were sent
        self.ranges: list[tuple[str, str]] = []  # path, and the range that was asked for
        self.damaged: set[str] = set()  # paths of files that are sent with one byte changed
        self.cut: dict[str, int] = {}  # path -> bytes after which the connection breaks, once
        self.knows_ranges = True
        self.status = 200

    def about(self, repo: str) -> dict[str, Any]:
        """The answer to /api/models/repo?blobs=true."""
        siblings = []
        for path, content in self.repositories[repo].items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if path.endswith(LARGE):
                entry["lfs"] = {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 134,
                }
            siblings.append(entry)
        return {"_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "private": False, "siblings": siblings}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Runs it on a free port, in a thread."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            if hub.status != 200:
                return self.answer(hub.status, b"{}")
            if path.startswith("api/models/"):
                repo = path.removeprefix("api/models/").partition("/revision/")[0]
                if repo not in hub.repositories:
                    return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return self.answer(200, json.dumps(hub.about(repo)).encode(), {"Content-Type": "application/json"})
            repo, _, rest = path.partition("/resolve/")
            revision, _, name = rest.partition("/")
            assert revision == COMMIT, "files are asked for by the commit that was listed"
            return self.file(name, hub.repositories[repo][name])

        def file(self, name: str, content: bytes) -> None:
            if name in hub.damaged:
                middle = len(content) // 2
                content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            asked = self.headers.get("Range", "")
            hub.ranges.append((name, asked))
            first = 0
            if asked and hub.knows_ranges:
                first = int(asked.removeprefix("bytes=").split("-")[0])
                place = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
                self.answer(206, b"", place, len(content) - first)
            else:
                self.answer(200, b"", {}, len(content))
            end = min(len(content), first + hub.cut.pop(name, len(content)))
            self.wfile.write(content[first:end])
            hub.served[name] = hub.served.get(name, 0) + end - first
            if end < len(content):
                self.close_connection = True

        def answer(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None
        ) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hangs up is part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
