"""`pab workers`: the pool in the background, who may come in, and what clients get."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

from pab_core.cli_workers import workers
from pab_core.errors import PabError
from pab_core.parallel.pool import door
from pab_core.parallel.pool.client import SharedPool, error_from
from pab_core.parallel.pool.door import Address, Connection, connect, let_in, listen, read_address, workers_folder
from pab_core.parallel.pool.failures import JobCancelled, WorkerError
from pab_core.parallel.pool.job import Job, ModelSource
from pab_core.parallel.pool.protocol import Message
from pab_core.parallel.pool.record import PoolProgress
from pab_core.parallel.pool.service import failure_message
from pab_core.pipeline import Pipeline

PROMPT = "a red ball rolls left over a green floor"
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for the pool of a test."""
    monkeypatch.setenv("PAB_WORKERS", str(tmp_path / "workers"))
    return tmp_path / "workers"


def pab_workers(*arguments: str) -> Result:
    result = CliRunner().invoke(workers, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# the command line and its clients


@pytest.fixture
def background(place: Path) -> Iterator[dict[str, Any]]:
    assert pab_workers("start", "--devices", "cpu", "--idle", "100").exit_code == 0
    yield json.loads(pab_workers("status", "--json").stdout)
    found = read_address()
    if found is not None:
        psutil.Process(found.pid).kill()


def test_a_pool_in_the_background_serves_several_programs(background: dict[str, Any], folder: Path, pipe: Pipeline):
    pid = background["pid"]
    assert [row["state"] for row in background["workers"]] == ["off"]
    job = Job(model=ModelSource.of(folder), prompt=PROMPT, seed=1, policy="pab246", previews=True)
    events: list[PoolProgress] = []
    long = SharedPool().submit(job.model_copy(update={"steps": 900, "num_frames": 680}), progress=events.append)
    until(lambda: any(event.stage == "denoise" for event in events), 60)
    assert any(event.preview is not None for event in events)
    # Another program of the same user, which takes its time to start.
    script = (
        "import sys; from pab_core.parallel.pool.client import SharedPool; from pab_core.parallel.pool.job import Job; "
        "handle = SharedPool().submit(Job.read({'model': {'model': sys.argv[1]}, 'prompt': 'a ball', 'steps': 900})); "
        "print('waits', flush=True); handle.result()"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "waits\n"
    until(lambda: len(SharedPool().status()["waiting"]) == 1)
    told = pab_workers("status").stdout
    assert "waiting  1" in told
    assert "denoise" in told
    other.kill()  # its job goes with it
    other.wait()
    other.stdout.close()
    until(lambda: not SharedPool().status()["waiting"])
    long.cancel()
    with pytest.raises(JobCancelled):
        long.result(10)
    made = SharedPool().submit(job).result(30)
    expected = pipe.generate(PROMPT, seed=1, policy="pab246")
    assert made.generation is not None
    assert (made.generation.frames == expected.frames).all()
    assert made.generation.metadata == expected.metadata
    assert made.generation.table.source == expected.table.source
    with pytest.raises(PabError, match="18 frames do not fit"):
        SharedPool().submit(job.model_copy(update={"num_frames": 18})).result(30)
    (worker,) = [row["pid"] for row in SharedPool().status()["workers"]]
    result = pab_workers("start", "--devices", "cpu")
    assert result.exit_code == 2
    assert "runs already" in result.stderr
    assert pab_workers("stop").exit_code == 0
    until(lambda: not psutil.pid_exists(worker))
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    result = pab_workers("status")
    assert result.exit_code == 2
    assert "No pool of workers runs" in result.stderr


def test_a_pool_that_is_killed_is_noticed_and_can_be_started_again(background: dict[str, Any], folder: Path):
    job = Job(model=ModelSource.of(folder), prompt=PROMPT, steps=900)
    handle = SharedPool().submit(job)
    until(lambda: handle.place is not None and handle.place.stage == "denoise", 60)
    (worker,) = [row["pid"] for row in SharedPool().status()["workers"]]
    os.kill(background["pid"], getattr(signal, "SIGKILL", signal.SIGTERM))
    with pytest.raises(WorkerError, match="has ended"):
        handle.result(10)
    until(lambda: not psutil.pid_exists(worker))
    assert pab_workers("status").exit_code == 2
    assert pab_workers("start", "--devices", "cpu").exit_code == 0
    assert pab_workers("stop").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--devices", "gpu7"), "'gpu7' is no device"),
        (("--devices", "cpu*3", "--ranks", "2"), "teams of 2"),
        (("--devices", "cpu", "--model", "opensora"), "no model named 'opensora'"),
        (("--devices", "cpu", "--idle", "-5"), "above 0, not -5"),
    ],
)
@pytest.mark.usefixtures("place")
def test_a_pool_that_cannot_be_says_why(arguments: tuple[str, ...], said: str):
    result = pab_workers("start", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert read_address() is None


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PAB_WORKERS", str(tmp_path / "file" / "workers"))
    result = pab_workers("start", "--devices", "cpu")
    assert result.exit_code == 2
    assert "cannot be made" in result.output
    assert "PAB_WORKERS" in result.output


@pytest.mark.usefixtures("place")
def test_a_model_that_cannot_be_loaded_is_told(folder: Path, tmp_path: Path):
    """Nobody waits for the job that loads it."""
    shutil.copytree(folder, damaged := tmp_path / "damaged")
    for weights in (damaged / "vae").rglob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-100])
    assert pab_workers("start", "--devices", "cpu", "--model", str(damaged)).exit_code == 0
    try:
        until(lambda: SharedPool().status()["trouble"], 60)
        assert str(damaged) in pab_workers("status").stderr
        # A job that succeeds is the last word.
        SharedPool().submit(Job(model=ModelSource.of(folder), prompt=PROMPT, steps=2)).result(60)
        assert SharedPool().status()["trouble"] == []
    finally:
        assert pab_workers("stop").exit_code == 0


