"""The studio's queue: order, cancelling, limits, and work that fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pab_core.app.jobs import Job, JobQueue, Report, View
from pab_core.app.settings import Limits
from pab_core.errors import PabError

OWNER = "ann"


def wait_for(queue: JobQueue, job: str, state: str, owner: str = OWNER) -> View:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        view = queue.view(job, owner)
        if view.state == state:
            return view
        time.sleep(0.005)
    raise AssertionError(f"{queue.view(job, owner)} did not become {state}")


class Stepper:
    """Work of many steps, each of which waits for `go`."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.order: list[str] = []
        self.steps = 0

    def __call__(self, job: Job, report: Report) -> None:
        self.order.append(job.view.id)
        for step in range(100):
            report(stage="denoise", done=step, total=100)
            assert self.go.acquire(timeout=10)
            self.steps += 1


@pytest.fixture
def make_queue() -> Iterator[Callable[..., JobQueue]]:
    made: list[JobQueue] = []

    def make(work: Callable[[Job, Report], None], at_once: int = 1, **limits: int) -> JobQueue:
        made.append(JobQueue(work, Limits(**limits), at_once=at_once))
        return made[-1]

    yield make
    for queue in made:
        queue._work = lambda job, report: None
        queue.close()


def test_jobs_are_done_in_order_and_know_their_place(make_queue: Callable[..., JobQueue]):
    work = Stepper()
    queue = make_queue(work)
    jobs = [queue.submit(OWNER, str(i), []) for i in range(3)]
    wait_for(queue, jobs[0], "running")
    assert [queue.view(job, OWNER).position for job in jobs] == [0, 1, 2]
    assert queue.counts() == {"waiting": 2, "running": 1}
    work.go.release(300)
    wait_for(queue, jobs[2], "done")
    assert work.order == jobs


def test_teams_of_workers_do_jobs_side_by_side(make_queue: Callable[..., JobQueue]):
    work = Stepper()
    queue = make_queue(work, at_once=2)
    first, second, third = (queue.submit(OWNER, str(i), []) for i in range(3))
    for job in (first, second):
        wait_for(queue, job, "running")
    assert queue.counts() == {"waiting": 1, "running": 2}
    assert queue.view(third, OWNER).position == 2
    queue.cancel(second, OWNER)
    work.go.release(300)
    wait_for(queue, second, "cancelled")
    for job in (first, third):
        wait_for(queue, job, "done")


def test_a_running_job_ends_at_its_next_step_and_a_waiting_one_at_once(make_queue: Callable[..., JobQueue]):
    work = Stepper()
    queue = make_queue(work)
    running, waiting, last = (queue.submit(OWNER, str(i), []) for i in range(3))
    wait_for(queue, running, "running")
    assert queue.cancel(waiting, OWNER).state == "cancelled"
    work.go.release(2)
    while work.steps < 2:
        time.sleep(0.005)
    assert queue.cancel(running, OWNER).state == "running"
    work.go.release(1)
    wait_for(queue, running, "cancelled")
    assert work.steps == 3
    assert queue.view(last, OWNER).position == 0
    work.go.release(100)
    wait_for(queue, last, "done")
    assert waiting not in work.order


def test_nobody_finds_the_job_of_another(make_queue: Callable[..., JobQueue]):
    work = Stepper()
    queue = make_queue(work)
    job = queue.submit(OWNER, OWNER, [])
    for use in (queue.view, queue.cancel):
        with pytest.raises(PabError, match="no such job"):
            use(job, "bob")
    assert queue.view(job, OWNER).state in ("queued", "running")
    work.go.release(100)
    wait_for(queue, job, "done")


def test_the_limits_of_the_queue_and_of_one_visitor(make_queue: Callable[..., JobQueue]):
    work = Stepper()
    queue = make_queue(work, queued=3, queued_each=2)
    first = queue.submit(OWNER, "a", [])
    wait_for(queue, first, "running")
    queue.submit(OWNER, "a", [])
    with pytest.raises(PabError, match="2 of your videos"):
        queue.submit(OWNER, "a", [])
    queue.submit(OWNER, "b", [])
    last = queue.submit(OWNER, "b", [])
    with pytest.raises(PabError, match="queue is full"):
        queue.submit(OWNER, "c", [])
    queue.cancel(last, OWNER)
    queue.submit(OWNER, "c", [])
    work.go.release(1000)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PabError("That cannot be."), "That cannot be."),
        (RuntimeError("CUDA out of memory. Tried"), "not enough memory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyError("x"), r"failed \(KeyError\)"),
        (SystemExit(1), r"failed \(SystemExit\)"),
    ],
)
def test_what_fails_is_told_and_the_next_job_runs(
    make_queue: Callable[..., JobQueue], error: BaseException, words: str
):
    def work(job: Job, report: Report) -> None:
        if job.visitor == "unlucky":
            raise error

    queue = make_queue(work)
    unlucky, next_one = queue.submit(OWNER, "unlucky", []), queue.submit(OWNER, "lucky", [])
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(wait_for(queue, unlucky, "failed").error)
    assert wait_for(queue, next_one, "done").error == ""


def test_ended_jobs_are_forgotten_after_a_while(make_queue: Callable[..., JobQueue]):
    queue = make_queue(lambda job, report: None, queued=1000, queued_each=1000)
    jobs = [queue.submit(OWNER, OWNER, []) for _ in range(250)]
    wait_for(queue, jobs[-1], "done")
    while queue.counts()["running"]:
        time.sleep(0.005)
    with pytest.raises(PabError, match="no such job"):
        queue.view(jobs[0], OWNER)
    assert len(queue._jobs) == 200
