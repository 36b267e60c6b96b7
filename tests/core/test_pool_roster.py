"""The processes of a team, with members that are none: what is said of their devices, and how failures to start end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pab_core.parallel.pool.failures import Failure, WorkerError, cause_of, error_of, remedy
from pab_core.parallel.pool.member import LARGE_LOG, Member, Place, make_room, python_command, tail
from pab_core.parallel.pool.protocol import Message
from pab_core.parallel.pool.roster import Roster
from pab_core.parallel.pool.watching import Patience, Watch

H200 = {"name": "NVIDIA H200", "memory": 141 * 2**30, "gloo": True, "nccl": True}
OLD = {"name": "NVIDIA T4", "memory": 15 * 2**30, "gloo": True, "nccl": True}


class Pretender(Member):
    """Answers at once, as it is told to."""

    def __init__(self, place: Place, receive: Any, answers: dict[str, Any]) -> None:
        super().__init__(place, receive)
        self.answers = answers
        self.got: list[Message] = []
        for message in answers.get("start", ()):
            self.heard_of(message)

    def send(self, message: Message) -> None:
        self.got.append(message)
        if message.type == "group" and "group" in self.answers:
            told = self.answers["group"]
            self.heard_of(told and Message("grouped", {"generation": message["generation"], **told}))

    def kill(self, cause: str = "", after: float = 0.0) -> None:
        self.cause = self.cause or cause
        if not self.gone:
            self.gone = True
            self.heard_of(None)

    def end(self) -> str:
        return self.cause or "ended by itself (exit code 3)"

    def log_tail(self) -> str:
        return "last words"

    def wait(self, seconds: float) -> bool:
        return True


def roster_of(devices: list[str], answers: Callable[[int, int], dict[str, Any]], **patience: float) -> Roster:
    """answers: (rank, how often it was started before) -> what its process says."""
    started: dict[int, int] = {}

    def start(place: Place, receive: Any) -> Member:
        before = started.get(place.index, 0)
        started[place.index] = before + 1
        return Pretender(place, receive, answers(place.index, before))

    places = [Place(device, index) for index, device in enumerate(devices)]
    made = Roster(
        0, places, start, lambda *_: {"file": "/nowhere"}, Patience(**{"start": 0.3, "join": 0.3, **patience})
    )
    made.started = started  # pyright: ignore[reportAttributeAccessIssue]
    return made


def ready(about: dict[str, Any]) -> dict[str, Any]:
    return {"start": [Message("ready", about)], "group": {"error": ""}}


def test_equal_devices_are_nothing_to_speak_of():
    roster = roster_of(["cuda:0", "cuda:1"], lambda rank, before: ready(H200))
    roster.make_ready(2, lambda: None)
    assert roster.warnings == []
    assert roster.joined == 2
    sent: Any = roster.members[1]
    assert sent.got[-1]["backend"] == "nccl"
    assert sent.got[-1]["rank"] == 1


def test_of_devices_that_differ_the_smallest_decides():
    roster = roster_of(["cuda:0", "cuda:1"], lambda rank, before: ready([H200, OLD][rank]))
    roster.make_ready(2, lambda: None)
    assert roster.warnings == [
        "The devices differ (cuda:0 NVIDIA H200 141 GiB, cuda:1 NVIDIA T4 15 GiB): the smallest decides what fits, and "
        "the slowest how fast."
    ]


def test_without_nccl_one_gpu_makes_the_videos_and_says_so():
    roster = roster_of(["cuda:0", "cuda:1"], lambda rank, before: ready({**H200, "nccl": False}))
    roster.make_ready(2, lambda: None)
    assert [place.device for place in roster.places] == ["cuda:0"]
    assert "every video is made on cuda:0 alone" in roster.warnings[0]
    assert roster.joined == 0
    assert list(roster.members) == [0]


def test_a_process_that_does_not_start_is_tried_again_and_given_up():
    fails = {"start": [None]}
    roster = roster_of(["cpu"], lambda rank, before: fails if before == 0 else ready({"gloo": True}))
    roster.make_ready(1, lambda: None)
    assert roster.trouble == ""
    roster = roster_of(["cpu"], lambda rank, before: fails)
    with pytest.raises(WorkerError, match=r"(?s)rank 0 \(cpu\) could not be started.*exit code 3.*last words"):
        roster.make_ready(1, lambda: None)
    assert roster.started == {0: 3}  # pyright: ignore[reportAttributeAccessIssue]


def test_a_process_that_says_nothing_is_not_waited_for():
    roster = roster_of(["cpu"], lambda rank, before: {"start": []})
    with pytest.raises(WorkerError, match="was not ready in time"):
        roster.make_ready(1, lambda: None)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"error": "RuntimeError: No space left on device"}, "make /dev/shm larger"),
        ({"error": "OSError: Address already in use"}, "no free port was left"),
        (None, "exit code 3"),
    ],
)
def test_ranks_that_do_not_join_end_with_a_reason(group: Any, said: str):
    roster = roster_of(
        ["cpu"] * 2, lambda rank, before: {**ready({"gloo": True}), "group": group if rank else {"error": ""}}
    )
    with pytest.raises(WorkerError, match=said):
        roster.make_ready(2, lambda: None)
    assert roster.members == {}


def test_ranks_that_never_find_each_other_end_in_time():
    answers = {"start": [Message("ready", {"gloo": True})]}
    roster = roster_of(["cpu"] * 2, lambda rank, before: answers)
    with pytest.raises(WorkerError, match="did not find the others in time"):
        roster.make_ready(2, lambda: None)


def test_a_wait_ends_when_nobody_wants_it_any_more():
    roster = roster_of(["cpu"], lambda rank, before: {"start": []}, start=60)
    with pytest.raises(KeyboardInterrupt):
        roster.make_ready(1, lambda: (_ for _ in ()).throw(KeyboardInterrupt))


# causes and patience


def test_the_cause_is_told_and_not_its_consequences():
    peer = Failure(0, "cpu", "peer", "Connection closed by peer")
    assert cause_of([peer, Failure(1, "cpu", "memory", "")]).rank == 1
    assert cause_of([peer, Failure(1, "cpu", "bug", ""), Failure(2, "cpu", "gone", "was killed")]).rank == 2
    assert cause_of([Failure(1, "cpu", "peer", ""), Failure(0, "cpu", "cancelled", "")]).kind == "cancelled"
    error = error_of(Failure(2, "cuda:2", "memory", "CUDA out of memory"), "in step 3 of 30")
    assert "not enough memory for this clip on rank 2 (cuda:2)" in str(error)
    assert "Try again" in remedy("something else")


def test_patience_follows_the_steps_that_were_seen():
    watch = Watch(Patience(load=1000, step=10, factor=20), now=0.0)
    assert not watch.overdue(900)
    watch.progress("load", 0, 0, 900)
    watch.progress("denoise", 1, 30, 950)
    assert not watch.overdue(1500)  # the first step tells nothing yet
    watch.progress("denoise", 2, 30, 952)
    assert watch.bound == 40
    assert watch.place == "in step 3 of 30"
    assert not watch.overdue(990)
    assert watch.overdue(993)
    watch.progress("denoise", 3, 30, 952.1)
    assert watch.bound == 40  # a step that reuses much does not make the next ones late
    watch.progress("denoise", 30, 30, 960)
    assert not watch.overdue(1900)  # what follows is decoding
    assert watch.place == "after its last step"
    watch.progress("decode", 1, 4, 1000)
    assert watch.place == "while it decoded"
    assert not watch.overdue(1900)  # the first frames tell nothing yet
    watch.progress("decode", 2, 4, 1002)
    assert 157 < watch.bound < 159  # 20 times the longest step or piece so far


def test_logs_are_shown_from_the_beginning_of_a_line(tmp_path: Path):
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_text("".join(f"line {i}\n" for i in range(1000)))
    lines = tail(log, 100).splitlines()
    assert lines[-1] == "line 999"
    assert all(line in {f"line {i}" for i in range(1000)} for line in lines)


def test_a_large_log_is_put_aside(tmp_path: Path):
    log = tmp_path / "rank0.log"
    make_room(log)
    for content in (b"small", bytes(LARGE_LOG + 1), bytes(LARGE_LOG + 2)):
        log.write_bytes(content)
        make_room(log)
        assert log.exists() == (content == b"small")
    assert [file.name for file in tmp_path.iterdir()] == ["rank0.log.old"]
    assert (tmp_path / "rank0.log.old").stat().st_size == LARGE_LOG + 2


def test_a_python_that_ignores_its_folder_is_told_where_to_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert python_command("a.b")[1:] == ["-m", "a.b"]
    (tmp_path / "python311._pth").touch()
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    command = python_command("a.b")
    assert command[1] == "-c"
    assert "run_module('a.b'" in command[2]
