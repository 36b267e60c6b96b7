"""One fault each, at a place that is known."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from leftovers import ROOT, marked, until

from pab_core.parallel.pool.failures import JobCancelled, WorkerError
from pab_core.parallel.pool.folder import sweep
from pab_core.parallel.pool.job import Job, ModelSource
from pab_core.parallel.pool.pool import Handle, WorkerPool
from pab_core.pipeline import Pipeline

PROMPT = "a red ball rolls left over a green floor"
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows stops no processes and kills them otherwise")


@pytest.fixture
def pool(faulty: Callable[..., dict[str, Any]]) -> Iterator[WorkerPool]:
    with WorkerPool("cpu*2", method="dsp", **faulty(pace=0.01)) as made:
        yield made


@pytest.fixture
def job(folder: Path) -> Callable[..., Job]:
    source = ModelSource.of(folder)
    return lambda **settings: Job(**{"model": source, "prompt": PROMPT, "seed": 1, **settings})


def pids(pool: WorkerPool) -> list[int]:
    return [row["pid"] for row in pool.status()["workers"]]


def denoising(handle: Handle) -> bool:
    assert handle.state in ("queued", "running"), handle.result(0)
    return handle.place is not None and handle.place.stage == "denoise" and handle.place.done > 2


def works(pool: WorkerPool, job: Job, pipe: Pipeline) -> None:
    expected = pipe.generate(PROMPT, seed=1).frames
    frames = pool.submit(job).result(90).frames
    assert frames is not None
    assert int((frames.int() - expected.int()).abs().max()) <= 1


@pytest.mark.parametrize("rank", [0, 1])
def test_memory_that_runs_out_on_one_rank_ends_that_job_alone(
    pool: WorkerPool, job: Any, pipe: Pipeline, tmp_path: Path, rank: int
):
    works(pool, job(), pipe)
    before = pids(pool)
    handle = pool.submit(job(steps=500))
    until(lambda: denoising(handle))
    (tmp_path / "faults" / f"memory-{rank}").touch()
    with pytest.raises(WorkerError, match=rf"not enough memory for this clip on rank {rank} \(cpu\)"):
        handle.result(10)
    works(pool, job(), pipe)
    assert pids(pool) == before  # nothing was started anew


def test_a_bug_on_one_rank_is_told_with_its_trace(pool: WorkerPool, job: Any, pipe: Pipeline, tmp_path: Path):
    works(pool, job(), pipe)
    before = pids(pool)
    handle = pool.submit(job(steps=500))
    until(lambda: denoising(handle))
    (tmp_path / "faults" / "bug-1").touch()
    with pytest.raises(WorkerError, match=r"(?s)failed on rank 1 \(cpu\).*struck.*faulty_worker\.py") as caught:
        handle.result(10)
    assert caught.value.rank == 1
    (tmp_path / "faults" / "print-0").touch()  # messages are not disturbed by what is printed
    works(pool, job(), pipe)
    assert pids(pool) == before
    assert "go around Python" in (Path(pool.status()["logs"]) / "worker-0-cpu.log").read_text()


@POSIX
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_stopped_is_noticed(pool: WorkerPool, job: Any, pipe: Pipeline, rank: int):
    handle = pool.submit(job(steps=1000))
    until(lambda: denoising(handle))
    before = pids(pool)
    os.kill(before[rank], signal.SIGSTOP)
    with pytest.raises(WorkerError, match=rf"rank {rank} \(cpu\) did not answer for 6 s in step"):
        handle.result(30)
    works(pool, job(), pipe)
    assert pids(pool)[rank] != before[rank]
    assert not psutil.pid_exists(before[rank])


def test_a_rank_that_makes_no_progress_is_noticed(pool: WorkerPool, job: Any, pipe: Pipeline, tmp_path: Path):
    """Its threads go on, so that only the steps tell."""
    handle = pool.submit(job(steps=1000))
    until(lambda: denoising(handle))
    (tmp_path / "faults" / "stuck-1").touch()
    with pytest.raises(WorkerError, match="made no progress for 8 s in step"):
        handle.result(60)
    works(pool, job(), pipe)
    logs = Path(pool.status()["logs"])
    assert "in strike" in (logs / "worker-1-cpu.log").read_text()  # where it was stuck


def test_a_pool_is_stopped_although_a_rank_hears_of_nothing(faulty: Any, job: Any, mark: str, tmp_path: Path):
    """Nor is it waited for until it counts as stuck, which may be half an hour."""
    given = faulty(pace=0.01)
    patient = replace(given["patience"], step=600.0, settle=1.0)
    with WorkerPool("cpu*2", method="dsp", **{**given, "patience": patient}) as pool:
        handle = pool.submit(job(steps=1000))
        until(lambda: denoising(handle))
        order = tmp_path / "faults" / "stuck-1"
        order.touch()
        until(lambda: not order.exists())
    with pytest.raises(JobCancelled):
        handle.result(0)
    assert not marked(mark)


@POSIX
def test_a_worker_killed_while_it_starts_loads_or_decodes(faulty: Any, job: Any, pipe: Pipeline, mark: str):
    with WorkerPool("cpu*2", method="dsp", **faulty()) as pool:
        handle = pool.submit(job())
        until(lambda: pids(pool)[1])
        os.kill(pids(pool)[1], signal.SIGKILL)
        assert handle.result(90).frames is not None  # it had not begun: nothing was lost
        stages = {"load": "while it loaded the model", "decode": "(while it decoded|after its last step)"}
        for stage, told in stages.items():
            pool.release()
            until(lambda: not marked(mark))
            handle = pool.submit(job(steps=1, num_frames=17 * 200))
            until(lambda stage=stage, handle=handle: handle.place is not None and handle.place.stage == stage)
            os.kill(pids(pool)[1], signal.SIGKILL)
            killed = time.monotonic()
            with pytest.raises(WorkerError, match=rf"rank 1 \(cpu\) was killed .* {told}"):
                handle.result(5)
            assert time.monotonic() - killed < 5
        works(pool, job(), pipe)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
@pytest.mark.parametrize("moment", ["started", "running"])
@POSIX
def test_no_worker_outlives_its_host(
    folder: Path, mark: str, pool_folders: Callable[[], list[str]], how: str, moment: str
):
    script = Path(__file__).with_name("lonely_host.py")
    host = subprocess.Popen(
        [sys.executable, str(script), str(folder), "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PAB_MARK": mark, "PYTHONPATH": str(ROOT)},
        # Whoever runs the tests in the background has told their children to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert host.stdout is not None
    until(lambda: host.stdout is not None and host.stdout.readline().strip() == moment)
    until(lambda: len(marked(mark)) == 2)
    workers = [pid for pid in marked(mark) if pid != host.pid]
    if moment == "running" and how == "SIGKILL":
        os.kill(workers[0], signal.SIGSTOP)  # one that cannot notice by itself
    os.kill(host.pid, getattr(signal, how))
    host.wait(30)
    until(lambda: not marked(mark), 10, f"for {marked(mark)}")
    sweep()  # as the next pool does
    assert pool_folders() == []


def test_two_hosts_with_one_temporary_folder_leave_each_other_alone(pool_folders: Any, tmp_path: Path):
    with WorkerPool("cpu") as pool, WorkerPool("cpu"):
        sweep()
        assert len(pool_folders()) == 2
        shutil.copytree(pool.status()["logs"], tmp_path / "pab-pool-left")
        sweep()
        assert len(pool_folders()) == 2
    assert pool_folders() == []