# who may come in


@pytest.fixture
def listening(place: Path) -> Iterator[tuple[socket.socket, Address, list[Connection | None]]]:
    """A door, and whom it let in."""
    server, address = listen()
    seen: list[Connection | None] = []

    def accept() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            seen.append(let_in(sock, address))

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield server, address, seen
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)
    for connection in seen:
        if connection is not None:
            connection.close()


def test_who_knows_the_secret_comes_in(listening: Any):
    _, _, seen = listening
    with connect() as connection:
        until(lambda: seen)
        seen[0].send(Message("answer", {"x": 1}))
        assert connection.read() == Message("answer", {"x": 1})


def test_the_secret_is_for_its_user_alone(listening: Any, place: Path):
    server, _, _ = listening
    assert server.getsockname()[0] == "127.0.0.1"
    if sys.platform != "win32":
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert stat.S_IMODE((place / "pool.json").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "start",
    [
        b"GET /status HTTP/1.1\r\n\r\n",
        Message("status").to_bytes(),
        Message("hello", {"nonce": 5}).to_bytes(),
        Message("hello", {"nonce": "x" * 5000}).to_bytes(),
        Message("hello", {"nonce": "00"}, b"tensors").to_bytes(),
        Message("hello", {"nonce": "00"}).to_bytes() + Message("proof", {"mac": "00" * 32}).to_bytes(),
        Message("hello", {"nonce": "00"}).to_bytes() + Message("proof", {"mac": None}).to_bytes(),
    ],
    ids=["http", "no greeting", "number", "long", "tensors", "wrong proof", "no proof"],
)
def test_who_does_not_know_it_stays_out(listening: Any, start: bytes):
    server, _, seen = listening
    with socket.create_connection(server.getsockname()) as sock:
        sock.sendall(start)
        sock.shutdown(socket.SHUT_WR)
        until(lambda: seen)
    assert seen == [None]


def test_a_server_that_does_not_know_it_is_not_believed(place: Path):
    """Another user's, on the port of a pool that has gone."""
    server = socket.create_server(("127.0.0.1", 0))
    (workers_folder() / "pool.json").write_text(
        json.dumps({"port": server.getsockname()[1], "secret": "00" * 32, "pid": 1})
    )
    got: list[bytes] = []

    def pretend() -> None:
        sock, _ = server.accept()
        with sock:
            got.append(sock.recv(4096))
            sock.sendall(Message("proof", {"nonce": "11", "mac": "22" * 32}).to_bytes())
            got.append(sock.recv(4096))

    thread = threading.Thread(target=pretend, daemon=True)
    thread.start()
    with pytest.raises(PabError, match="No pool of workers runs"):
        connect()
    thread.join(5)
    server.close()
    assert b"00" * 32 not in b"".join(got)
    assert got[1] == b""  # nothing more was said to it


def test_a_file_left_behind_is_no_pool(place: Path):
    door.workers_folder()
    for content in ('{"port": 1, "secret": "00", "pid": 1}', "{", "[]", '{"port": 1}'):
        (place / "pool.json").write_text(content)
        with pytest.raises(PabError, match="No pool of workers runs"):
            connect()
    server, address = listen()
    assert read_address() == address
    door.forget(Address(1, "00", 1))
    assert read_address() == address
    door.forget(address)
    assert read_address() is None
    server.close()


@pytest.mark.parametrize("error", [JobCancelled(), PabError("a"), WorkerError("b", 1, "log", True), KeyError("c")])
def test_failures_come_through(error: Exception):
    back = error_from(failure_message(error))
    assert type(back) is (WorkerError if isinstance(error, KeyError) else type(error))
    if isinstance(back, WorkerError) and isinstance(error, WorkerError):
        assert (str(back), back.rank, back.log, back.retry) == ("b", 1, "log", True)
